"""What a shutdown loses is counted, by how far it had come: each client that gets no response is in
the summary and in the report."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gunicorn
import pytest

from gunicorn_grace.shared.cells import Lost
from gunicorn_grace.shared.phase import Phase
from support.servers import (
    HOLD,
    QUICK,
    WORKERS,
    Connect,
    Serve,
    Server,
    booted_in,
    hold_a_request,
)

REQUEST = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"
SLOW = REQUEST.replace(b"/ ", b"/slow?s=60 ", 1)


@pytest.fixture
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the report goes."""
    path = tmp_path_factory.mktemp("report") / "report.json"
    path.touch()
    return path


Send = Callable[[Server, bytes], socket.socket]


@pytest.fixture
def send() -> Iterator[Send]:
    """Send bytes on connections of their own; all are closed with the test."""
    with contextlib.ExitStack() as stack:

        def start(server: Server, data: bytes) -> socket.socket:
            family = socket.AF_UNIX if isinstance(server.address, str) else socket.AF_INET
            sock = stack.enter_context(socket.socket(family))
            sock.settimeout(20)
            sock.connect(server.address)
            sock.sendall(data)
            return sock

        yield start


def answers(sock: socket.socket) -> int:
    """How many responses came, up to the end of the connection."""
    came = b""
    with contextlib.suppress(ConnectionResetError):
        while data := sock.recv(65536):
            came += data
    return came.count(b"HTTP/1.1 200")


def lost(server: Server, report: Path) -> dict[str, int]:
    """What the report says, by kind; the sum is that of the summary."""
    told: dict[str, Any] = json.loads(report.read_text())
    kinds: dict[str, int] = told["cut_off_by_kind"]
    assert told["cut_off"] == sum(kinds.values())
    assert f" {told['cut_off']} cut off" in server.summary()
    in_workers = told["cut_off"] - kinds["accept_queue"]
    assert sum(worker["requests"] for worker in told["cut_off_by_worker"]) == in_workers
    return kinds


@pytest.mark.parametrize("bind", ["tcp", "unix"])
@pytest.mark.parametrize(
    ("args", "where"),
    [
        (("-k", "sync", "-w", "1"), "accept_queue"),
        (("-k", "gthread", "-w", "1", "--threads", "1"), "not_begun"),
    ],
    ids=["sync", "gthread"],
)
def test_requests_that_nobody_has_begun_are_counted(
    bind: str,
    args: tuple[str, ...],
    where: str,
    serve: Serve,
    send: Send,
    report: Path,
    tmp_path: Path,
) -> None:
    """One request outlasts the budget, ten wait behind it in the worker or in the kernel, and two
    connections ask for nothing: eleven are lost."""
    options = {"bind": f"unix:{tmp_path}/s"} if bind == "unix" else {}
    server = serve(args=args, settings={**QUICK, "report": report}, **options)
    slow = send(server, SLOW)
    server.wait_line("slow request begins")
    waiting = [send(server, REQUEST) for _ in range(10)]
    for _ in range(2):
        send(server, b"")
    server.terminate()
    server.assert_gone()
    assert sum(map(answers, (slow, *waiting))) == 0
    assert lost(server, report) == Lost(in_flight=1, **{where: 10})._asdict()


@pytest.mark.parametrize("kind", ["gthread", "gevent"])
def test_requests_behind_another_and_read_in_part_are_counted(
    kind: str, serve: Serve, send: Send, report: Path
) -> None:
    """On one connection two wait behind the one in flight, of another request half the head has
    come. An idle connection has nothing to lose."""
    server = serve(
        args=(*WORKERS[kind], "-w", "1", "--keep-alive", "60"),
        settings={**QUICK, "report": report},
    )
    idle = send(server, REQUEST)
    assert idle.recv(1) == b"H"
    begun = send(server, SLOW + REQUEST * 2)
    server.wait_line("slow request begins")
    half = send(server, REQUEST[:9])
    server.terminate()
    server.assert_gone()
    assert answers(begun) == answers(half) == 0
    assert lost(server, report) == Lost(in_flight=1, pipelined=2, half_read=1)._asdict()


