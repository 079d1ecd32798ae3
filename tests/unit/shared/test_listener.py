"""Sealing, on real sockets: nothing new comes in, and nothing that is in is lost."""

from __future__ import annotations

import logging
import select
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from gunicorn import sock as gunicorn_sock
from gunicorn.config import Config

from gunicorn_grace.shared import listener

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the filter is Linux's")

REFUSAL = 0.3
"""Seconds after which a connect that gets no answer has failed: the first SYN is sent again after
one second."""

PATIENCE = 20


@pytest.fixture(
    params=[(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")], ids=["ipv4", "ipv6"]
)
def server(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    """A listening socket at a free port."""
    family, host = request.param
    try:
        listening = socket.create_server((host, 0), family=family)
    except OSError as error:
        pytest.skip(f"no {host} here: {error}")
    with listening:
        listening.settimeout(PATIENCE)
        yield listening


@pytest.fixture
def clients() -> Iterator[list[socket.socket]]:
    """Closed at the end, whatever happened."""
    opened: list[socket.socket] = []
    yield opened
    for sock in opened:
        sock.close()


def connect(
    server: socket.socket, clients: list[socket.socket], timeout: float = PATIENCE
) -> socket.socket:
    client = socket.socket(server.family)
    clients.append(client)
    client.settimeout(timeout)
    client.connect(server.getsockname())
    client.settimeout(PATIENCE)
    return client


def accept(server: socket.socket, clients: list[socket.socket]) -> socket.socket:
    accepted, _ = server.accept()
    clients.append(accepted)
    accepted.settimeout(PATIENCE)
    return accepted


def wait_for_a_connection(server: socket.socket) -> None:
    assert select.select([server], [], [], PATIENCE)[0]


Seal = Callable[[Any], None]


def may_attach_a_filter() -> bool:
    """Newer kernels let only some do so: see ``gunicorn_grace.shared.listener``."""
    with socket.create_server(("127.0.0.1", 0)) as any_one:
        try:
            listener.seal_by_filter(any_one)
        except PermissionError:
            return False
    return True


needs_a_filter = pytest.mark.skipif(
    not may_attach_a_filter(), reason="this kernel gives no filter without CAP_NET_ADMIN"
)


@pytest.fixture(params=[pytest.param("filter", marks=needs_a_filter), "hop limit"])
def seal(request: pytest.FixtureRequest) -> Seal:
    """Either way to seal."""
    return listener.seal_by_filter if request.param == "filter" else listener.seal_by_hop_limit


def test_where_no_filter_is_to_be_had_the_hop_limit_seals(
    server: socket.socket, clients: list[socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without CAP_NET_ADMIN, on kernels that ask for it; where both are refused, the error is the
    caller's."""

    def refuse(sock: Any) -> None:
        raise PermissionError(1, "refused")

    monkeypatch.setattr(listener, "seal_by_filter", refuse)
    listener.seal(server)
    assert listener.is_sealed_by_hop_limit(server)
    with pytest.raises(TimeoutError):
        connect(server, clients, REFUSAL)
    monkeypatch.setattr(listener, "seal_by_hop_limit", refuse)
    with pytest.raises(PermissionError):
        listener.seal(server)


def test_over_ipv4_a_listener_of_ipv6_is_sealed_as_well(
    clients: list[socket.socket], seal: Seal
) -> None:
    """``bind = "[::]:8080"`` takes both."""
    if not socket.has_dualstack_ipv6():
        pytest.skip("no listener for both here")
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as both:
        port = both.getsockname()[1]
        clients.append(socket.create_connection(("127.0.0.1", port), PATIENCE))
        seal(both)
        with pytest.raises(TimeoutError):
            socket.create_connection(("127.0.0.1", port), REFUSAL)
        with pytest.raises(TimeoutError):
            socket.create_connection(("::1", port), REFUSAL)
        accepted = accept(both, clients)
        clients[0].sendall(b"ping")
        assert accepted.recv(4) == b"ping"


def test_no_new_connection_gets_in(
    server: socket.socket, clients: list[socket.socket], seal: Seal
) -> None:
    """A connect gets neither an answer nor a reset: the client tries again, or elsewhere."""
    seal(server)
    with pytest.raises(TimeoutError):
        connect(server, clients, REFUSAL)
    assert not listener.are_waiting([server])


SO_DETACH_FILTER = 27  # <asm-generic/socket.h>


def unseal(sock: socket.socket) -> None:
    """Take the seal off again, whichever it was."""
    if listener.is_sealed_by_hop_limit(sock):
        listener.admit(sock)
    else:
        sock.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)


def test_sealing_twice_is_sealing_once(
    server: socket.socket, clients: list[socket.socket], seal: Seal
) -> None:
    """And one ``unseal`` opens it again."""
    seal(server)
    seal(server)
    with pytest.raises(TimeoutError):
        connect(server, clients, REFUSAL)
    unseal(server)
    connect(server, clients)
    accept(server, clients)


def test_the_accept_queue_is_served(
    server: socket.socket, clients: list[socket.socket], seal: Seal
) -> None:
    """A connection that was established before the seal, with its request sent after it, gets its
    answer."""
    client = connect(server, clients)
    seal(server)
    client.sendall(b"ping")
    accepted = accept(server, clients)
    assert accepted.recv(4) == b"ping"
    accepted.sendall(b"pong")
    assert client.recv(4) == b"pong"


def test_a_handshake_under_way_completes(
    server: socket.socket, clients: list[socket.socket], seal: Seal
) -> None:
    """A client that has its SYN-ACK is let in. TCP_DEFER_ACCEPT holds the handshake open (SYN_RECV)
    until data comes, so the segment that completes it arrives at the sealed socket (tcp(7))."""
    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, PATIENCE)
    client = connect(server, clients)
    assert not listener.are_waiting([server])
    seal(server)
    client.sendall(b"ping")
    assert accept(server, clients).recv(4) == b"ping"


@pytest.mark.parametrize("accepted_when", ["before", "queued", "inherits"])
def test_established_connections_go_on_in_both_directions(
    server: socket.socket, clients: list[socket.socket], accepted_when: str, seal: Seal
) -> None:
    """4 MiB each way: accepted before the seal, waiting in the queue then, or made of a handshake
    that ended after it. Only the last has inherited the seal (``sk_clone``). A filter lets its
    payload through; the least hop limit does not until the connection is admitted, and then what
    was sent before arrives as well."""
    if accepted_when == "inherits":
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, PATIENCE)
    client = connect(server, clients)
    if accepted_when == "before":
        accepted = accept(server, clients)
    seal(server)
    if accepted_when != "before":
        if accepted_when == "inherits":
            client.sendall(b"x")
        accepted = accept(server, clients)
    if accepted_when == "inherits":
        assert accepted.recv(1) == b"x"
        unseal(accepted)  # Or an error: there is none.
        seal(accepted)
        if listener.is_sealed_by_hop_limit(accepted):
            client.sendall(b"y")
            listener.admit(accepted)
            assert accepted.recv(1) == b"y"
    payload = bytes(range(256)) * (1 << 14)

    for sender, receiver in ((client, accepted), (accepted, client)):
        thread = threading.Thread(target=sender.sendall, args=(payload,))
        thread.start()
        with receiver.makefile("rb") as stream:
            assert stream.read(len(payload)) == payload
        thread.join(PATIENCE)
        assert not thread.is_alive()

    client.shutdown(socket.SHUT_WR)
    assert accepted.recv(1) == b""


def test_are_waiting_sees_the_accept_queue(
    server: socket.socket, clients: list[socket.socket]
) -> None:
    """Nobody, one, and nobody again; one busy socket of several is enough, and none at all is
    nobody."""
    with socket.create_server(("127.0.0.1", 0)) as idle:
        assert not listener.are_waiting([idle, server])
        connect(server, clients)
        wait_for_a_connection(server)
        assert listener.are_waiting([idle, server])
        assert not listener.are_waiting([idle])
        accept(server, clients)
        assert not listener.are_waiting([idle, server])
    assert not listener.are_waiting([])


def test_a_seal_is_the_sockets_not_the_descriptors(
    server: socket.socket, clients: list[socket.socket], seal: Seal
) -> None:
    """Sealed through a duplicate, as the arbiter does for its workers, every holder's socket is
    sealed."""
    with server.dup() as twin:
        seal(twin)
    with pytest.raises(TimeoutError):
        connect(server, clients, REFUSAL)


def test_what_can_be_sealed_is_tcp(server: socket.socket) -> None:
    """Sockets as Python has them; a UNIX socket is not of the kind."""
    assert listener.can_seal(server)
    with socket.socket(socket.AF_UNIX) as unix:
        assert not listener.can_seal(unix)


def test_gunicorns_wrappers_are_sealed_as_sockets_are(
    clients: list[socket.socket], seal: Seal
) -> None:
    """What the arbiter has in LISTENERS."""
    cfg = Config()
    cfg.set("bind", ["127.0.0.1:0"])
    log: Any = logging.getLogger("gunicorn.error")
    wrappers: list[Any] = list(gunicorn_sock.create_sockets(cfg, log))
    try:
        assert [listener.can_seal(wrapper) for wrapper in wrappers] == [True]
        connect(wrappers[0].sock, clients)
        wait_for_a_connection(wrappers[0].sock)
        assert listener.are_waiting(wrappers)
        seal(wrappers[0])
        with pytest.raises(TimeoutError):
            connect(wrappers[0].sock, clients, REFUSAL)
    finally:
        gunicorn_sock.close_sockets(wrappers)
