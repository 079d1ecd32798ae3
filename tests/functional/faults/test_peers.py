"""What happens when others misbehave at T0: forged triggers, thousands of idle or slow clients, a
stopped arbiter.

``docs/reference/faults.md`` is the table of all faults. ``Server.assert_gone`` says what must hold after each
of them.
"""

from __future__ import annotations

import contextlib
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import h11
import pytest

from gunicorn_grace.shared import cells
from gunicorn_grace.shared.phase import Origin, Phase
from support.servers import QUICK, Client, Connect, Serve, look

SLOWER = {**QUICK, "shutdown_delay": 1}


# -- peers ----


@pytest.mark.long
def test_a_storm_of_forged_triggers_harms_nothing(kind: str, serve: Serve) -> None:
    """300 forged ?down=true a second, from before T0 to the drain: none is obeyed, and no other
    request is lost."""
    server = serve(kind=kind, settings={**SLOWER, "termination_period": 9})
    memory = server.memory
    over = threading.Event()
    forged: list[int] = []
    problems: list[str] = []
    served = 0
    host, port = server.address
    forgery = (
        f"GET /readyz?down=true HTTP/1.1\r\nHost: {host}\r\nX-Forwarded-For: 127.0.0.1\r\n"
        f"Connection: close\r\n\r\n"
    )

    def storm() -> None:
        due = time.monotonic()
        while not over.is_set():
            due += 1 / 100
            over.wait(max(0.0, min(0.05, due - time.monotonic())))
            with (
                contextlib.suppress(OSError),
                socket.create_connection((host, port), timeout=2) as sock,
            ):
                sock.sendall(forgery.encode())
                if answer := sock.recv(4096):
                    forged.append(int(answer.split()[1]))

    threads = [threading.Thread(target=storm) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        server.wait_for(lambda: len(forged) > 100, "a hundred forged triggers")
        assert server.get("/readyz").status == 200
        assert not memory.is_terminating()
        server.terminate()
        while memory.header.phase < Phase.DRAINING:
            try:
                client = Client(server.address, timeout=2)
            except OSError:
                continue  # Sealed a moment ago, or the queue was full: it was never ours.
            try:
                if client.get("/").status != 200:
                    problems.append("status")
                served += 1
            except (OSError, h11.ProtocolError) as error:
                problems.append(repr(error))
            finally:
                client.close()
        server.assert_gone()
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert problems == []
    assert served > 0
    assert len(forged) > 200
    assert set(forged) == {403}
    assert "shutdown_initiated by SIGTERM" in server.output
    assert server.output.count("trigger refused") <= 4, "once a minute in each worker"


IDLE = 1500


@pytest.fixture
def many_files() -> Iterator[None]:
    """Enough descriptors for a client, and for the server that it starts, with so many
    connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = IDLE * 2 + 500
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"at most {hard} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.long
@pytest.mark.usefixtures("many_files")
def test_idle_and_slow_connections_do_not_hold_the_exit(kind: str, serve: Serve) -> None:
    """1,500 connections that say nothing, and 20 that send a byte of a header at a time: gone
    before the deadline."""
    server = serve(
        kind=kind,
        args=("--backlog", "4096", "--worker-connections", "2000", "--keep-alive", "60"),
        settings={**SLOWER, "termination_period": 8},
    )
    over = threading.Event()
    with contextlib.ExitStack() as stack:

        def connection() -> socket.socket:
            return stack.enter_context(socket.create_connection(server.address, timeout=10))

        slow = [connection() for _ in range(20)]
        for sock in slow:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: test\r\nX-Slow: ")
        for _ in range(IDLE):
            connection()

        def trickle() -> None:
            while not over.wait(0.05):
                for sock in slow:
                    with contextlib.suppress(OSError):
                        sock.send(b"a")

        thread = threading.Thread(target=trickle)
        thread.start()
        try:
            server.terminate()
            server.assert_gone()
        finally:
            over.set()
            thread.join()
    assert "0 cut off" in server.summary()


# -- the arbiter sleeps ----


@pytest.mark.long
@pytest.mark.parametrize("kind", ["sync", "gthread"])
def test_an_arbiter_stopped_across_its_deadline_exits_when_it_goes_on(
    kind: str, serve: Serve, connect: Connect
) -> None:
    """SIGSTOP in LAME_DUCK, SIGCONT past the deadline: not ready all the while, then it exits at
    once, and counts."""
    settings = {**SLOWER, "termination_period": 4, "exit_margin": 2}
    server = serve(kind=kind, settings=settings)
    memory = server.memory
    client = connect(server)
    client.send("/slow?s=60")
    server.wait_line("slow request begins")
    server.terminate()
    server.wait_phase(Phase.LAME_DUCK)
    server.signal(signal.SIGSTOP)
    assert server.get("/readyz").status == 503
    server.wait_for(lambda: time.monotonic_ns() > memory.header.deadline, "the deadline")
    assert server.get("/").status == 200, "who still comes is served"
    server.wait_in_flight(1)
    server.period = float("inf")
    server.signal(signal.SIGCONT)
    server.assert_gone()
    server.wait_line("deadline_reached")
    assert "1 cut off" in server.summary()


@pytest.mark.long
def test_an_arbiter_stopped_before_sigterm_takes_it_up_when_it_goes_on(serve: Serve) -> None:
    """The signal waits for the process: T0 is when it runs again, and the whole delay is kept from
    there."""
    server = serve(kind="gthread", settings=QUICK)
    memory = server.memory
    server.signal(signal.SIGSTOP)
    server.terminate()
    assert server.get("/readyz").status == 200
    woken = time.monotonic_ns()
    server.signal(signal.SIGCONT)
    server.wait_phase(Phase.LAME_DUCK)
    assert memory.header.t0 >= woken
    server.assert_gone()


@pytest.mark.long
def test_the_command_gives_up_on_an_arbiter_that_does_not_run(serve: Serve) -> None:
    """With the arbiter stopped, prestop flips every worker all the same, and returns when the delay
    is over."""
    server = serve(kind="gthread", settings=SLOWER)
    server.signal(signal.SIGSTOP)
    prestop = [sys.executable, "-m", "gunicorn_grace.cli", "prestop", "--pid", str(server.pid)]
    assert subprocess.run(prestop, capture_output=True, timeout=30, check=False).returncode == 0
    assert {server.get("/readyz").status for _ in range(8)} == {503}
    assert look(server.get("/look"))["phase"] == "LAME_DUCK"
    assert server.memory.header.trigger & cells.ORIGIN_MASK == Origin.PRESTOP
    server.signal(signal.SIGCONT)
    server.terminate()
    server.assert_gone()