def test_what_was_in_a_worker_that_is_killed_is_counted(
    serve: Serve, send: Send, report: Path
) -> None:
    """SIGKILL in the delay: the worker's last words are in its record."""
    server = serve(
        args=("-k", "gthread", "-w", "1", "--threads", "1"),
        settings={**QUICK, "shutdown_delay": 60, "report": report},
    )
    slow = send(server, SLOW)
    victim = server.wait_pid("slow request begins in ")
    waiting = [send(server, REQUEST) for _ in range(12)]
    server.terminate()
    (record,) = server.memory.records()
    server.wait_for(lambda: record.waiting == 12, "12 requests that wait")
    os.kill(victim, signal.SIGKILL)
    assert sum(map(answers, (slow, *waiting))) == 0
    server.wait_for(lambda: booted_in(server.memory) not in ([victim], []), "a new worker")
    assert answers(send(server, REQUEST)) == 1
    server.signal(signal.SIGINT)
    server.assert_gone()
    assert lost(server, report) == Lost(in_flight=1, not_begun=12)._asdict()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT], ids=["SIGINT", "SIGQUIT"])
@pytest.mark.parametrize(
    ("args", "where"),
    [
        (("-k", "sync", "-w", "1"), "accept_queue"),
        (("-k", "gthread", "-w", "1", "--threads", "1"), "not_begun"),
    ],
    ids=["sync", "gthread"],
)
@pytest.mark.long(but="sync-SIGINT")
def test_what_an_interrupt_loses_is_counted(
    args: tuple[str, ...],
    where: str,
    number: signal.Signals,
    serve: Serve,
    send: Send,
    report: Path,
) -> None:
    """SIGINT in the delay ends the instance at once: what waits is lost as well."""
    server = serve(args=args, settings={**HOLD, "report": report})
    slow = send(server, SLOW)
    server.wait_line("slow request begins")
    waiting = [send(server, REQUEST) for _ in range(5)]
    server.lead_to(Phase.LAME_DUCK)
    server.signal(number)
    server.assert_gone()
    assert sum(map(answers, (slow, *waiting))) == 0
    assert lost(server, report) == Lost(in_flight=1, **{where: 5})._asdict()


@pytest.mark.skipif(int(gunicorn.__version__.split(".")[0]) < 24, reason="the arbiter binds")
def test_what_waits_in_a_workers_own_queue_is_counted(
    serve: Serve, send: Send, report: Path
) -> None:
    """With ``reuse_port`` the arbiter has no descriptor of it: the worker tells its length."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    server = serve(
        bind=f"127.0.0.1:{port}",
        args=("-k", "sync", "-w", "1", "--reuse-port"),
        settings={**QUICK, "report": report},
    )
    slow = send(server, SLOW)
    server.wait_line("slow request begins")
    waiting = [send(server, REQUEST) for _ in range(4)]
    server.terminate()
    server.assert_gone()
    assert sum(map(answers, (slow, *waiting))) == 0
    kinds = json.loads(report.read_text())["cut_off_by_kind"]
    assert kinds == Lost(in_flight=1, accept_queue=4)._asdict()


def test_what_the_reloader_interrupts_is_finished_and_not_counted(
    kind: str, serve: Serve, connect: Connect, tmp_path: Path
) -> None:
    """``--reload`` replaces a worker in the delay. It finishes its request first, so nothing is cut
    off, and the log does not say so."""
    watched = tmp_path / "watched"
    watched.touch()
    server = serve(
        args=(*WORKERS[kind], "-w", "1", "--reload", "--reload-extra-file", str(watched)),
        settings=HOLD,
    )
    client = connect(server)
    release = hold_a_request(server, client)
    server.lead_to(Phase.LAME_DUCK)
    later = time.time() + 60
    os.utime(watched, (later, later))
    server.wait_line("Worker reloading")
    release()
    assert client.receive().status == 200
    client.close()
    server.signal(signal.SIGINT)
    assert server.wait(20) == 0
    assert " 0 cut off" in server.summary()
    assert "when the worker was interrupted" not in server.output


@pytest.mark.long(but="gthread")
def test_a_request_that_was_answered_last_is_not_lost(
    kind: str, serve: Serve, connect: Connect
) -> None:
    """It waited until just before its worker went: the worker's last look is at its end."""
    server = serve(
        args=(*WORKERS[kind], "-w", "1", "--threads", "1"),
        settings={**QUICK, "termination_period": 20},
    )
    held, last = connect(server), connect(server)
    release = hold_a_request(server, held)
    last.send("/")
    server.terminate()
    server.wait_phase(Phase.DRAINING)
    release()
    assert held.receive().status == last.receive().status == 200
    held.close()
    last.close()
    assert server.wait(20) == 0
    assert " 0 cut off" in server.summary()
