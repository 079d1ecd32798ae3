"""What a request costs the worker: CPU time, and instructions in user space."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import socket
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from serving import KINDS, SERVERS, cpu_ns, in_turns, serve

from support.figures import GRACE, Row
from support.servers import Server

ONE_WORKER = ("-w", "1", "--keep-alive", "600")
LOGGED = ("--access-logfile", "/dev/null")
EVERYTHING: dict[str, object] = {"dockerflow": "true", "ignore_paths": "/metrics,/debug"}
WHOLE = "three checks, Dockerflow's paths, ignored paths"
REQUEST = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"


@dataclass(frozen=True)
class Case:
    """An application and how it is served.

    :ivar what: the first column of the table.
    :ivar app: the application.
    :ivar args: arguments for gunicorn.
    :ivar settings: settings of the plugin.
    :ivar is_kept: whether all requests come on one connection; sync closes it after each.
    """

    what: str
    app: str
    args: tuple[str, ...]
    settings: dict[str, object] = field(default_factory=dict)
    is_kept: bool = True


def cases() -> Iterator[Case]:
    """Each worker class with the defaults, and gthread with all that has a part in a request."""
    for kind, (app, args) in KINDS.items():
        yield Case(kind, app, (*args, *ONE_WORKER), is_kept=kind != "sync")
    args = (*KINDS["gthread"][1], *ONE_WORKER)
    yield Case("gthread, an access log", "tiny:app", (*args, *LOGGED))
    yield Case(f"gthread, {WHOLE}", "checked:app", args, EVERYTHING)
    yield Case(f"gthread, {WHOLE}, an access log", "checked:app", (*args, *LOGGED), EVERYTHING)


def cpu(boots: int = 40, rounds: int = 6, requests: int = 400) -> list[Row]:
    """CPU time of the only worker for each request."""
    return [compare(case, boots, rounds, requests) for case in cases()]


def compare(case: Case, boots: int, rounds: int, requests: int) -> Row:
    """The same requests to the same application, with the plugin and without, in turns, to servers
    that are started anew again and again: one boot of the very same server differs from the next by
    more than what is looked for, by where its memory happens to be. The servers have a core of
    their own, the client another: threads that wake each other across cores cost up to half as much
    again, and now more, now less."""
    first, *others = os.sched_getaffinity(0)
    found: dict[str, list[float | None]] = {who: [] for who in SERVERS}
    for boot in range(boots):
        os.sched_setaffinity(0, {first})  # Inherited by the servers.
        with contextlib.ExitStack() as stack:
            pair = {
                who: stack.enter_context(start(case.app, args=case.args, settings=case.settings))
                for who, start in SERVERS.items()
            }
            os.sched_setaffinity(0, others or {first})
            used: dict[str, list[float]] = {who: [] for who in pair}
            for number in range(rounds + 1):
                for who in in_turns(boot + number):
                    pair[who].wait_ready()
                    cost = cpu_of(pair[who], requests, REQUEST, is_kept=case.is_kept)
                    if number:  # The first round warms up.
                        used[who].append(cost)
            for who, costs in used.items():
                found[who].append(statistics.median(costs))
    os.sched_setaffinity(0, {first, *others})
    return Row(case.what, "us", found)


def cpu_of(server: Server, count: int, request: bytes, is_kept: bool = True) -> float:
    """CPU of the only worker for each of so many requests, in microseconds."""
    pids = server.wait_workers(1)
    began = cpu_ns(pids)
    if is_kept:
        with socket.create_connection(server.address) as sock:
            for _ in range(count):
                sock.sendall(request)
                answer(sock)
            return (cpu_ns(pids) - began) / count / 1000
    for _ in range(count):
        with socket.create_connection(server.address) as sock:
            sock.sendall(request)
            while sock.recv(4096):
                pass
    return (cpu_ns(pids) - began) / count / 1000


def answer(sock: socket.socket) -> bytes:
    """The body of a response, which is sent with its head or after it."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += got(sock)
    head, _, body = received.partition(b"\r\n\r\n")
    (length,) = re.findall(rb"(?i)\r\ncontent-length: *(\d+)", head)
    while len(body) < int(length):
        body += got(sock)
    return body


def got(sock: socket.socket) -> bytes:
    """What came next; an end in the middle of a response would be waited for without end."""
    received = sock.recv(4096)
    if not received:
        raise ConnectionResetError("the server closed the connection in the middle of a response")
    return received


# -- instructions ----


def instructions(
    few: int = 100, many: int = 300, measured: Iterable[Case] | None = None
) -> list[Row]:
    """What no other work on the machine changes: how many instructions the worker executes in user
    space for each request more, counted by valgrind, under which a request takes 20 ms."""
    if shutil.which("valgrind") is None:
        raise click.UsageError(
            "instructions: there is no valgrind to count them with: install it, or measure `cpu`"
        )
    rows = []
    for case in measured or cases():
        app = "bare_asgi:app" if case.app == "smallest:app" else case.app
        found: dict[str, list[float | None]] = {}
        for who in SERVERS:
            counts = [instructions_of(who, app, case, requests) for requests in (few, many)]
            found[who] = [(counts[1] - counts[0]) / (many - few)]
        rows.append(Row(case.what, "", found))
    return rows


