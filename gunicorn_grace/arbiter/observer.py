"""The arbiter's observations of the instance: the input of each decision.

Workers and commands write triggers, counts and times into the shared memory. Everything here treats
them as input: it checks them, and uses them as numbers. Runs in the arbiter's main thread.
"""

from __future__ import annotations

import time
from typing import Any

from ..shared.cells import NS, ORIGIN_MASK, Record
from ..shared.memory import Memory
from ..shared.phase import PLATFORM, TRIGGERS, Origin, Phase
from .lifecycle import Observation
from .listeners import Listeners
from .progress import Progress
from .roster import Roster
from .traffic import Traffic
from .upgrade import Counterpart

BLIND_AFTER = 1.0
"""Seconds between two looks in LAME_DUCK. If a gap is longer, the arbiter cannot know that no
request came in it: the machine was frozen, or a hook took long. Normally it looks ten times a
second."""

GROUP_NS = NS // 2
"""Nanoseconds after which a SIGTERM to one process cannot have been a signal to the whole process
group. If the group had got it, the arbiter (or after SIGUSR2 the other arbiter) would have got it
by then."""


class Observer:
    """Collects the input of :func:`~gunicorn_grace.arbiter.lifecycle.decide`.

    :ivar looked_at: when the arbiter last saw that no shutdown had begun, in monotonic nanoseconds.

    :param arbiter: gunicorn's arbiter.
    :param memory: the shared memory.
    :param progress: the progress of the shutdown.
    :param roster: the workers.
    :param listeners: the listening sockets.
    :param counterpart: the other arbiter, after SIGUSR2.
    """

    def __init__(
        self,
        arbiter: Any,
        memory: Memory,
        progress: Progress,
        roster: Roster,
        listeners: Listeners,
        counterpart: Counterpart,
    ) -> None:
        self._arbiter = arbiter
        self._memory = memory
        self._progress = progress
        self._roster = roster
        self._listeners = listeners
        self._counterpart = counterpart
        self._observed_at = self._blind_until = 0
        self._traffic = Traffic()
        self.looked_at: int = time.monotonic_ns()

    def has_begun(self) -> bool:
        """Whether the shutdown has begun, even if the loop has not noticed it yet."""
        progress = self._progress
        return (
            progress.phase >= Phase.LAME_DUCK or bool(progress.sigterm) or bool(self.trigger()[1])
        )

    def trigger(self) -> tuple[Origin, int]:
        """Return the origin of the trigger in force and its time in nanoseconds; ``NONE`` and 0 if
        there is none.

        Any process may have stored anything in the cell. A trigger counts if its origin is one that
        another process may give, if it came after ``consumed``, and if it is not in the future.
        """
        value = self._memory.header.trigger
        when, origin = value & ~ORIGIN_MASK, value & ORIGIN_MASK
        if origin in TRIGGERS and self._progress.consumed < value and when <= time.monotonic_ns():
            # The clock starts with the trigger. The trigger cannot have come before the last look.
            return Origin(origin), max(when, self.looked_at)
        return Origin.NONE, 0

    def began(self) -> tuple[Origin, int]:
        """Return the origin of the shutdown, and T0 in nanoseconds; ``NONE`` and 0 before it."""
        progress = self._progress
        if progress.t0:
            return progress.origin, progress.t0
        began = [(progress.sigterm, Origin.SIGTERM)] if progress.sigterm else []
        origin, when = self.trigger()
        if when:
            began.append((when, origin))
        t0, origin = min(began, default=(0, Origin.NONE))
        return origin, t0

    def _has_come_since(self, t0: int, asked: int) -> bool:
        """Whether a request of a command came in this shutdown. An older request does not count."""
        return max(self._progress.consumed, t0) < asked <= time.monotonic_ns()

    def is_awaited(self, t0: int) -> bool:
        """Whether another instance waits for the addresses of this one.

        :param t0: when this shutdown began, in nanoseconds.
        """
        return self._has_come_since(t0, self._memory.header.successor)

    def _take_up_the_wishes(self, origin: Origin, t0: int) -> None:
        """Note who else wants this shutdown besides the one who began it: an operator, or a hook of
        the platform."""
        progress, header, now = self._progress, self._memory.header, time.monotonic_ns()
        # A drain that comes after a SIGTERM has no effect.
        wished = progress.consumed < header.operator <= min(now, progress.sigterm or now)
        progress.held |= origin is Origin.DRAIN or wished
        if progress.platform:
            return  # The first one has started the clock.
        if origin in PLATFORM and progress.platform_over < t0:
            progress.platform, progress.platform_origin = t0, origin
            return
        value = header.platform
        when, hook = value & ~ORIGIN_MASK, value & ORIGIN_MASK
        if hook in PLATFORM and max(progress.consumed, progress.platform_over) < value <= now:
            progress.platform, progress.platform_origin = max(when, t0), Origin(hook)

    def observe(self, now: int) -> Observation:
        """Return the input of :func:`~gunicorn_grace.arbiter.lifecycle.decide`.

        :param now: the monotonic clock, in nanoseconds.
        """
        progress = self._progress
        origin, t0 = self.began()
        if t0 and progress.phase <= Phase.LAME_DUCK:
            self._take_up_the_wishes(origin, t0)
        sigterm = progress.sigterm
        relieved = progress.upgraded or (bool(progress.terms) and self._counterpart.serves())
        if relieved and not sigterm and now - progress.told >= GROUP_NS:
            # This is not stored in the shared memory, because readiness must stay 200: the other
            # arbiter serves.
            sigterm = progress.told
        clock = min(filter(None, (progress.platform, sigterm)), default=0)
        if progress.phase is Phase.LAME_DUCK:
            self._look_at_what_waits(now)
        self._observed_at = now
        last = max(self._roster.last_arrival(), progress.waited_until, self._blind_until)
        return Observation(
            now=now / NS,
            phase=progress.phase,
            booted=self._roster.has_booted(),
            origin=origin,
            t0=t0 / NS if t0 else None,
            clock=clock / NS if clock else None,
            sigterm=sigterm / NS if sigterm else None,
            held=progress.held,
            ended=self._has_come_since(t0, self._memory.header.end_delay),
            awaited=self.is_awaited(t0),
            undrain=self._has_come_since(t0, self._memory.header.undrain),
            upgraded=relieved,
            last_arrival=last / NS if last else None,
            rate=progress.rate / 1000,
            longest_silence=self._traffic.longest_silence(),
            longest_request=self._roster.longest_request(now) / NS,
            drain_started=progress.drain / NS if progress.drain else None,
            # Workers that die are replaced until they are dismissed. So if none is left before
            # that, it is only for a moment.
            workers=len(self._arbiter.WORKERS) or int(not self._roster.are_dismissed),
        )

    def _look_at_what_waits(self, now: int) -> None:
        """Note that requests still come although no worker has begun them. They wait for a busy
        worker in the accept queue, or in the queue of gthread's threads. A probe that waits there
        counts as a request, because nobody has read it yet."""
        if self._observed_at and now - self._observed_at > BLIND_AFTER * NS:
            self._blind_until = now
        if self._listeners.have_waiting(now) or self._roster.waiting():
            self._progress.waited_until = now

    def before_a_shutdown(self, now: int) -> None:
        """Sample the traffic, and clear a value in the trigger's cell that cannot be a trigger.

        :param now: the monotonic clock, in nanoseconds.
        """
        self._clear_garbage()
        self.looked_at = now
        if self._traffic.is_due(now):
            requests = self._memory.total_ever(Record.requests)
            self._traffic.sample(now, requests, self._roster.last_arrival())
            self._progress.rate = self._traffic.rate

    def _clear_garbage(self) -> None:
        header = self._memory.header
        found = header.trigger
        if found <= self._progress.consumed or self.trigger()[1] or header.trigger != found:
            return  # There is no value, or a trigger has come in the meantime.
        header.trigger = 0
        self._roster.tell_of_garbage(
            "the value in the trigger's place is not a trigger, and is ignored"
        )
