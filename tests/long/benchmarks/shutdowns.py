"""How long the parts of a shutdown take."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Collection
from typing import Any

from serving import KINDS, MS, plain, serve, wait_until_read

from gunicorn_grace.shared import cells
from support.figures import GRACE, PLAIN, SLEEP, Row
from support.servers import WORKERS, Client, Server

# -- from SIGTERM until everybody knows ----


def flip(runs: int = 7, counts: Collection[int] = (1, 16, 64)) -> list[Row]:
    """From SIGTERM until the last worker has seen the shutdown; in plain gunicorn, which has no
    such thing, until a new connection is refused."""
    rows = []
    for workers in counts:
        found: dict[str, list[float | None]] = {PLAIN: [], GRACE: []}
        for _ in range(runs):
            found[PLAIN].append(refused(workers))
            found[GRACE].append(seen_by_all(workers))
        rows.append(Row(f"{workers} worker{'s' if workers > 1 else ''}", "ms", found))
    return rows


def refused(workers: int) -> float:
    """Milliseconds until plain gunicorn refuses a connection."""
    with plain("tiny:app", args=gthread(workers)) as server:
        server.wait_ready()
        server.wait_workers(workers)
        began = time.monotonic_ns()
        server.signal(signal.SIGTERM)
        while True:
            try:
                socket.create_connection(server.address).close()
            except ConnectionError:
                return (time.monotonic_ns() - began) / MS
            time.sleep(0.0005)


def seen_by_all(workers: int) -> float:
    """Milliseconds until a request in the last worker sees that the shutdown has begun. Each looks
    so often that all of them together look 32,000 times a second: oftener, and what is measured is
    how 64 busy processes share two cores."""
    settings = {"shutdown_delay": 60, "termination_period": 90}
    with serve("tiny:app", args=gthread(workers), settings=settings) as server:
        server.wait_ready()
        server.wait_booted(workers)
        clients = one_in_each(server, workers)
        for client in clients:
            client.send(f"/watch?{workers / 32_000}")
        server.wait_in_flight(workers)
        began = time.monotonic_ns()
        server.signal(signal.SIGTERM)
        seen = max(int(client.receive().body) for client in clients)
        for client in clients:
            client.close()
    return (seen - began) / MS


def gthread(workers: int) -> tuple[str, ...]:
    return ("-k", "gthread", "-w", str(workers), "--threads", "2", "--keep-alive", "600")


def one_in_each(server: Server, workers: int) -> list[Client]:
    """A kept-alive connection to each worker. A worker that is stopped accepts nothing: so those
    that have one are, until all have."""
    clients: list[Client] = []
    halted: list[int] = []
    try:
        for _ in range(workers):
            client = Client(server.address)
            pid = int(client.get("/pid").body)
            clients.append(client)
            os.kill(pid, signal.SIGSTOP)
            halted.append(pid)
    finally:
        for pid in halted:
            os.kill(pid, signal.SIGCONT)
    return clients


# -- from SIGTERM to the exit ----

PAUSE, REQUEST = 1.5, 0.5
"""Seconds of the delay, or of the hook's sleep; and what a request takes. In every second round it
is the other way round."""


def exits(runs: int = 8, kinds: Collection[str] = KINDS) -> list[Row]:
    """From the end of the delay or the sleep, or of the request in flight if that is later, to the
    end of the process."""
    rows = []
    for kind in kinds:
        app, args = KINDS[kind]
        found: dict[str, list[float | None]] = {PLAIN: [], SLEEP: [], GRACE: []}
        for number in range(runs):
            pause, request = (PAUSE, REQUEST) if number % 2 else (REQUEST, PAUSE)
            found[PLAIN].append(exit_of(plain, app, args, 0, request))
            found[SLEEP].append(exit_of(plain, app, args, pause, request))
            found[GRACE].append(exit_of(serve, app, args, 0, request, delay=pause))
        rows.append(Row(kind, "s", found))
    return rows


def exit_of(
    start: Callable[..., Server],
    app: str,
    args: tuple[str, ...],
    sleep: float,
    request: float,
    delay: float = 0.0,
) -> float:
    """Seconds of one exit beyond what it had to wait for."""
    settings = {"shutdown_delay": delay, "min_delay": 0, "extend_delay": "false"}
    with start(app, args=(*args, "-w", "2"), settings=settings) as server:
        server.wait_ready()
        server.wait_workers(2)
        client = Client(server.address)
        client.get("/")
        # sync has closed the connection, and says so.
        client = Client(server.address) if "sync" in args else client
        client.send(f"/sleep?{request}")
        wait_until_read(server)
        deleted = time.monotonic()
        time.sleep(sleep)
        server.signal(signal.SIGTERM)
        client.receive()
        answered = time.monotonic()
        client.close()
        server.wait(60)
        assert server.exit_time is not None
        return server.exit_time - max(answered, deleted + sleep + delay)


# -- idle connections ----


def idle(runs: int = 3, kinds: Collection[str] = WORKERS) -> list[Row]:
    """From the begin of the drain, in plain gunicorn from SIGTERM, until the last idle or silent
    connection is closed."""
    rows = []
    for kind in kinds:
        found: dict[str, list[float | None]] = {PLAIN: [], GRACE: []}
        for _ in range(runs):
            found[PLAIN].append(closed_after(plain, kind))
            found[GRACE].append(closed_after(serve, kind))
        rows.append(Row(kind, "s", found))
    return rows


def closed_after(start: Callable[..., Server], kind: str) -> float:
    """Seconds until six connections are closed: three on which a request was answered, and three
    that never sent a byte."""
    settings: dict[str, Any] = {
        "shutdown_delay": 0.3,
        "min_delay": 0,
        "extend_delay": "false",
        "termination_period": 60,
    }
    args = ("--graceful-timeout", "30", "--keep-alive", "30")
    with start("tiny:app", kind=kind, settings=settings, args=args) as server:
        server.wait_ready()
        clients = [Client(server.address, timeout=60) for _ in range(6)]
        for client in clients[:3]:
            client.get("/")
        memory = server.memory if start is serve else None
        began = time.monotonic_ns()
        server.signal(signal.SIGTERM)
        closed = max(map(closing, clients))
        server.wait(60)
        if memory is not None:
            began = memory.header.drain
        return (closed - began) / cells.NS


def closing(client: Client) -> int:
    """When the server closed this connection; our side follows at once."""
    while client.sock.recv(4096):
        pass
    client.close()
    return time.monotonic_ns()
