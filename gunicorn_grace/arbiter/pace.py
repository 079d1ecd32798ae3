"""The pace of gunicorn's methods: once a second, although our timer wakes the loop ten times as
often.

A program may derive its own ``Arbiter`` and do something in each pass of the loop. Airflow's
arbiter replaces its workers one by one in ``manage_workers``, and would do so ten times as fast in
the delay. gunicorn itself sends SIGKILL in the pass after a SIGABRT. An aborted worker would have
only a tenth of a second to log its requests. Runs in the arbiter's main thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

EVERY = 1.0
"""Seconds that gunicorn's loop waits for a signal (22.0 to 27.0)."""


class Pace:
    """Lets one of gunicorn's methods run once a second, and at once when the workers have changed:
    one has died, or another number of them is wanted."""

    def __init__(self) -> None:
        self._next = 0.0
        self._seen: Any = None

    def run(self, arbiter: Any, method: Callable[[], None]) -> None:
        """Run the method, if it is due.

        :param arbiter: gunicorn's arbiter.
        :param method: the method.
        """
        now = time.monotonic()
        if now < self._next and self._seen == _workers(arbiter):
            return
        self._next = now + EVERY
        method()
        # This comes last, because a change by the method itself is not a reason to run it again.
        self._seen = _workers(arbiter)


def _workers(arbiter: Any) -> tuple[int, tuple[int, ...]]:
    return arbiter.num_workers, tuple(arbiter.WORKERS)
