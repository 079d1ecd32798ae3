"""The outcome of every request, with the time, endpoint and error of each loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class RequestOutcome(str, Enum):
    """The outcome of a request. A client may react differently to each.

    After a refused connection, any method may be tried again. After a reset, the client cannot know
    whether the request was carried out, so only an idempotent method may be tried again (RFC 9110,
    9.2.2).
    """

    OK = "ok"
    """A complete response with a status of 2xx; a WebSocket that ended with a close frame; or a
    stream or a WebSocket that its client left."""
    REFUSED = "refused"
    """The connection was never established: refused, unreachable, no endpoint, no SYN-ACK in
    time."""
    RESET = "reset"
    """The connection was established, then closed or reset before any byte of the response came."""
    TRUNCATED = "truncated"
    """The connection was cut off within the response, or the response was not HTTP."""
    TIMEOUT = "timeout"
    """The connection was established, but no complete response came in time."""
    SERVER_ERROR = "server_error"
    """A complete response with a status of 5xx that did not come from the plugin."""
    NOT_READY = "not_ready"
    """A complete 503 of the plugin on a probe's path, recognised by the headers of such answers."""
    STATUS = "status"
    """A complete response with any other status."""


class ConnectionKind(str, Enum):
    """The way in which a request gets its connection."""

    FRESH = "fresh"
    """A connection of its own, with ``Connection: close``."""
    KEPT = "kept"
    """A connection from a pool of kept-alive ones, or a new one that is put back there."""
    STREAM = "stream"
    """A connection of its own for a response without an end."""
    WEBSOCKET = "websocket"
    """A connection that becomes a WebSocket."""


#: The kinds whose clients hold the connection open. Their latency says how long it was open.
HELD = frozenset({ConnectionKind.STREAM, ConnectionKind.WEBSOCKET})


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request, stream or WebSocket.

    :ivar started: ``time.monotonic()`` at its start.
    :ivar kind: the kind of its connection.
    :ivar path: request target.
    :ivar outcome: its outcome.
    :ivar status: the status of the response; None if it is not known.
    :ivar latency: seconds from ``started`` until the outcome was known.
    :ivar endpoint: the address of the instance; empty if none was chosen.
    :ivar error: the error; empty if there was none.
    :ivar slow: whether it was a slow request.
    :ivar reused: whether its connection had been used before.
    :ivar method: its method.
    """

    started: float
    kind: ConnectionKind
    path: str
    outcome: RequestOutcome
    status: int | None
    latency: float
    endpoint: str
    error: str = ""
    slow: bool = False
    reused: bool = False
    method: str = "GET"
    #: The code of the server's close frame; None if it sent none.
    close_code: int | None = None

    @property
    def ended(self) -> float:
        """``time.monotonic()`` when the outcome was known."""
        return self.started + self.latency


#: How late a request may start, in seconds. epoll wakes up to a millisecond late, and a busy core
#: adds up to 20 ms. Below 50 requests a second, the limit is the time between two requests.
TOLERANCE = 0.02


@dataclass
class Tally:
    """All records of a load, and the figures that show how well the generator kept its schedule.

    :ivar records: the requests in the order in which they ended.
    :ivar lags: seconds by which each request was late, in the order in which they were due. Skipped
        requests are included.
    :ivar skipped: requests that were due but never started, because the generator was late on a
        busy machine.
    :ivar began: ``time.monotonic()`` at which the first request was due.
    :ivar rate: the planned number of requests per second; 0 if there was no schedule.
    """

    records: list[RequestRecord] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)
    skipped: int = 0
    began: float = 0.0
    rate: float = 0.0

    @property
    def total(self) -> int:
        """The number of requests that have ended."""
        return len(self.records)

    @property
    def lost(self) -> int:
        """The number of lost requests: all whose outcome is not ``OK``."""
        return len(self.lost_records)

    @property
    def lost_records(self) -> list[RequestRecord]:
        """The lost requests in the order in which they ended."""
        return [record for record in self.records if record.outcome is not RequestOutcome.OK]

    def count(self, outcome: RequestOutcome, kind: ConnectionKind | str | None = None) -> int:
        """Return the number of requests with this outcome. If ``kind`` is given, only requests on
        this kind of connection count."""
        return sum(r.outcome is outcome and (kind is None or r.kind == kind) for r in self.records)

    def of(self, kind: ConnectionKind) -> int:
        """Return the number of requests on this kind of connection."""
        return sum(record.kind is kind for record in self.records)

    @property
    def held(self) -> int:
        """The number of streams and WebSockets."""
        return sum(self.of(kind) for kind in HELD)

    @property
    def rate_achieved(self) -> float:
        """The number of requests per second that were really started."""
        return self.rate * (1 - self.skipped / len(self.lags)) if self.lags else 0.0

    @property
    def tolerance(self) -> float:
        """The seconds by which a request may be late without being skipped."""
        return max(1 / self.rate, TOLERANCE) if self.rate else TOLERANCE

    def fell_behind(self, since: float | None = None, until: float | None = None) -> str:
        """Return why the numbers cannot be trusted, if the generator did not keep its schedule.

        It did not if more than one in a hundred requests could not start within ``tolerance``, in
        the whole run or between ``since`` and ``until``. A stall at the moment of a deletion is
        short in comparison with the run, but it skips the requests that would have been lost.

        :param since: ``time.monotonic()`` of the beginning of a part that is also checked on its
            own.
        :param until: the end of that part.

        :returns: a sentence, empty if the numbers can be trusted.
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
                    f"the load generator started 1 of 100 requests{when} {late * 1000:.0f} ms late "
                    f"or more, and {self.tolerance * 1000:.0f} ms are allowed: "
                    "this machine is too busy, lower --rate"
                )
        return ""

    def summary(self) -> dict[str, Any]:
        """Return the numbers as values for JSON. Latencies are those of complete 2xx responses
        without streams and WebSockets, in seconds."""
        latencies = [
            record.latency
            for record in self.records
            if record.outcome is RequestOutcome.OK and record.kind not in HELD
        ]
        return {
            "requests": self.total,
            "lost": self.lost,
            **{outcome.value: self.count(outcome) for outcome in RequestOutcome},
            **{
                f"lost_{kind.value}": sum(record.kind is kind for record in self.lost_records)
                for kind in ConnectionKind
            },
            "streams": self.of(ConnectionKind.STREAM),
            "websockets": self.of(ConnectionKind.WEBSOCKET),
            "websockets_closed": sum(record.close_code is not None for record in self.records),
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
    """Return the nearest-rank percentile: the smallest value that ``percent`` % of the values do
    not exceed; 0 if there are no values.

    :param values: the values, in any order.
    :param percent: the percentage, from 0 to 100.
    """
    if not values:
        return 0.0
    rank = max(1, math.ceil(len(values) * percent / 100))
    return sorted(values)[rank - 1]
