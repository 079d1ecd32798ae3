"""A load that runs: its counts so far, wherever it runs, and its end."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import replace
from types import TracebackType

from ..errors import LoadFailed, RehearsalError
from .tally import Record, Tally


class RunningLoad(ABC):
    """What a load tells while it runs, wherever it runs: ``Load`` in a thread, ``Generator`` in a
    process.

    :param tally: filled as requests end.
    :param timeout: seconds that a request may take.
    """

    def __init__(self, tally: Tally, timeout: float) -> None:
        self.rate = tally.rate
        self.timeout = timeout
        self._tally = tally
        self._problem: BaseException | None = None
        self._progress = threading.Condition()  # a request ended, or the load did
        self._target = float("inf")
        self._ended = False

    @abstractmethod
    def stop(self, abandon: bool = False) -> Tally:
        """End it; see the classes."""

    @property
    def completed(self) -> int:
        """Requests that have ended so far, lost ones among them."""
        return self._tally.total

    @property
    def problem(self) -> str | None:
        """What the generator failed by; None as long as it has not."""
        return None if self._problem is None else str(self._problem)

    def records_after(self, index: int) -> list[Record]:
        """The requests that ended since there were ``index`` of them: for one who looks again and
        again."""
        return self._tally.records[index:]

    def snapshot(self) -> Tally:
        """A copy of what was counted so far."""
        tally = self._tally
        return replace(tally, records=list(tally.records), lags=list(tally.lags))

    def wait_completed(self, count: int, timeout: float | None = None) -> None:
        """Wait until ``count`` more requests have ended.

        :param count: requests, from now on.
        :param timeout: seconds; by default what ``count`` should take, twice, and a request's own
            time.

        :raises RehearsalError: not so within ``timeout`` seconds.
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
                f"{missing} of {count} requests had not ended after {limit:g} s: lower the rate of {self.rate:g} per s"
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
        with suppress(LoadFailed):  # the error under way came first
            self.stop(abandon=True)
