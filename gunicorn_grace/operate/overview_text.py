"""Writes the status of instances as a table of at most 80 columns, and as JSON."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..shared.phase import Phase
from .overview import Status, Worker

VERSION = 1
"""The version of the JSON document. It grows when a field is removed or changes its meaning, not
when one is added."""

WIDTH = 80
UNKNOWN = "-"

_HEADINGS = ("worker", "age", "state", "in flight", "requests", "since T0", "arrival", "heartbeat")
_WIDTHS = (9, 6, 8, 10, 10, 9, 9, 10)


def table(seen: Sequence[Status]) -> str:
    """Return the instances as text, one paragraph for each."""
    return "\n\n".join("\n".join(_paragraph(one)) for one in seen)


def _paragraph(one: Status) -> Iterator[str]:
    name = one.application or " ".join(one.command) or UNKNOWN
    yield _cut(f"arbiter {one.arbiter}: {name} in {one.directory or UNKNOWN}")
    if one.problem is not None:
        yield _cut(f"  cannot be read: {one.problem}")
        return
    up = UNKNOWN if one.started is None else _duration(time.time() - one.started)
    versions = f"gunicorn {one.gunicorn or UNKNOWN}, gunicorn-grace {one.plugin or UNKNOWN}"
    yield _cut(f"  {versions}, up {up}")
    yield _cut(f"  {_phase(one)}")
    if one.in_flight is None:
        yield "  its requests are not counted"
    else:
        yield f"  {one.in_flight} in flight, {one.rate:.1f} requests/s"
    if one.has_given_up:
        yield "  the plugin has given up: gunicorn shuts down by itself"
    if one.is_switched_off:
        yield "  switched off (grace_enabled): plain gunicorn, and only the probes answer"
    if one.workers:
        yield "  " + _row(_HEADINGS)
        yield from ("  " + _row(_cells(worker)) for worker in one.workers)


def _phase(one: Status) -> str:
    words = [str(one.phase)]
    if one.since is not None:
        clock = time.strftime("%H:%M:%S", time.localtime(one.since))
        words.append(f"since {clock} ({_duration(time.time() - one.since)})")
    if one.begun_by is not None:
        later = one.sigterm is not None and one.begun_by != "SIGTERM"
        words.append(f"begun by {one.begun_by}" + (", then SIGTERM" if later else ""))
    if one.is_held:
        is_starting = one.phase is Phase.STARTING
        words.append(("then LAME_DUCK " if is_starting else "") + "until undrain")
    elif one.seconds_left is not None:
        words.append(f"{one.seconds_left:.0f} s left")
    return ", ".join(words)


def _cells(worker: Worker) -> tuple[str, ...]:
    return (
        str(worker.pid),
        str(worker.age),
        worker.state,
        _counted(worker.in_flight),
        _counted(worker.requests),
        _counted(worker.since_t0),
        UNKNOWN if worker.last_arrival is None else _duration(worker.last_arrival),
        UNKNOWN if worker.heartbeat is None else _duration(worker.heartbeat),
    )


def _row(cells: Sequence[str]) -> str:
    return " ".join(
        cell.rjust(width - 1) for cell, width in zip(cells, _WIDTHS, strict=True)
    ).rstrip()


def _counted(count: int | None) -> str:
    return UNKNOWN if count is None else str(count)


def _duration(seconds: float) -> str:
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 172800 else f"{seconds / 86400:.0f} d"


def _cut(line: str) -> str:
    return line if len(line) <= WIDTH else f"{line[: WIDTH - 3]}..."


# -- JSON ----


def document(seen: Sequence[Status]) -> dict[str, Any]:
    """Return the JSON document, which :func:`schema` describes."""
    return {
        "schema": VERSION,
        "made": round(time.time(), 3),
        "instances": [
            {**dataclasses.asdict(one), "phase": None if one.phase is None else str(one.phase)}
            for one in seen
        ],
    }


def schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of the document."""
    loaded: dict[str, Any] = json.loads(
        Path(__file__).with_name("status.schema.json").read_text("utf-8")
    )
    return loaded
