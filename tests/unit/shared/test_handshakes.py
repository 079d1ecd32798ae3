"""Clients that are on the way to a listener."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator

import pytest

from gunicorn_grace.shared import handshakes
from gunicorn_grace.shared.cells import NS
from gunicorn_grace.shared.handshakes import ROUND_TRIP, Handshakes

SECOND = NS

A_CLIENT = b"\x12\x34\x56\x78" + socket.inet_aton("127.0.0.1").ljust(32, b"\0")
"""A handshake as the kernel identifies it: two ports and two addresses."""


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A listener whose accept queue has room for one connection."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as sock:
        yield sock


@pytest.fixture
def full(listener: socket.socket) -> Iterator[socket.socket]:
    """The same with a full accept queue."""
    with contextlib.closing(socket.create_connection(listener.getsockname())):
        yield listener


def test_a_listener_without_clients_has_nobody_on_the_way(listener: socket.socket) -> None:
    """The kernel is asked, and lists nobody; neither does it for a UNIX socket, which has no
    handshakes."""
    with socket.socket(socket.AF_UNIX) as unix:
        assert not Handshakes().are_under_way([listener, unix], SECOND)


def test_after_a_full_queue_clients_are_waited_for_twice_as_long_as_they_have_tried(
    full: socket.socket,
) -> None:
    """A client that has tried for 3 s tries again within 6 s, and a round trip."""
    clients = Handshakes()
    for now in (10, 11, 12, 13):
        clients.look_whether_full([full], now * SECOND)
    full.accept()[0].close()
    end = round((19 + ROUND_TRIP) * SECOND)
    assert clients.are_under_way([full], end - 1)
    assert not clients.are_under_way([full], end)


def turn_one_away(listener: socket.socket) -> None:
    """Have the kernel drop a client's SYN, because the accept queue is full."""
    with socket.socket() as client:
        client.setblocking(False)
        assert client.connect_ex(listener.getsockname()) == errno.EINPROGRESS


def test_clients_that_fill_a_queue_between_two_looks_are_noticed(full: socket.socket) -> None:
    """Those who come again 3 s later find the queue full for a moment, and are waited for again."""
    clients = Handshakes()
    for now in (10, 11, 12, 13):
        clients.look_whether_full([full], now * SECOND)
    full.accept()[0].close()
    assert clients.are_under_way([full], 16 * SECOND)
    with contextlib.closing(socket.create_connection(full.getsockname())):
        turn_one_away(full)
        full.accept()[0].close()
    assert clients.are_under_way([full], 17 * SECOND)
    assert clients.are_under_way([full], 32 * SECOND)
    assert not clients.are_under_way([full], 33 * SECOND)


def test_the_full_queue_of_another_program_is_not_counted(full: socket.socket) -> None:
    """The container's other listeners may turn clients away for as long as they like."""
    clients = Handshakes()
    clients.look_whether_full([full], 10 * SECOND)
    full.accept()[0].close()
    with contextlib.ExitStack() as stack:
        other = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        stack.enter_context(socket.create_connection(other.getsockname()))
        for now in (10.5, 11, 11.4):
            turn_one_away(other)
            assert clients.are_under_way([full], round(now * SECOND))
        turn_one_away(other)
        assert not clients.are_under_way([full], 12 * SECOND)


def test_one_full_queue_is_not_counted_with_the_one_before(full: socket.socket) -> None:
    """After a time without one, the next one begins anew."""
    clients = Handshakes()
    for now in (10, 11, 12, 13, 60, 61):
        clients.look_whether_full([full], now * SECOND)
    full.accept()[0].close()
    assert clients.are_under_way([full], 62 * SECOND)
    assert not clients.are_under_way([full], 65 * SECOND)


def test_a_kernel_that_does_not_list_handshakes_is_asked_once(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is waited for then, as in a sandbox without netlink."""
    asked = []

    def refuse(*query: object) -> None:
        asked.append(query)
        raise PermissionError

    monkeypatch.setattr(handshakes, "_dump", refuse)
    clients = Handshakes()
    assert not clients.are_under_way([listener], SECOND)
    assert not clients.are_under_way([listener], 2 * SECOND)
    assert len(asked) == 1


def test_a_handshake_is_waited_for_until_the_kernel_has_asked_again(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client answers within a round trip; one that does not is gone."""
    count = 0
    monkeypatch.setattr(handshakes, "_dump", lambda *query: iter([(A_CLIENT, count)]))
    clients = Handshakes()
    assert clients.are_under_way([listener], 10 * SECOND)
    assert clients.are_under_way([listener], 11 * SECOND), "the kernel has not asked again"
    count = 1
    assert clients.are_under_way([listener], 12 * SECOND)
    assert not clients.are_under_way([listener], round((12 + ROUND_TRIP) * SECOND))


@pytest.mark.parametrize(("count", "seconds"), [(0, 1), (1, 2), (2, 4), (3, 0)])
def test_how_long_a_handshake_is_waited_for(
    count: int, seconds: int, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the kernel asks again, and a round trip: 1, 2 and 4 s after the last time. A client
    that has not answered three times is not expected to answer the fourth time."""
    monkeypatch.setattr(handshakes, "_dump", lambda *query: iter([(A_CLIENT, count)]))
    clients = Handshakes()
    assert clients.are_under_way([listener], SECOND)
    end = round((1 + seconds + ROUND_TRIP) * SECOND)
    assert clients.are_under_way([listener], end - 1)
    assert not clients.are_under_way([listener], end)


def test_a_handshake_that_begins_after_the_seal_is_somebody_elses(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ``reuse_port`` another process may go on listening at the same port."""
    found: list[tuple[bytes, int]] = []
    monkeypatch.setattr(handshakes, "_dump", lambda *query: iter(found))
    clients = Handshakes()
    assert not clients.are_under_way([listener], SECOND)
    found.append((A_CLIENT, 0))
    assert not clients.are_under_way([listener], 2 * SECOND)


def test_a_kernel_that_tells_nothing_is_asked_once_and_in_silence(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A sandbox may refuse the question (seccomp). Nobody is then waited for."""
    asked = []

    def refuse(listeners: list[socket.socket]) -> Iterator[None]:
        asked.append(listeners)
        raise PermissionError(errno.EPERM, "not permitted")
        yield

    monkeypatch.setattr(handshakes, "_under_way", refuse)
    clients = Handshakes()
    assert not clients.are_under_way([listener], SECOND)
    assert not clients.are_under_way([listener], 2 * SECOND)
    assert len(asked) == 1
    assert capfd.readouterr() == ("", "")
