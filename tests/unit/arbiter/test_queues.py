"""The accept queues at the end: what is lost in them."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gunicorn_grace.arbiter.queues import AcceptQueues
from gunicorn_grace.shared import listener

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(sys.platform != "linux", reason="Linux counts them"),
]


@pytest.fixture
def arbiter() -> Any:
    """What a queue knows of gunicorn's arbiter."""
    return SimpleNamespace(
        LISTENERS=[], reexec_pid=0, master_pid=0, systemd=False, cfg=SimpleNamespace(address=[])
    )


@pytest.fixture(params=[socket.AF_INET, socket.AF_INET6, socket.AF_UNIX], ids=lambda f: f.name)
def listening(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(request.param, socket.SOCK_STREAM) as sock:
        sock.bind(
            {
                socket.AF_INET: ("127.0.0.1", 0),
                socket.AF_INET6: ("::1", 0),
                socket.AF_UNIX: str(tmp_path / "s"),
            }[request.param]
        )
        sock.listen()
        yield sock


def connected(listening: socket.socket, sent: bytes) -> socket.socket:
    client = socket.socket(listening.family, socket.SOCK_STREAM)
    client.connect(listening.getsockname())
    client.sendall(sent)
    return client


def test_what_no_worker_took_is_counted_when_the_workers_are_gone(
    arbiter: Any, listening: socket.socket
) -> None:
    """The arbiter keeps the socket when its listener is closed. A worker may still take from it
    until it is gone; what is left then is lost, but for a peer that has asked for nothing."""
    queues = AcceptQueues(arbiter)
    clients = [connected(listening, b"GET / HTTP/1.1\r\n\r\n") for _ in range(4)]
    clients.append(connected(listening, b""))
    clients.append(connected(listening, b""))
    clients[-1].close()
    queues.keep([listening])
    taken, _ = listening.accept()
    listening.close()
    assert queues.length() == (1 if listening.family == socket.AF_UNIX else 5)
    queues.end()
    assert queues.lost == queues.length() == 3
    queues.end()
    assert queues.lost == 3
    taken.close()
    for client in clients:
        client.close()


def test_what_a_seal_holds_up_counts_too(arbiter: Any) -> None:
    """Behind the second way to seal, a connection looks as if its peer had sent nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        queues = AcceptQueues(arbiter)
        client = connected(listening, b"")
        listener.seal_by_hop_limit(listening)
        queues.keep([listening])
    queues.end()
    assert queues.lost == 1
    client.close()


@pytest.mark.parametrize(
    "others",
    [
        {"reexec_pid": 7},
        {"master_pid": 7},
        {"systemd": True},
        {"cfg": SimpleNamespace(address=[3])},
    ],
    ids=str,
)
def test_what_waits_for_somebody_else_is_not_lost(arbiter: Any, others: dict[str, Any]) -> None:
    """Another arbiter, or whoever gave us the socket, serves it."""
    vars(arbiter).update(others)
    queues = AcceptQueues(arbiter)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        arbiter.LISTENERS = [listening]
        client = connected(listening, b"GET / HTTP/1.1\r\n\r\n")
        queues.keep([listening])
        assert queues.length() == 0
        queues.end()
        assert queues.lost == 0
        listening.accept()[0].close()
        client.close()
