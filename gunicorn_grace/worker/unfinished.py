"""Logs what a worker is still doing. Runs in workers."""

from __future__ import annotations

import time
from typing import Any

from ..shared.agreed import TELL_BEFORE
from ..shared.cells import NS
from ..shared.text import printable
from .counting import Counter
from .duties import NAMED, Duties
from .places import current_greenlet, place_of, what_keeps

END_OF_DRAIN = "the end of the drain"
INTERRUPTED = "when the worker was interrupted, and cut off"


class Unfinished:
    """Logs the requests in flight, and the holds and callbacks that keep the worker.

    :ivar package: the top-level package of the application; empty until the application is loaded.

    :param counter: the worker's counter.
    :param duties: the worker's holds and callbacks.
    :param log: gunicorn's logger.
    """

    def __init__(self, counter: Counter, duties: Duties, log: Any) -> None:
        self._counter = counter
        self._duties = duties
        self._log = log
        self._is_told = self._is_interrupted = False
        self.package: str = ""

    def booted(self, worker: Any) -> None:
        """Note the name of the application. Called just before the worker serves."""
        uri = getattr(getattr(worker, "app", None), "app_uri", None) or ""
        self.package = uri.partition(":")[0].partition(".")[0]

    def tell_before(self, what: str, limit: int, now: int) -> None:
        """Log what is unfinished, once, :data:`~gunicorn_grace.shared.agreed.TELL_BEFORE` seconds
        before a limit. If nothing is, log the threads and greenlets that keep the process.

        :param what: the limit, as the log names it.
        :param limit: the time of the limit, in monotonic nanoseconds; 0 without a limit.
        :param now: the monotonic clock, in nanoseconds.
        """
        if limit and not self._is_told and now >= limit - TELL_BEFORE * NS:
            self._is_told = True
            when = f"{TELL_BEFORE:g} s before {what}"
            if not self.tell(when):
                self._tell_what_keeps(when)

    def tell_at_once(self, when: str) -> None:
        """Log what is unfinished, because the worker is told to end at once. Only the first call
        logs.

        :param when: the moment, as the log names it.
        """
        if not self._is_interrupted:
            self._is_interrupted = True
            self.tell(when)

    def is_stuck(self) -> bool:
        """Whether the greenlet that a signal handler has interrupted serves a request. If that
        greenlet never yields, no other greenlet runs."""
        current = current_greenlet()
        entries = list(self._counter.in_flight.values())
        return current is not None and any(owner is current for _, owner, _ in entries)

    def tell_if_stuck(self, what: str, limit: int, now: int) -> None:
        """Log what is unfinished from a signal handler, if the greenlet that would do it may not
        run. Otherwise this is like :meth:`tell_before`.

        :param what: the limit, as the log names it.
        :param limit: the time of the limit, in monotonic nanoseconds; 0 without a limit.
        :param now: the monotonic clock, in nanoseconds.
        """
        if self.is_stuck():
            self.tell_before(what, limit, now)

    def _tell_what_keeps(self, when: str) -> None:
        kept = what_keeps(self.package)
        if kept:
            more = f" and {len(kept) - NAMED} more" if len(kept) > NAMED else ""
            self._log.warning(
                "gunicorn-grace: no request is left %s, but the worker is kept by %s%s",
                when,
                printable(", ".join(kept[:NAMED])),
                more,
            )

    def tell(self, when: str) -> bool:
        """Log each counted request in flight with its method, path without query, age in seconds
        and current place in the code. Then log the holds and callbacks.

        :param when: the moment, as the log names it.
        :returns: whether there was anything to log.
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
                place_of(owner, self.package),
            )
        return self._duties.tell_left(when) or any(counted for _, (_, _, counted) in entries)
