"""The timer that wakes gunicorn's loop: that loop by itself looks once a second.

Everything here runs in the arbiter's main thread, :meth:`Timer.tick` in its signal handler.
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
"""Seconds between two looks."""

STOPPING_TICK = 0.1
"""Seconds between two looks at the limit of gunicorn's ``stop()``, as long as its own looks."""

REMIND_EVERY = 1.0
"""Seconds after which a worker that loads the application and has not handled its SIGTERM gets it
again."""


class Timer:
    """SIGALRM at an interval.

    :param arbiter: gunicorn's arbiter; its ``grace_wake`` is the signal handler.
    :param roster: the workers.
    """

    def __init__(self, arbiter: Any, roster: Roster) -> None:
        self._arbiter = arbiter
        self._roster = roster
        self._interval = 0.0
        self._kill_at = float("inf")
        self._remind_at = 0.0

    def set(self, interval: float) -> None:
        """Look every ``interval`` seconds from now on; 0 stops the timer."""
        if interval == self._interval:
            return
        ours = self._arbiter.grace_wake
        if signal.getsignal(signal.SIGALRM) not in (signal.SIG_DFL, signal.SIG_IGN, ours):
            return  # Somebody else's alarm: then gunicorn's loop looks once a second.
        self._interval = interval
        signal.signal(signal.SIGALRM, ours)
        signal.setitimer(signal.ITIMER_REAL, interval, interval)

    @property
    def is_on(self) -> bool:
        """Whether it wakes gunicorn's loop more often than gunicorn does."""
        return self._interval > 0

    def keep_the_limit_of_stop(self, seconds: float) -> None:
        """Kill the workers that are left when gunicorn's ``stop()`` has taken this long.

        gunicorn 22.0 to 27.0 measure the limit with the wall clock: if somebody sets that back
        meanwhile, ``stop()`` would wait longer for a worker that hangs.
        """
        self._kill_at = time.monotonic() + seconds
        self.set(STOPPING_TICK)

    def tick(self) -> None:
        """Let gunicorn's loop come round, or keep the limit of its ``stop()``."""
        now = time.monotonic()
        if self._roster.are_dismissed:
            self._remind_the_loading(now)
        if self._kill_at == float("inf"):
            self._arbiter.wakeup()
        elif now >= self._kill_at:
            # The dirty arbiter is a child of gunicorn 25.1 to 27.0.
            for pid in [*self._arbiter.WORKERS, getattr(self._arbiter, "dirty_arbiter_pid", 0)]:
                if pid:
                    with contextlib.suppress(OSError):
                        os.kill(pid, signal.SIGKILL)

    def _remind_the_loading(self, now: float) -> None:
        """Send SIGTERM again to workers that load the application and have not noticed it.

        A signal that comes between the last look for signals and the system call that waits is
        handled when that call returns: gevent 26.9, and Python's own ``sleep``. Once booted, no
        worker waits long without a look.
        """
        if not self._remind_at:
            self._remind_at = now + REMIND_EVERY
        elif now >= self._remind_at:
            self._remind_at = now + REMIND_EVERY
            for pid in self._roster.have_missed_their_dismissal():
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGTERM)
