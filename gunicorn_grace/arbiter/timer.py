"""The timer that wakes gunicorn's loop, which by itself makes only one pass a second.

Everything here runs in the arbiter's main thread. :meth:`Timer.tick` runs in a signal handler.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import Any

from .roster import Roster

LAME_DUCK_TICK = 0.1
DRAINING_TICK = 0.05
"""Seconds between two passes in LAME_DUCK, and in DRAINING."""

STOPPING_TICK = 0.1
"""Seconds between two looks at the limit of gunicorn's ``stop()``, which itself looks as often."""

REMIND_EVERY = 1.0
"""Seconds after which a worker that loads the application and has not handled its SIGTERM gets it
again."""


class Timer:
    """Sends SIGALRM to the arbiter at an interval.

    :param arbiter: gunicorn's arbiter. Its ``grace_wake`` is the signal handler.
    :param roster: the workers.
    """

    def __init__(self, arbiter: Any, roster: Roster) -> None:
        self._arbiter = arbiter
        self._roster = roster
        self._interval = 0.0
        self._kill_at = float("inf")
        self._remind_at = 0.0

    def set(self, interval: float) -> None:
        """Wake the loop every ``interval`` seconds from now on; 0 stops the timer. If the
        application has its own handler of SIGALRM, this does nothing."""
        if interval == self._interval:
            return
        ours = self._arbiter.grace_wake
        if signal.getsignal(signal.SIGALRM) not in (signal.SIG_DFL, signal.SIG_IGN, ours):
            return  # The alarm is not ours. gunicorn's loop then makes one pass a second.
        self._interval = interval
        signal.signal(signal.SIGALRM, ours)
        signal.setitimer(signal.ITIMER_REAL, interval, interval)

    @property
    def is_on(self) -> bool:
        """Whether the timer runs, so that gunicorn's loop makes more than one pass a second."""
        return self._interval > 0

    def keep_the_limit_of_stop(self, seconds: float) -> None:
        """Kill the workers that are left after this many seconds of gunicorn's ``stop()``.

        gunicorn 22.0 to 27.0 measure the limit with the wall clock. If the clock is set back
        meanwhile, ``stop()`` would wait longer for a worker that hangs.
        """
        self._kill_at = time.monotonic() + seconds
        self.set(STOPPING_TICK)

    def tick(self) -> None:
        """Wake gunicorn's loop, or kill the workers at the limit of ``stop()``. Runs in the handler
        of SIGALRM."""
        now = time.monotonic()
        if self._roster.are_dismissed:
            self._remind_the_loading(now)
        if self._kill_at == float("inf"):
            self._arbiter.wakeup()
        elif now >= self._kill_at:
            # gunicorn 25.1 to 27.0 may have a dirty arbiter too.
            for pid in [*self._arbiter.WORKERS, getattr(self._arbiter, "dirty_arbiter_pid", 0)]:
                if pid:
                    with contextlib.suppress(OSError):
                        os.kill(pid, signal.SIGKILL)

    def _remind_the_loading(self, now: float) -> None:
        """Send SIGTERM again to workers that load the application and have not handled it.

        Python looks for signals before it waits in a system call. A signal that comes between the
        two is handled only when the call returns (gevent 26.9, and Python's own ``sleep``). A
        booted worker does not need this, because it never waits long.
        """
        if not self._remind_at:
            self._remind_at = now + REMIND_EVERY
        elif now >= self._remind_at:
            self._remind_at = now + REMIND_EVERY
            for pid in self._roster.have_missed_their_dismissal():
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGTERM)
