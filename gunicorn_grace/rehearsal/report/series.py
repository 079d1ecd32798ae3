"""Counts the records of a run for each tenth of a second: the requests that began, their outcomes,
and the requests in flight.

There are too many records to draw: 100 instances at 1,000 requests per second leave 100,000 of
them. The page and the JSON document share these counts, so they cannot differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from ..load.tally import RequestOutcome, RequestRecord

STEP = 0.1
"""Seconds that are counted together."""

MOST_STEPS = 3000
"""A longer run gets longer steps, whole multiples of :data:`STEP`, because a screen has no more
pixels."""


@dataclass(frozen=True)
class Series:
    """Counts in equal steps of time. Times are seconds since the deletions began.

    :ivar start: when the first step begins, a whole multiple of ``step``.
    :ivar step: seconds of a step.
    :ivar began: for each outcome, the number of requests with that outcome that began in each step.
    :ivar in_flight: the highest number of requests in flight during each step.
    :ivar in_flight_deleted: the same for requests to the deleted instances.
    """

    start: float
    step: float
    began: dict[RequestOutcome, list[int]]
    in_flight: list[int]
    in_flight_deleted: list[int]

    def __len__(self) -> int:
        return len(self.in_flight)

    def at(self, index: int) -> float:
        """Return the time at which a step begins."""
        return self.start + index * self.step

    def lost(self, index: int) -> int:
        """Return the number of lost requests that began in a step."""
        return sum(
            counts[index]
            for outcome, counts in self.began.items()
            if outcome is not RequestOutcome.OK
        )

    def total(self, index: int) -> int:
        """Return the number of requests that began in a step."""
        return sum(counts[index] for counts in self.began.values())

    def as_dict(self) -> dict[str, Any]:
        """Return the counts as values for JSON."""
        return {
            "start": round(self.start, 3),
            "step": self.step,
            "began": {outcome.value: counts for outcome, counts in self.began.items()},
            "in_flight": self.in_flight,
            "in_flight_deleted": self.in_flight_deleted,
        }


def count(
    records: Sequence[RequestRecord], origin: float, ended: float, deleted: Collection[str] = ()
) -> Series:
    """Count records.

    :param records: in any order.
    :param origin: ``time.monotonic()`` when the deletions began.
    :param ended: the same for the end of the load.
    :param deleted: endpoints of the deleted instances, as in the records.
    """
    first = min((record.started for record in records), default=origin) - origin
    last = max((record.ended for record in records), default=origin) - origin
    last = max(last, ended - origin)
    step = STEP * max(1, math.ceil((last - first) / STEP / MOST_STEPS))
    lowest = math.floor(first / step)
    size = max(1, math.floor(last / step) - lowest + 1)

    def index(moment: float) -> int:
        return min(size - 1, max(0, math.floor((moment - origin) / step) - lowest))

    began = {outcome: [0] * size for outcome in RequestOutcome}
    for record in records:
        began[record.outcome][index(record.started)] += 1
    # A refused request never reached an instance, so it was not in flight.
    sent = [record for record in records if record.outcome is not RequestOutcome.REFUSED]
    return Series(
        lowest * step,
        round(step, 3),
        began,
        _most_at_once(sent, index, size),
        _most_at_once([record for record in sent if record.endpoint in deleted], index, size),
    )


def _most_at_once(
    records: Sequence[RequestRecord], index: Callable[[float], int], size: int
) -> list[int]:
    """Return for each step the highest number of requests in flight during it."""
    changes = sorted(
        [(record.started, 1) for record in records] + [(record.ended, -1) for record in records]
    )
    most, current, at = [0] * size, 0, 0
    for moment, change in changes:
        step = index(moment)
        # Requests in flight at the beginning of a step count in it.
        for passed in range(at + 1, step + 1):
            most[passed] = current
        at = step
        current += change
        most[step] = max(most[step], current)
    return most
