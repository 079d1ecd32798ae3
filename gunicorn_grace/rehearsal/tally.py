"""What became of every request. Nothing here is averaged away: a loss keeps its time, endpoint and error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Outcome(str, Enum):
    """How a request ended, told apart by what its client may do about it.

    A refused connection is safe to try again for any method. After a reset the client cannot know whether the
    request was carried out, so that only a method that may be repeated can be tried again (RFC 9110, 9.2.2).
    """

    OK = "ok"
    """A complete response with a status of 2xx."""
    REFUSED = "refused"
    """The connection was never established: refused, unreachable, no endpoint, no SYN-ACK in time."""
    RESET = "reset"
    """Established, then closed or reset before a byte of the response came."""
    TRUNCATED = "truncated"
    """Cut off within the response, or what came was no HTTP."""
    TIMEOUT = "timeout"
    """Established, but no complete response in time."""
    STATUS = "status"
    """A complete response with any other status."""


class Kind(str, Enum):
    """How a request came by its connection."""

    FRESH = "fresh"
    """A connection of its own, with ``Connection: close``."""
    KEPT = "kept"
    """From a pool of kept-alive connections, or one opened to be put back there."""


@dataclass(frozen=True, slots=True)
class Record:
    """One request. Times are ``time.monotonic()`` seconds; ``latency`` is from ``started`` to the outcome."""

    started: float
    kind: Kind
    path: str
    outcome: Outcome
    status: int | None
    latency: float
    endpoint: str
    error: str = ""
    slow: bool = False
    reused: bool = False

    @property
    def ended(self) -> float:
        """When the outcome was known."""
        return self.started + self.latency


@dataclass
class Tally:
    """All records of a load, and how well the generator kept its schedule.

    Attributes:
        records: in the order in which they ended.
        lags: seconds that each request was started after it was due.
        skipped: requests that were due but never started, because the generator was late: a busy machine.
    """

    records: list[Record] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)
    skipped: int = 0

    @property
    def total(self) -> int:
        """Requests that were started and have ended."""
        return len(self.records)

    @property
    def lost(self) -> int:
        """Requests without a complete 2xx."""
        return len(self.lost_records)

    @property
    def lost_records(self) -> list[Record]:
        """The lost ones, in the order in which they ended."""
        return [record for record in self.records if record.outcome is not Outcome.OK]

    def count(self, outcome: Outcome, kind: Kind | str | None = None) -> int:
        """Requests with this outcome, on connections of this kind if given."""
        return sum(r.outcome is outcome and (kind is None or r.kind == kind) for r in self.records)

    def summary(self) -> dict[str, Any]:
        """The numbers, ready for JSON. Latencies are those of complete 2xx responses, in seconds."""
        latencies = [record.latency for record in self.records if record.outcome is Outcome.OK]
        return {
            "requests": self.total,
            "lost": self.lost,
            **{outcome.value: self.count(outcome) for outcome in Outcome},
            "lost_fresh": sum(record.kind is Kind.FRESH for record in self.lost_records),
            "lost_kept": sum(record.kind is Kind.KEPT for record in self.lost_records),
            "latency_p50": percentile(latencies, 50),
            "latency_p99": percentile(latencies, 99),
            "latency_max": percentile(latencies, 100),
            "lag_p99": percentile(self.lags, 99),
            "lag_max": percentile(self.lags, 100),
            "skipped": self.skipped,
        }


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile: the smallest value that ``percent`` % of them do not exceed; 0 of none."""
    if not values:
        return 0.0
    rank = max(1, math.ceil(len(values) * percent / 100))
    return sorted(values)[rank - 1]
