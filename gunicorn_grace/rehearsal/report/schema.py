"""The JSON document of a rehearsal, described by ``schema.json``."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from datetime import datetime
from importlib import metadata, resources
from typing import Any

from ..result import Result
from . import text as report_text
from .advice import advice

VERSION = 1
"""The version of the document. It grows when a field is removed or changes its meaning, not when
one is added."""


def schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of the document."""
    loaded: dict[str, Any] = json.loads(
        resources.files(__package__).joinpath("schema.json").read_text("utf-8")
    )
    return loaded


def versions() -> dict[str, str]:
    """Return the versions of the programs that a result depends on."""
    return {name: metadata.version(name) for name in ("gunicorn-grace", "gunicorn")} | {
        "python": platform.python_version()
    }


def document(
    results: Sequence[Result], *, made: datetime, max_lost: int = 0, interrupted: bool = False
) -> dict[str, Any]:
    """Return the document that ``--json`` writes.

    :param results: the runs; the last one is judged.
    :param made: the time of the rehearsal, with a time zone.
    :param max_lost: how many lost requests are still a success.
    :param interrupted: whether Ctrl-C ended the rehearsal.
    """
    plan = results[0].plan
    return {
        "schema": VERSION,
        "made": made.isoformat(timespec="seconds"),
        "versions": versions(),
        "app": plan.app,
        "plan": {
            "app": plan.app,
            "instances": plan.instances,
            "to": plan.remaining,
            "rate": plan.rate,
            "period": plan.period,
            "heading": " ".join(report_text.sentences(plan)),
        },
        "max_lost": max_lost,
        "passed": report_text.passed(results, max_lost, interrupted),
        "interrupted": interrupted,
        "verdict": report_text.verdict(results, max_lost, interrupted),
        "advice": advice(results, max_lost, interrupted),
        "results": [result.as_dict() for result in results],
    }
