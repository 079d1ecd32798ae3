"""Logs what a worker is still doing. Runs in workers."""

from __future__ import annotations

import sys
import time
from typing import Any

from ..shared.cells import NS
from ..shared.text import printable
from .counting import Counter
from .duties import Duties

DUMP_BEFORE = 1.0
"""Seconds before the drain limit at which a worker logs what it is still doing."""


class Unfinished:
    """Logs the requests in flight, and the holds and callbacks that keep the worker.

    :param counter: the worker's counter.
    :param duties: the worker's holds and callbacks.
    :param log: gunicorn's logger.
    """

    def __init__(self, counter: Counter, duties: Duties, log: Any) -> None:
        self._counter = counter
        self._duties = duties
        self._log = log
        self._is_told = False

    def tell_before(self, what: str, limit: int, now: int) -> None:
        """Log them once, a second before a limit.

        :param what: the limit, as the log names it.
        :param limit: the time of the limit, in monotonic nanoseconds; 0 without a limit.
        :param now: the monotonic clock, in nanoseconds.
        """
        if limit and not self._is_told and now >= limit - DUMP_BEFORE * NS:
            self._is_told = True
            self.tell(f"{DUMP_BEFORE:g} s before {what}")

    def tell(self, when: str) -> None:
        """Log each request in flight with its method, path without query, age and current code
        line; then the holds and callbacks.

        :param when: the moment, as the log names it.
        """
        entries = list(self._counter.in_flight.items())
        now = time.monotonic_ns()
        for request, (began, owner, counted) in sorted(entries, key=lambda entry: entry[1][0]):
            if not counted:
                continue
            self._log.warning(
                "gunicorn-grace: in flight %s: %s %s for %.1f s, at %s",
                when,
                printable(request.method),
                printable(request.path),
                (now - began) / NS,
                stack_top(owner),
            )
        self._duties.tell_left(when)


def stack_top(owner: Any) -> str:
    """Return the file, line and function that a request has reached.

    :param owner: the thread's number, the greenlet, or the asyncio task.
    """
    if isinstance(owner, int):
        frame = sys._current_frames().get(owner)
    elif hasattr(owner, "get_coro"):
        # An asyncio task: follow the waiting coroutines to the innermost one.
        inner = owner.get_coro()
        while (waits_for := getattr(inner, "cr_await", None)) is not None and hasattr(
            waits_for, "cr_frame"
        ):
            inner = waits_for
        frame = getattr(inner, "cr_frame", None)
    else:
        frame = getattr(owner, "gr_frame", None)
    if frame is None:
        return "an unknown place"
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"
