"""What the service manager and StatsD are told, and when; over real sockets."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from gunicorn_grace.arbiter import notify
from gunicorn_grace.arbiter.notify import RENEW_EVERY, STRETCH, Gauges, ServiceManager
from gunicorn_grace.shared.memory import Memory
from gunicorn_grace.shared.phase import Phase


@pytest.fixture(params=["path", "abstract"])
def manager(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[socket.socket]:
    """What systemd listens on: a datagram socket with a path, or with an abstract address."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        address = (
            str(tmp_path / "notify") if request.param == "path" else f"@grace-{os.getpid()}-notify"
        )
        sock.bind(address.replace("@", "\0", 1) if request.param == "abstract" else address)
        sock.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        yield sock


def heard(sock: socket.socket) -> list[list[str]]:
    """The messages that have come, each as its assignments."""
    messages = []
    with contextlib.suppress(BlockingIOError):
        while True:
            messages.append(sock.recv(4096).decode().split("\n"))
    return messages


def asked(words: list[str]) -> list[float]:
    """How many seconds a message asks for."""
    return [
        int(word.partition("=")[2]) / 1e6
        for word in words
        if word.startswith("EXTEND_TIMEOUT_USEC=")
    ]


def test_a_shutdown_is_told_in_order(manager: socket.socket) -> None:
    """STOPPING=1 once, with the first message after SIGTERM; a status for each phase; time is asked
    for each time."""
    told = ServiceManager()
    told.look(0, Phase.SERVING, 0, stopping=False, needed=0)
    told.look(1, Phase.LAME_DUCK, 3, stopping=True, needed=28)
    told.look(2, Phase.DRAINING, 1, stopping=True, needed=27)
    told.look(3, Phase.STOPPED, 0, stopping=True, needed=2)
    assert heard(manager) == [
        ["STATUS=SERVING"],
        ["STOPPING=1", "STATUS=LAME_DUCK: not ready, 3 in flight", "EXTEND_TIMEOUT_USEC=28000000"],
        ["STATUS=DRAINING: 1 in flight", "EXTEND_TIMEOUT_USEC=27000000"],
        ["STATUS=STOPPED: 0 in flight", f"EXTEND_TIMEOUT_USEC={STRETCH * 1e6:.0f}"],
    ]


def test_a_trigger_can_be_taken_back(manager: socket.socket) -> None:
    """Before SIGTERM nothing is said that cannot be unsaid, and no time is asked for, however long
    it lasts; SIGTERM in LAME_DUCK makes it final."""
    told = ServiceManager()
    for now, phase in enumerate([Phase.SERVING, Phase.LAME_DUCK, Phase.LAME_DUCK, Phase.SERVING]):
        told.look(100 * now, phase, 1, stopping=False, needed=28)
    assert heard(manager) == [
        ["STATUS=SERVING"],
        ["STATUS=LAME_DUCK: not ready, 1 in flight"],
        ["STATUS=SERVING"],
    ]
    told.look(400, Phase.LAME_DUCK, 1, stopping=False, needed=28)
    assert heard(manager) == [["STATUS=LAME_DUCK: not ready, 1 in flight"]]
    told.look(401, Phase.LAME_DUCK, 1, stopping=True, needed=28)
    (words,) = heard(manager)
    assert words[0] == "STOPPING=1"
    assert asked(words) == [28]


@pytest.mark.parametrize("needed", [0, 2, 28, 600])
def test_the_time_is_renewed_before_it_is_over(manager: socket.socket, needed: float) -> None:
    """sd_notify(3): a new message within the time that the last one asked for. With a tick in each
    quarter second none is ever late, even if one in three goes astray; and little is said."""
    told, until, count = ServiceManager(), 0.0, 0
    for tick in range(4 * 60):
        now = tick / 4
        told.look(now, Phase.LAME_DUCK, 0, stopping=True, needed=needed)
        for words in heard(manager):
            (seconds,) = asked(words)
            assert seconds >= max(needed, STRETCH)
            count += 1
            until = now + seconds
        assert now < until
    assert count <= 60 / RENEW_EVERY + 1
    assert 3 * RENEW_EVERY < STRETCH


def test_what_could_not_be_said_is_said_at_the_next_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody listens, or the queue is full: an error at once, for the caller to log, and nothing is
    forgotten."""
    address = tmp_path / "notify"
    monkeypatch.setenv("NOTIFY_SOCKET", str(address))
    told = ServiceManager()
    with pytest.raises(FileNotFoundError):
        told.look(0, Phase.LAME_DUCK, 0, stopping=True, needed=28)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(address))
        sock.setblocking(False)
        told.look(0.1, Phase.LAME_DUCK, 0, stopping=True, needed=28)
        assert heard(sock)[0][0] == "STOPPING=1"
        fill(str(address))
        with pytest.raises(BlockingIOError):
            told.look(0.2, Phase.DRAINING, 0, stopping=True, needed=28)
        heard(sock)
        told.look(0.3, Phase.DRAINING, 0, stopping=True, needed=28)
        assert heard(sock)[0][0] == "STATUS=DRAINING: 0 in flight"


def fill(address: str) -> None:
    """Send to a socket until its queue is full."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.connect(address)
        with contextlib.suppress(BlockingIOError):
            while True:
                sock.send(b"x")


@pytest.mark.parametrize("address", [None, ""])
def test_without_a_service_manager_nothing_is_said(
    address: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not started by systemd, or by a unit whose type is not notify."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if address is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    monkeypatch.setattr(socket, "socket", None)  # It would not be callable.
    ServiceManager().look(0, Phase.LAME_DUCK, 0, stopping=True, needed=28)


# -- StatsD


class Log(SimpleNamespace):
    """The StatsD half of gunicorn's logger."""

    def gauge(self, name: str, value: int) -> None:
        self.told.append((name.removeprefix(notify.metrics.STATSD_PREFIX), value))


@pytest.fixture
def serving(memory: Memory) -> Memory:
    memory.header.phase = Phase.SERVING
    return memory


def test_gauges_come_seldom_while_serving_and_each_second_in_a_shutdown(serving: Memory) -> None:
    """And at once when the phase changes, before the arbiter has taken up what changed it."""
    log, gauges, came = Log(told=[]), Gauges(), []
    for tick in range(4 * 40):
        if tick == 4 * 20 + 1:
            serving.trigger(3)
        before = len(log.told)
        gauges.look(log, tick / 4, serving)
        if len(log.told) > before:
            assert len(log.told) - before == len(notify.metrics.GAUGES)
            came.append(tick / 4)
    assert came == [0, 10, 20, *(20.25 + second for second in range(20))]
    assert ("phase", 1) in log.told
    assert log.told.count(("phase", 2)) == 20


def test_a_logger_without_statsd_is_left_alone(serving: Memory) -> None:
    """gunicorn's plain logger, or a user's own: it has no gauges, and gets no line either."""
    log = object()
    gauges = Gauges()
    gauges.look(log, 0, serving)
    gauges.send(log, serving)


def test_an_agent_that_does_not_read_is_not_waited_for(serving: Memory, tmp_path: Path) -> None:
    """Over a UNIX socket a full queue makes a blocking sender wait; then there are no gauges."""
    address = str(tmp_path / "statsd")
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as agent,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock,
    ):
        agent.bind(address)
        sock.connect(address)
        log = Log(told=[], sock=sock)
        Gauges().send(log, serving)
        assert log.told
        fill(address)
        log.told.clear()
        Gauges().send(log, serving)
        assert log.told == []
