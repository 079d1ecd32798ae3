"""The metrics of an instance: one table for Prometheus, StatsD and the docs.

Every number comes from the shared memory. So any process can report for the whole instance, and
nobody has to collect the files of single workers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from . import memory as shared_memory
from .cells import Record
from .memory import Memory
from .phase import Phase

PREFIX = "gunicorn_grace_"
STATSD_PREFIX = "gunicorn.grace."
"""The beginning of the names of the StatsD gauges. gunicorn's own gauges have names such as
``gunicorn.workers``. gunicorn puts ``statsd_prefix`` in front of both."""

BOOTING, SERVING, LEAVING = "booting", "serving", "leaving"
"""The states of a worker: it loads its application, it serves, or it has been dismissed and
finishes its requests."""


def _nobody() -> dict[str, int]:
    return dict.fromkeys((BOOTING, SERVING, LEAVING), 0)


@dataclass(frozen=True)
class Reading:
    """The values in the shared memory at one moment. The defaults are those of a process outside
    gunicorn. Counts are ``None`` if the requests of the worker class cannot be counted."""

    phase: Phase = Phase.SERVING
    workers: Mapping[str, int] = field(default_factory=_nobody)
    in_flight: int | None = 0
    requests: int | None = 0
    during_shutdown: int | None = 0
    cut_off: int | None = 0
    t0_unix: float | None = None


SWITCHED_OFF = Reading(
    workers={}, in_flight=None, requests=None, during_shutdown=None, cut_off=None
)
"""The values of an instance that is switched off. It does not count requests, so it must not show a
zero."""


def state(record: Record) -> str:
    """Return the state of a worker."""
    return LEAVING if record.dismissed else SERVING if record.booted else BOOTING


def read(memory: Memory | None) -> Reading:
    """Read the values of the instance. Runs in any process. The call takes a few microseconds for
    each worker, and takes no lock.

    :param memory: the shared memory; ``None`` in a process that has none.
    """
    if memory is None:
        return SWITCHED_OFF if shared_memory.is_switched_off else Reading()
    if memory.header.switched_off:
        return SWITCHED_OFF
    workers, in_flight, uncounted = _nobody(), 0, memory.header.uncounted
    for record in memory.records():
        in_flight += record.in_flight
        uncounted |= record.uncounted
        workers[state(record)] += 1
    seen = Reading(
        phase=memory.phase(),
        workers=workers,
        in_flight=in_flight,
        requests=memory.total_ever(Record.requests),
        during_shutdown=memory.total_ever(Record.since_t0),
        cut_off=memory.header.gone_cut_off,
        t0_unix=memory.t0_unix(),
    )
    if uncounted:
        seen = replace(seen, in_flight=None, requests=None, during_shutdown=None, cut_off=None)
    return seen


Samples = Mapping[str, float]
"""The values of a metric by label value. A metric without a label has the single key "". An empty
mapping means that the metric is absent."""


def _one(value: float | None) -> Samples:
    return {} if value is None else {"": value}


@dataclass(frozen=True)
class Metric:
    """One metric.

    :ivar name: the name without the prefix, and without the ``_total`` of a counter.
    :ivar meaning: the help text.
    :ivar samples: computes the values from a reading.
    :ivar label: the label that distinguishes the values; ``None`` for a metric with one value.
    :ivar is_counter: whether it is a counter; otherwise it is a gauge.
    """

    name: str
    meaning: str
    samples: Callable[[Reading], Samples]
    label: str | None = None
    is_counter: bool = False

    @property
    def full_name(self) -> str:
        """The name as Prometheus shows it."""
        return PREFIX + self.name + ("_total" if self.is_counter else "")


METRICS = (
    Metric(
        "phase",
        "1 for the current phase of the instance, 0 for the others.",
        lambda seen: {str(phase): float(phase is seen.phase) for phase in Phase},
        label="phase",
    ),
    Metric(
        "workers",
        "Workers that are booting, serving, or finishing their last requests.",
        lambda seen: seen.workers,
        label="state",
    ),
    Metric("requests_in_flight", "Requests being served now.", lambda seen: _one(seen.in_flight)),
    Metric(
        "requests",
        "Requests that workers began to serve.",
        lambda seen: _one(seen.requests),
        is_counter=True,
    ),
    Metric(
        "requests_during_shutdown",
        "Requests that arrived after a shutdown had begun.",
        lambda seen: _one(seen.during_shutdown),
        is_counter=True,
    ),
    Metric(
        "requests_cut_off",
        "Requests whose worker ended before they were answered, in any phase.",
        lambda seen: _one(seen.cut_off),
        is_counter=True,
    ),
    Metric(
        "shutdown_start_time_seconds",
        "Unix time at which the shutdown began; absent before it begins.",
        lambda seen: _one(seen.t0_unix),
    ),
)


@dataclass(frozen=True)
class Gauge:
    """One StatsD gauge.

    :ivar name: the name without :data:`STATSD_PREFIX`.
    :ivar meaning: the help text.
    :ivar value: computes the value from a reading; ``None`` if it cannot be counted.
    """

    name: str
    meaning: str
    value: Callable[[Reading], int | None]


GAUGES = (
    Gauge(
        "phase",
        "0 STARTING, 1 SERVING, 2 LAME_DUCK, 3 DRAINING, 4 STOPPED",
        lambda seen: int(seen.phase),
    ),
    Gauge("requests_in_flight", "requests being served now", lambda seen: seen.in_flight),
    Gauge(
        "requests_during_shutdown",
        "requests that arrived after a shutdown had begun",
        lambda seen: seen.during_shutdown,
    ),
    Gauge(
        "requests_cut_off",
        "requests whose worker ended before they were answered",
        lambda seen: seen.cut_off,
    ),
)