def instructions_of(who: str, app: str, case: Case, requests: int) -> int:
    """All that the only worker has executed from its fork to its end, with so many requests in
    between."""
    with tempfile.TemporaryDirectory() as folder:
        valgrind = ("valgrind", "--quiet", "--tool=callgrind", "--trace-children=yes")
        server = SERVERS[who](
            app,
            args=(*case.args, "--timeout", "600"),
            settings=case.settings,
            executable_prefix=(*valgrind, f"--callgrind-out-file={folder}/%p"),
        )
        server.env["PYTHONHASHSEED"] = "0"
        with contextlib.ExitStack() as stack:
            stack.callback(server.stop)
            server.start(120)  # Under valgrind a boot takes half a minute.
            server.wait_ready(120)
            if case.is_kept:
                with socket.create_connection(server.address) as sock:
                    pid = int(ask(sock, b"/pid"))
                    for _ in range(requests):
                        ask(sock, b"/")
            else:
                with socket.create_connection(server.address) as sock:
                    pid = int(ask(sock, b"/pid"))
                for _ in range(requests):
                    with socket.create_connection(server.address) as sock:
                        ask(sock, b"/")
            with socket.create_connection(server.address) as sock:
                sock.sendall(b"GET /exit HTTP/1.1\r\nHost: test\r\n\r\n")
                while sock.recv(4096):  # The worker ends at once; valgrind writes its file first.
                    pass
            (total,) = re.findall(r"^totals: (\d+)$", (Path(folder) / str(pid)).read_text(), re.M)
            return int(total)


def ask(sock: socket.socket, path: bytes) -> bytes:
    """One request; the body of its response."""
    sock.sendall(b"GET %s HTTP/1.1\r\nHost: test\r\n\r\n" % path)
    return answer(sock)


# -- probes ----


def probe(calls: int = 5_000, runs: int = 9) -> list[Row]:
    """CPU of a readiness answer by the overlay: of its call alone, in this process, and of a whole
    request."""
    return [*overlay_calls(calls, runs), whole_request(calls // 10, 10 * runs)]


def overlay_calls(calls: int, runs: int) -> Iterator[Row]:
    """The overlay's call, with two checks whose results are kept."""
    import checked
    from werkzeug.test import EnvironBuilder

    from gunicorn_grace.shared import memory as shm
    from gunicorn_grace.shared.phase import Phase
    from gunicorn_grace.shared.settings import Settings
    from gunicorn_grace.worker.answering import WorkerAnswers
    from gunicorn_grace.worker.overlay import Overlay
    from gunicorn_grace.worker.process import WorkerProcess

    def no_such_route(environ: Any, start_response: Any) -> list[bytes]:
        start_response("404 Not Found", [("Content-Type", "text/plain"), ("Content-Length", "0")])
        return [b""]

    memory = shm.Memory.create(slots=1)
    memory.header.phase = Phase.SERVING
    memory.claim(0, age=1)
    ours = WorkerProcess(memory, 0, Settings(), logging.getLogger())
    for name, app, path, headers in (
        ("the application has no such route", no_such_route, "/readyz", {}),
        ("the application has its own, and is asked first", checked.app, "/readyz", {}),
        ("`?verbose`", no_such_route, "/readyz?verbose", {}),
        ("JSON", no_such_route, "/readyz", {"Accept": "application/json"}),
    ):
        overlay = Overlay(app, WorkerAnswers(ours))
        environ = EnvironBuilder(path, headers=headers).get_environ()
        found: list[float | None] = []
        for number in range(runs + 1):
            began = time.process_time_ns()
            for _ in range(calls):
                b"".join(overlay(dict(environ), lambda status, headers: None))
            if number:  # The first round warms up.
                found.append((time.process_time_ns() - began) / calls / 1000)
        yield Row(f"the overlay's call: {name}", "us", {GRACE: found})
    memory.close()


def whole_request(calls: int, runs: int) -> Row:
    """What a readiness request costs the worker, beside an ordinary one."""
    args = ("-k", "gthread", "-w", "1", "--threads", "2", "--keep-alive", "60")
    with serve("checked:app", args=args, settings={"readiness_path": "/ready"}) as server:
        server.wait_ready()
        more: list[float | None] = []
        for number in range(runs + 2):
            used = [
                cpu_of(server, calls, b"GET %s HTTP/1.1\r\nHost: test\r\n\r\n" % path)
                for path in (b"/", b"/ready")
            ]
            if number > 1:  # The first rounds warm up.
                more.append(used[1] - used[0])
    return Row("a whole request in gthread, minus one for `/`", "us", {GRACE: more})
