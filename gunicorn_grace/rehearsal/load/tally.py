"""What became of every request. Nothing here is averaged away: a loss keeps its time, endpoint and
error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Outcome(str, Enum):
    """How a request ended, told apart by what its client may do about it.

    A refused connection is safe to try again for any method. After a reset the client cannot know
    whether the request was carried out, so that only a method that may be repeated can be tried
    again (RFC 9110, 9.2.2).
    """

    OK = "ok"
    """A complete response with a status of 2xx."""
    REFUSED = "refused"
    """The connection was never established: refused, unreachable, no endpoint, no SYN-ACK in
    time."""
    RESET = "reset"
    """Established, then closed or reset before a byte of the response came."""
    TRUNCATED = "truncated"
    """Cut off within the response, or what came was no HTTP."""
    TIMEOUT = "timeout"
    """Established, but no complete response in time."""
    SERVER_ERROR = "server_error"
    """A complete response with a status of 5xx, from whoever answered but the plugin."""
    NOT_READY = "not_ready"
    """A complete 503 that the plugin gave to a probe's path, told by the headers that it puts on
    such answers."""
    STATUS = "status"
    """A complete response with any other status."""


class ConnectionKind(str, Enum):
    """How a request came by its connection."""

    FRESH = "fresh"
    """A connection of its own, with ``Connection: close``."""
    KEPT = "kept"
    """From a pool of kept-alive connections, or one opened to be put back there."""


@dataclass(frozen=True, slots=True)
class Record:
    """One request. Times are ``time.monotonic()`` seconds; ``latency`` is from ``started`` to the
    outcome."""

    started: float
    kind: ConnectionKind
    path: str
    outcome: Outcome
    status: int | None
    latency: float
    endpoint: str
    error: str = ""
    slow: bool = False
    reused: bool = False
    method: str = "GET"

    @property
    def ended(self) -> float:
        """When the outcome was known."""
        return self.started + self.latency


#: How late a request may start, seconds. epoll wakes up to a millisecond late, more than the
#: spacing at 1,000 requests a second; 20 ms are what a busy core adds. Rates below 50 a second are
#: allowed their own spacing.
TOLERANCE = 0.02


@dataclass
class Tally:
    """All records of a load, and how well the generator kept its schedule.

    :ivar records: in the order in which they ended.
    :ivar lags: seconds that each request was started after it was due, in the order in which they
        were due; those that were skipped are among them.
    :ivar skipped: requests that were due but never started, because the generator was late: a busy
        machine.
    :ivar began: ``time.monotonic()`` at which the first request was due.
    :ivar rate: requests per second, as was asked for; 0 when there was no schedule.
    """

    records: list[Record] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)
    skipped: int = 0
    began: float = 0.0
    rate: float = 0.0

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

    def count(self, outcome: Outcome, kind: ConnectionKind | str | None = None) -> int:
        """Requests with this outcome, on connections of this kind if given."""
        return sum(r.outcome is outcome and (kind is None or r.kind == kind) for r in self.records)

    @property
    def rate_achieved(self) -> float:
        """Requests that were started a second, from the first one due to the last one."""
        return self.rate * (1 - self.skipped / len(self.lags)) if self.lags else 0.0

    @property
    def tolerance(self) -> float:
        """How late a request may start without being skipped, seconds."""
        return max(1 / self.rate, TOLERANCE) if self.rate else TOLERANCE

    def fell_behind(self, since: float | None = None, until: float | None = None) -> str:
        """Why the numbers cannot be trusted: the generator did not keep its schedule. Empty if it
        did.

        It did not when more than one in a hundred requests could not start within ``tolerance``: in
        the whole run, or between ``since`` and ``until``. A stall at the moment of a deletion is
        short beside the run, and leaves out the very requests that would have been lost.

        :param since: ``time.monotonic()``; with ``until``, a part of the run that is looked at by
            itself, too.
        :param until: the end of that part.
        """
        parts = [("", self.lags)]
        if since is not None and until is not None and self.rate:
            first, last = (
                max(0, math.ceil((at - self.began) * self.rate)) for at in (since, until)
            )
            parts.append((" while instances were being deleted", self.lags[first:last]))
        for when, lags in parts:
            late = percentile(lags, 99)
            if late > self.tolerance:
                return (
                    f"the load generator was {late * 1000:.0f} ms late or more with 1 of 100 requests{when}, "
                    f"{self.tolerance * 1000:.0f} ms are allowed: this machine is too busy, lower --rate"
                )
        return ""

    def summary(self) -> dict[str, Any]:
        """The numbers, ready for JSON. Latencies are those of complete 2xx responses, in
        seconds."""
        latencies = [record.latency for record in self.records if record.outcome is Outcome.OK]
        return {
            "requests": self.total,
            "lost": self.lost,
            **{outcome.value: self.count(outcome) for outcome in Outcome},
            "lost_fresh": sum(record.kind is ConnectionKind.FRESH for record in self.lost_records),
            "lost_kept": sum(record.kind is ConnectionKind.KEPT for record in self.lost_records),
            "latency_p50": percentile(latencies, 50),
            "latency_p99": percentile(latencies, 99),
            "latency_max": percentile(latencies, 100),
            "lag_p99": percentile(self.lags, 99),
            "lag_max": percentile(self.lags, 100),
            "skipped": self.skipped,
            "rate": self.rate,
            "rate_achieved": self.rate_achieved,
        }


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile: the smallest value that ``percent`` % of them do not exceed; 0
    of none."""
    if not values:
        return 0.0
    rank = max(1, math.ceil(len(values) * percent / 100))
    return sorted(values)[rank - 1]
