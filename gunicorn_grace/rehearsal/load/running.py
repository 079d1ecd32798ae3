"""A load while it runs, in a thread or in a process of its own."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import replace
from types import TracebackType

from ..errors import LoadFailed, RehearsalError
from .tally import RequestRecord, Tally


class RunningLoad(ABC):
    """A load while it runs: ``Load`` in a thread, ``Generator`` in a process of its own.

    :param tally: gets the records as requests end.
    :param timeout: seconds that a request may take.
    """

    def __init__(self, tally: Tally, timeout: float) -> None:
        self.rate: float = tally.rate
        self.timeout = timeout
        self._tally = tally
        self._problem: BaseException | None = None
        self._progress = threading.Condition()  # a request ended, or the load did
        self._target = float("inf")
        self._ended = False

    @abstractmethod
    def stop(self, abandon: bool = False) -> Tally:
        """End the load, and return its tally.

        :param abandon: whether not to wait for requests under way.
        """

    @property
    def completed(self) -> int:
        """The number of requests that have ended so far, including lost ones."""
        return self._tally.total

    @property
    def problem(self) -> str | None:
        """The reason why the load failed; None if it has not failed."""
        return None if self._problem is None else str(self._problem)

    def records_after(self, index: int) -> list[RequestRecord]:
        """Return the records from ``index`` on, for a caller that looks again and again."""
        return self._tally.records[index:]

    def snapshot(self) -> Tally:
        """Return a copy of the records and counts so far."""
        tally = self._tally
        return replace(tally, records=list(tally.records), lags=list(tally.lags))

    def wait_completed(self, count: int, timeout: float | None = None) -> None:
        """Wait until ``count`` more requests have ended.

        :param count: the number of requests, from now on.
        :param timeout: the longest wait, in seconds. The default is twice the time that ``count``
            requests should take, plus a request's own limit and a second.

        :raises RehearsalError: too few requests had ended after ``timeout`` seconds.
        :raises LoadFailed: the generator failed.
        """
        target = self.completed + count
        limit = 2 * count / self.rate + self.timeout + 1 if timeout is None else timeout
        with self._progress:
            self._target = target
            reached = self._progress.wait_for(
                lambda: self.completed >= target or self._ended, limit
            )
            self._target = float("inf")
        if self._problem is not None:
            raise self._failed() from self._problem
        if not reached or self.completed < target:
            missing = target - self.completed
            raise RehearsalError(
                f"{missing} of {count} requests had not ended after {limit:g} s: "
                f"lower the rate of {self.rate:g} per s"
            )

    def _failed(self) -> LoadFailed:
        return LoadFailed(f"the load generator failed: {self._problem}")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.stop()
            return
        with suppress(LoadFailed):  # the error under way is the cause
            self.stop(abandon=True)
