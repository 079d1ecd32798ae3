"""Idle connections and silent ones do not hold the end of an instance, whichever gunicorn it is."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from gunicorn_grace.shared import cells
from gunicorn_grace.shared.agreed import LINGER
from gunicorn_grace.worker.draining import IDLE_TICKS, TICK
from support.servers import Client, Connect, Serve

SETTINGS = {
    "shutdown_delay": 0.3,
    "min_delay": 0,
    "extend_delay": "false",
    "termination_period": 60,
}


def test_idle_and_silent_connections_are_gone_soon_after_the_drain_began(
    kind: str, serve: Serve, connect: Connect
) -> None:
    """With graceful_timeout 30 the server closes them within seconds of the drain's begin, and
    exits.

    Idle kept-alive connections, and ones that never sent a byte. Plain gthread 24 to 26 holds the
    former for all of graceful_timeout. ``python tests/long/benchmarks idle`` has the figure, which
    is below 2.5 s; here a busy machine gets 4.
    """
    server = serve(
        kind=kind, settings=SETTINGS, args=("--graceful-timeout", "30", "--keep-alive", "30")
    )
    memory = server.memory
    silent = [connect(server, timeout=40) for _ in range(3)]
    # sync keeps none alive.
    idle = [connect(server, timeout=40) for _ in range(3)] if kind != "sync" else []
    for client in idle:
        assert client.get("/").headers["connection"] == "keep-alive"
    closed: list[int] = []

    def watch(client: Client) -> None:
        # Several at a time: gunicorn 26 and 27 wait up to 2 s for each client to close as well, one
        # after the other.
        if client.at_end():
            closed.append(time.monotonic_ns())
        client.close()

    threads = [threading.Thread(target=watch, args=(client,)) for client in (*silent, *idle)]
    for thread in threads:
        thread.start()
    server.signal(signal.SIGTERM)
    for thread in threads:
        thread.join(45)
    assert len(closed) == len(threads), server.output
    drain = memory.header.drain
    assert drain
    assert (max(closed) - drain) / cells.NS < 4, server.output
    assert server.wait(10) == 0, server.output


@pytest.mark.long(but="gthread")
@pytest.mark.parametrize("kind", ["gthread", "gevent"])
def test_a_request_that_is_half_sent_is_served(kind: str, serve: Serve, connect: Connect) -> None:
    """Its beginning was read before SIGTERM; the rest comes when an idle connection would have been
    closed."""
    server = serve(
        kind=kind,
        settings=SETTINGS,
        args=("-w", "1", "--graceful-timeout", "50", "--keep-alive", "75"),
    )
    halves = [connect(server) for _ in range(2)]
    assert halves[1].get("/").status == 200
    # Long enough for the kernel, which counts in ticks of some milliseconds, to tell an answer from
    # what follows it.
    assert server.get("/slow?s=0.1").status == 200
    for client in halves:
        client.sock.sendall(b"GET / HTTP/1.1\r\nHost: te")
    header = server.memory.header
    server.signal(signal.SIGTERM)
    late = round((LINGER + 2 * IDLE_TICKS * TICK) * cells.NS)
    server.wait_for(
        lambda: header.drain and time.monotonic_ns() > header.drain + late,
        "the end of idle ones",
    )
    for client in halves:
        client.sock.sendall(b"st\r\n\r\n")
    for client in halves:
        answer = client.sock.recv(65536)
        assert answer.startswith(b"HTTP/1.1 200 "), server.output
        client.close()
    assert server.wait(20) == 0, server.output
