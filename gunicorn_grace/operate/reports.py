"""``gunicorn-grace reports``: what the shutdowns of a fleet tell, service by service."""

from __future__ import annotations

import json
import math
import sys
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, TextIO

from ..errors import StateError
from ..shared.text import printable
from .collecting import UNKNOWN, Found, Late, in_document, in_lines, service_of_file

LARGEST_DOCUMENT = 256 << 20
"""Bytes of a file that is one JSON document over many lines. Lines may be as many as they like."""

SHARE = 0.8
"""The largest share of the delay at which the last request may come: the rule of ``late_request``
and of the verdict."""

LONGER = 1.25
"""The period has room for the longest drain that was seen, and for this times as much."""

MARGIN = 2.0
"""``grace_exit_margin``, in seconds, as it is if nothing is set."""

KILLED = "killed"
"""How a shutdown ended whose report was never finished."""


@dataclass
class Service:
    """The shutdowns of one service. Times are seconds.

    :ivar ended: how many of them ended how: as the reports have it, or ``killed``.
    :ivar begun_by: how many of them were begun by whom.
    :ivar cut_off: how many requests got no complete response.
    :ivar hurt: in how many shutdowns that was.
    :ivar uncounted: in how many shutdowns requests could not be counted.
    :ivar last: when the last request came after T0, for each shutdown in which one came, and that
        is not counted below.
    :ivar silent: in how many shutdowns none came.
    :ivar endless: in how many shutdowns requests came until the budget ended the delay.
    :ivar handed_over: in how many shutdowns somebody else kept the listening sockets. Requests come
        all the time then, and say nothing about the delay.
    :ivar longest_drain: the longest drain.
    :ivar routers: how many late requests came from which router.
    """

    ended: Counter[str] = field(default_factory=Counter)
    begun_by: Counter[str] = field(default_factory=Counter)
    cut_off: int = 0
    hurt: int = 0
    uncounted: int = 0
    last: array[float] = field(default_factory=lambda: array("d"))
    silent: int = 0
    endless: int = 0
    handed_over: int = 0
    longest_drain: float = 0.0
    routers: Counter[str] = field(default_factory=Counter)

    def add(self, report: Mapping[str, Any]) -> None:
        """Add a report."""
        ended = report.get("ended")
        self.ended[printable(ended, 60) if isinstance(ended, str) else KILLED] += 1
        self.begun_by[printable(report.get("origin"), 20)] += 1
        lost = _number(report.get("cut_off"))
        if lost is None:
            self.uncounted += 1
        elif lost > 0:
            self.cut_off += int(lost)
            self.hurt += 1
        last = _number(report.get("last_request_after_t0_seconds"))
        if report.get("handed_over") is True:
            self.handed_over += 1
        elif last is not None and report.get("lame_duck_ended") == "budget":
            self.endless += 1
        elif last is not None and last >= 0:
            self.last.append(last)
        elif lost is not None:
            self.silent += 1
        self.longest_drain = max(self.longest_drain, _number(report.get("draining_seconds")) or 0.0)

    @property
    def shutdowns(self) -> int:
        """How many there were."""
        return self.ended.total()

    @property
    def killed(self) -> int:
        """How many did not end by themselves in time."""
        return self.ended[KILLED] + self.ended["deadline"]

    @property
    def is_well(self) -> bool:
        """Whether nothing was cut off, and nothing was killed."""
        return not (self.cut_off or self.killed)

    def percentile(self, share: float) -> float | None:
        """The time after T0 before which the last request came in this share of the shutdowns."""
        if not self.last:
            return None
        ordered = sorted(self.last)
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)]

    def delay(self) -> int | None:
        """The ``grace_shutdown_delay`` that would do; ``None`` if nothing is known about it."""
        latest = self.percentile(1.0)
        return None if latest is None else max(1, math.ceil(latest / SHARE))

    def period(self) -> int | None:
        """The termination period that would do; ``None`` if nothing is known about it. A drain that
        was killed might have taken longer."""
        delay = self.delay()
        if delay is None or self.killed:
            return None
        return math.ceil(delay + LONGER * self.longest_drain + MARGIN)


def collect(names: Sequence[str]) -> dict[str, Service]:
    """Read files, and return the services, by name.

    :param names: the files; ``-`` is standard input.
    :raises StateError: a file cannot be read, or there is no report in any.
    """
    services: dict[str, Service] = {}
    for name in names:
        for found in _in_file(name):
            service = services.setdefault(printable(found.service, 100), Service())
            if isinstance(found, Found):
                service.add(found.report)
            else:
                service.routers[printable(found.router, 100)] += 1
    if not any(service.shutdowns for service in services.values()):
        raise StateError(
            f"no report in {', '.join(names)}: give `kubectl get pods -o json`, files that "
            "grace_report names, or a log in which it is a line"
        )
    return {name: services[name] for name in sorted(services)}


def _in_file(name: str) -> Iterator[Found | Late]:
    service = UNKNOWN if name == "-" else service_of_file(name)
    try:
        opened = (
            nullcontext(sys.stdin)
            if name == "-"
            else open(name, encoding="utf-8", errors="replace")  # noqa: SIM115
        )
        with opened as stream:
            yield from _in_stream(stream, service)
    except OSError as error:
        raise StateError(f"{name}: {error.strerror or error}: give a readable file") from None
    except UnicodeDecodeError:
        raise StateError(f"{name}: not text in UTF-8: give JSON or a log") from None


def _in_stream(stream: TextIO, service: str) -> Iterator[Found | Late]:
    """A document over many lines is read whole, and everything else line by line."""
    first = stream.readline(LARGEST_DOCUMENT)
    if (document := _loaded(first)) is not None:
        found = list(in_document(document, service))
        yield from found or in_lines([first], service)
    elif first.startswith("{") or first.strip() in ("[", "[{"):
        text = first + stream.read(LARGEST_DOCUMENT)
        document = _loaded(text)
        lines = in_lines(text.splitlines(), service)
        yield from lines if document is None else in_document(document, service)
    else:
        yield from in_lines([first], service)
    yield from in_lines(stream, service)


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _number(value: Any) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) < 1e12 else None
