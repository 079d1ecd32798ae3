"""What the benchmarks share: the servers that they measure, and the clock of the processor."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support.figures import GRACE, PLAIN
from support.servers import Server

HERE = str(Path(__file__).parent)
MS = 1e6
"""Nanoseconds in a millisecond."""

KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "sync": ("tiny:app", ("-k", "sync")),
    "gthread": ("tiny:app", ("-k", "gthread", "--threads", "2")),
    "gevent": ("tiny:app", ("-k", "gevent")),
    "asgi": ("smallest:app", ("-k", "asgi")),
    "uvicorn": ("smallest:app", ("-k", "uvicorn_worker.UvicornWorker")),
}
"""The worker classes, each with the smallest application for it: WSGI without a framework, or
FastAPI. gunicorn's own asgi is there from 24.1 on."""


def serve(app: str, **options: Any) -> Server:
    """A server with the plugin."""
    return Server(app, env={"PYTHONPATH": HERE}, cwd=HERE, **options)


def plain(app: str, **options: Any) -> Server:
    """The same server without the plugin."""
    options.pop("settings", None)
    return serve(app, config=(), **options)


SERVERS = {PLAIN: plain, GRACE: serve}
"""Who serves, by the name in the tables."""


def in_turns(number: int) -> list[str]:
    """Plain gunicorn and the plugin, now the one first, now the other."""
    return sorted(SERVERS, reverse=number % 2 == 0)


def cpu_ns(pids: Sequence[int]) -> int:
    """CPU time that these processes have used, all threads, from the scheduler's own count."""
    total = 0
    for pid in pids:
        for task in os.listdir(f"/proc/{pid}/task"):
            total += int(Path(f"/proc/{pid}/task/{task}/schedstat").read_text().split()[0])
    return total


def wait_until_read(server: Server) -> None:
    """Wait until no listening or accepted socket of the server has something unread: the request is
    in flight then, with the plugin or without."""
    port = f":{server.address[1]:04X}"
    while True:
        sockets = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        ours = [line[4] for line in sockets if line[1].endswith(port)]
        if all(queues.endswith(":00000000") for queues in ours):
            return
        time.sleep(0.001)
