"""``gunicorn-grace reports``: sums up the shutdowns of a fleet, service by service."""

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
"""The largest JSON document over many lines that is read, in characters. The number of lines in a
log is not limited."""

SHARE = 0.8
"""The last request should come within this share of the delay. ``late_request`` and the verdict use
the same share."""

LONGER = 1.25
"""The proposed period has room for the longest drain that was seen, times this factor."""

MARGIN = 2.0
"""The default of ``grace_exit_margin``, in seconds."""

KILLED = "killed"
"""The end of a shutdown whose report was never finished."""


@dataclass
class Service:
    """The shutdowns of one service. Times are seconds.

    :ivar ended: the number of shutdowns for each way of ending, as the reports name it, or
        ``killed``.
    :ivar begun_by: the number of shutdowns for each cause.
    :ivar cut_off: the number of requests that got no complete response.
    :ivar hurt: the number of shutdowns in which requests were cut off.
    :ivar uncounted: the number of shutdowns in which requests could not be counted.
    :ivar last: the seconds from T0 to the last request, for each shutdown in which one came. The
        shutdowns in ``endless`` and ``handed_over`` are not among them.
    :ivar silent: the number of shutdowns in which no request came after T0.
    :ivar endless: the number of shutdowns in which requests came until the budget ended the delay.
    :ivar handed_over: the number of shutdowns in which another process kept the listening sockets.
        Requests then never stop, so they say nothing about the delay.
    :ivar longest_drain: the longest drain.
    :ivar routers: the number of late requests from each router.
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
        """Add a report. Values of a wrong type are treated as missing.

        :param report: the report, as it was parsed.
        """
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
        """The number of shutdowns."""
        return self.ended.total()

    @property
    def killed(self) -> int:
        """The number of shutdowns that did not end in time."""
        return self.ended[KILLED] + self.ended["deadline"]

    @property
    def is_well(self) -> bool:
        """Whether no request was cut off and every shutdown ended in time."""
        return not (self.cut_off or self.killed)

    def percentile(self, share: float) -> float | None:
        """Return a percentile of :attr:`last`, in seconds; ``None`` if it is empty.

        :param share: the share of the shutdowns, from 0 to 1.
        """
        if not self.last:
            return None
        ordered = sorted(self.last)
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)]

    def delay(self) -> int | None:
        """Return the ``grace_shutdown_delay`` that would be long enough, in seconds; ``None`` if
        the reports do not show it."""
        latest = self.percentile(1.0)
        return None if latest is None else max(1, math.ceil(latest / SHARE))

    def period(self) -> int | None:
        """Return the termination period that would be long enough, in seconds; ``None`` if the
        reports do not show it. They do not if a shutdown was killed, because its drain might have
        taken longer."""
        delay = self.delay()
        if delay is None or self.killed:
            return None
        return math.ceil(delay + LONGER * self.longest_drain + MARGIN)


def collect(names: Sequence[str]) -> dict[str, Service]:
    """Read files, and return the services by name. Runs in a command.

    :param names: the names of the files; ``-`` is standard input.
    :raises StateError: a file cannot be read, or no file has a report.
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
    """Yield the reports and late requests of a file. A JSON document over many lines is read as a
    whole, and everything else line by line."""
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
