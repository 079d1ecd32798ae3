"""``reuse_port``: from gunicorn 24.1 on each worker has listeners of its own, which the arbiter
cannot reach."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable

import gunicorn
import pytest

from gunicorn_grace.shared.phase import Phase
from support.servers import Client, Connect, Server, all_answered

OWN = int(gunicorn.__version__.split(".")[0]) >= 24
"""Whether the workers bind."""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def accepts(server: Server) -> bool:
    try:
        Client(server.address, timeout=0.5).close()
    except TimeoutError:
        return False
    return True


@pytest.fixture
def server(kind: str, serve: Callable[..., Server]) -> Server:
    """One worker; port 0 would be another port for each of them."""
    return serve(
        kind=kind,
        bind=f"127.0.0.1:{free_port()}",
        args=("--reuse-port", "-w", "1", "--threads", "1"),
        settings={"shutdown_delay": 0.5, "min_delay": 0, "extend_delay": "false"},
    )


@pytest.mark.long(but="gthread")
def test_each_worker_seals_and_empties_its_own_listener(server: Server, connect: Connect) -> None:
    """What waits in the accept queue when the drain begins is served to its end, and no new
    connection gets in."""
    busy = connect(server)
    busy.send("/slow?s=2")
    server.wait_line("slow request begins")
    waiting = [connect(server) for _ in range(6)]
    for client in waiting:
        client.send("/", headers=(("Connection", "close"),))
    server.signal(signal.SIGTERM)
    server.wait_phase(Phase.DRAINING)
    server.wait_line("sealed by each worker" if OWN else "sealed")
    server.wait_for(
        lambda: not accepts(server), "the seal, which the worker puts on when it is poked"
    )
    all_answered(busy, *waiting)
    assert server.wait(20) == 0, server.output
    assert ", 0 cut off" in server.summary()


@pytest.mark.long
def test_idle_connections_do_not_hold_the_exit(server: Server, connect: Connect) -> None:
    """A worker that leaves closes its own listeners first; idle connections are looked after all
    the same."""
    clients = [connect(server) for _ in range(2)]
    if "gevent" in server.args:
        clients[0].get("/")  # The others have one thread, or keep none alive.
    server.signal(signal.SIGTERM)
    assert server.wait(20) == 0, server.output
    assert "deadline_reached" not in server.output
    assert "closing idle connections failed" not in server.output
