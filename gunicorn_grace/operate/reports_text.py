"""Writes the summary of a fleet's shutdowns as text of at most 80 columns, and as JSON."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from .collecting import UNKNOWN
from .reports import Service

VERSION = 1
"""The version of the JSON document. It grows when a field is removed or changes its meaning, not
when one is added."""

WIDTH = 80
MOST_ROUTERS = 3


def text(services: Mapping[str, Service]) -> str:
    """Return a paragraph for each service. The services that lost requests come first."""
    ordered = sorted(services.items(), key=lambda item: (item[1].is_well, item[0]))
    return "\n\n".join("\n".join(_paragraph(name, service)) for name, service in ordered)


def _paragraph(name: str, service: Service) -> Iterator[str]:
    begun = _counts(service.begun_by)
    name = "a service without a name" if name == UNKNOWN else name
    yield _cut(f"{name}: {_many(service.shutdowns, 'shutdown')}, begun by {begun}")
    yield _cut(f"  ended: {_counts(service.ended)}")
    lost = f"{_many(service.cut_off, 'request')} in {_many(service.hurt, 'shutdown')}"
    yield _cut(f"  cut off: {lost if service.cut_off else 'none'}{_uncounted(service)}")
    if service.last:
        half, most = service.percentile(0.5), service.percentile(1.0)
        yield _cut(
            f"  last request after T0: median {half:.1f} s, 99 % {service.percentile(0.99):.1f} s, "
            f"most {most:.1f} s; none in {service.silent}"
        )
    for router, count in service.routers.most_common(MOST_ROUTERS):
        yield _cut(f"  late router: {router}, {_many(count, 'request')}")
    if service.endless:
        yield _cut(
            f"  in {service.endless}, requests never stopped coming: a longer delay would not help"
        )
    yield from textwrap.wrap(_advice(service), WIDTH, initial_indent="  ", subsequent_indent="    ")


def _advice(service: Service) -> str:
    delay, period = service.delay(), service.period()
    if service.killed:
        return (
            f"not over in time: {service.killed}; the longest drain took "
            f"{service.longest_drain:.1f} s: lengthen the period, or shorten what is in flight"
        )
    if delay is None and service.handed_over:
        return "the listening sockets are handed over, and stay open: no delay is needed"
    if delay is None:
        return "nothing is known about the delay"
    return f"would do: grace_shutdown_delay {delay} s, grace_termination_period {period} s"


def _uncounted(service: Service) -> str:
    many = _many(service.uncounted, "shutdown")
    return f"; not counted in {many}" if service.uncounted else ""


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _counts(counted: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counted.most_common())


def _cut(line: str) -> str:
    return line if len(line) <= WIDTH else f"{line[: WIDTH - 3]}..."


def document(services: Mapping[str, Service]) -> dict[str, Any]:
    """Return the JSON document."""
    return {
        "schema": VERSION,
        "is_well": all(service.is_well for service in services.values()),
        "services": {name: _object(service) for name, service in services.items()},
    }


def _object(service: Service) -> dict[str, Any]:
    return {
        "shutdowns": service.shutdowns,
        "ended": dict(service.ended),
        "begun_by": dict(service.begun_by),
        "cut_off": service.cut_off,
        "shutdowns_with_cut_off": service.hurt,
        "shutdowns_not_counted": service.uncounted,
        "not_over_in_time": service.killed,
        "last_request_after_t0_seconds": {
            "median": service.percentile(0.5),
            "p99": service.percentile(0.99),
            "most": service.percentile(1.0),
            "none_in": service.silent,
        },
        "delay_ended_by_budget": service.endless,
        "sockets_handed_over": service.handed_over,
        "longest_drain_seconds": service.longest_drain,
        "late_requests_by_router": dict(service.routers),
        "delay_that_would_do": service.delay(),
        "period_that_would_do": service.period(),
    }
