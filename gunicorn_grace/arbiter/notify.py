"""The messages of a running arbiter to the service manager (systemd) and to StatsD.

Without these messages ``TimeoutStopSec`` would end a delay that is still needed, and ``systemctl
status`` would show gunicorn's boot message for ever. The arbiter's loop sends them, so sending must
not block. An error in sending does not affect the shutdown. Runs in the arbiter's main thread.
"""

from __future__ import annotations

import os
import socket
from select import POLLOUT
from typing import Any

from ..shared import metrics
from ..shared.listener import poll
from ..shared.memory import Memory
from ..shared.phase import Phase, is_terminating

STRETCH = 10.0
"""The least number of seconds that a request for more time asks for, and the number if no deadline
is known."""

RENEW_EVERY = 3.0
"""Seconds between two requests for more time. The next request has to come within the time that was
asked for (sd_notify(3), EXTEND_TIMEOUT_USEC). Three requests fit into each stretch, so one may be
late."""

GAUGE_EVERY = 1.0
GAUGE_EVERY_SERVING = 10.0
"""Seconds between two values of the StatsD gauges: from T0 on, and before T0. StatsD itself passes
values on every 10 s."""


class ServiceManager:
    """Sends messages to systemd or another service manager at ``NOTIFY_SOCKET`` (sd_notify(3)).

    gunicorn itself sends READY=1. This class sends the status of the instance from then on.
    """

    def __init__(self) -> None:
        self._told_phase: Phase | None = None
        self._is_stopping = False
        self._renew_at = 0.0

    def look(
        self, now: float, phase: Phase, in_flight: int | None, *, stopping: bool, needed: float
    ) -> None:
        """Send the changes since the last call, and a request for more time if it is due.

        STOPPING=1 cannot be taken back, so it is sent after SIGTERM and not at a trigger. systemd
        then starts ``TimeoutStopSec`` even if another process sent the signal. A request for more
        time can only extend that time (``service_extend_event_source_timeout`` in systemd's
        service.c).

        :param now: seconds on the monotonic clock.
        :param phase: the phase of the instance.
        :param in_flight: how many requests are in flight; ``None`` if they cannot be counted.
        :param stopping: whether the shutdown can no longer be taken back.
        :param needed: how many seconds from now the instance needs at most.
        :raises OSError: no process listens there, or it does not read. The next call tries again.
        """
        if not os.environ.get("NOTIFY_SOCKET"):
            return
        changed = phase is not self._told_phase
        extend = stopping and (changed or now >= self._renew_at)
        if not changed and not extend:
            return
        words = [f"STATUS={status(phase, in_flight)}"]
        if extend:
            words.append(f"EXTEND_TIMEOUT_USEC={round(max(STRETCH, needed) * 1_000_000)}")
        if stopping and not self._is_stopping:
            words.insert(0, "STOPPING=1")
        _send("\n".join(words))
        self._told_phase, self._is_stopping = phase, stopping
        if extend:
            self._renew_at = now + RENEW_EVERY


def _send(message: str) -> None:
    address = os.environ["NOTIFY_SOCKET"]
    if address.startswith("@"):  # An abstract address: unix(7).
        address = "\0" + address[1:]
    with socket.socket(
        socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    ) as sock:
        sock.sendto(message.encode(), address)


def status(phase: Phase, in_flight: int | None) -> str:
    """Return the text with which the service manager shows a phase."""
    if not is_terminating(phase):
        return str(phase)
    count = "requests not counted" if in_flight is None else f"{in_flight} in flight"
    return f"{phase}: {'not ready, ' if phase is Phase.LAME_DUCK else ''}{count}"


class Gauges:
    """The gauges for StatsD. They go through gunicorn's own logger, because it has the StatsD
    client."""

    def __init__(self) -> None:
        self._told_phase: Phase | None = None
        self._next = 0.0

    def look(self, log: Any, now: float, memory: Memory) -> None:
        """Send the gauges, if it is time or the phase has changed.

        :param log: gunicorn's logger.
        :param memory: the shared memory.
        :param now: seconds on the monotonic clock.
        """
        phase = memory.phase()
        if phase is self._told_phase and now < self._next:
            return
        self._told_phase = phase
        self._next = now + (GAUGE_EVERY if is_terminating(phase) else GAUGE_EVERY_SERVING)
        self.send(log, memory)

    def send(self, log: Any, memory: Memory) -> None:
        """Send the gauges now, if gunicorn has a StatsD client."""
        gauge = getattr(log, "gauge", None)
        if gauge is None:
            return
        seen = metrics.read(memory)
        for each in metrics.GAUGES:
            # log.info(extra=...) would not do, because gunicorn 22.0 to 25.3 leave out every 0
            # there.
            value = each.value(seen)
            if value is not None and _has_room(log):
                gauge(metrics.STATSD_PREFIX + each.name, value)


def _has_room(log: Any) -> bool:
    """Whether a datagram can be sent without waiting. gunicorn's socket blocks, so on a UNIX socket
    the arbiter would wait for an agent that hangs (unix(7)), and could miss the deadline."""
    sock = getattr(log, "sock", None)
    if sock is None:
        return True
    poller = poll()
    poller.register(sock, POLLOUT)
    return bool(poller.poll(0))
