"""The page: one HTML file that shows the result of a rehearsal.

It may be opened from a mail, a CI artifact or a chat, years later, on a phone. So it contains
everything that it needs. It loads nothing from the network (its own Content-Security-Policy forbids
that), it works without JavaScript, and each picture has a table of its numbers. Names, paths and
log lines may contain anything. So the template escapes them all, and the policy allows only one
script, by its hash.

The pictures are SVG without a fixed width. Shapes are given in seconds across and pixels down, and
are stretched to the width of the screen. Text is placed at percentages and keeps its size.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Sequence
from datetime import datetime
from functools import cache
from importlib import resources

import jinja2
from markupsafe import Markup

from ..load.tally import RequestOutcome
from ..result import Result
from . import text as report_text
from .advice import advice
from .labels import Axis
from .notes import notes
from .phases import KINDS
from .picture import MOST_LANES, Picture, picture_of
from .schema import versions

MOST_LOSSES = 500


def page(
    results: Sequence[Result], *, made: datetime, max_lost: int = 0, interrupted: bool = False
) -> str:
    """Return the HTML page on one or more runs of the same plan.

    :param results: the runs; the last one is judged.
    :param made: the time of the rehearsal, with a time zone.
    :param max_lost: how many lost requests are still a success.
    :param interrupted: whether Ctrl-C ended the rehearsal.
    """
    axis = _axis(results)
    used = [
        outcome
        for outcome in RequestOutcome
        if any(result.tally.count(outcome) for result in results)
    ]
    highest = max(
        [1, *(result.series.total(i) for result in results for i in range(len(result.series)))]
    )
    in_flight = max([1, *(most for result in results for most in result.series.in_flight)])
    pictures = [
        picture_of(result, n, axis, used, highest, in_flight) for n, result in enumerate(results)
    ]
    template = _template()
    style, script = (_source(f"page.{kind}") for kind in ("css", "js"))
    return template.render(
        policy=f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'",
        style=Markup(style),
        script=Markup(script),
        results=results,
        plan=results[0].plan,
        heading=" ".join(report_text.sentences(results[0].plan)),
        verdict=report_text.verdict(results, max_lost, interrupted),
        advice=advice(results, max_lost, interrupted),
        passed=report_text.passed(results, max_lost, interrupted),
        rows=report_text.rows(results),
        meanings=report_text.MEANINGS,
        notes=notes(results),
        outcomes=[(outcome.value, report_text.label(outcome)) for outcome in used],
        axis=axis,
        pictures=pictures,
        kinds=_kinds(pictures),
        moments=[report_text.moments(result, MOST_LANES) for result in results],
        losses=[_losses(result) for result in results],
        made=f"{made:%Y-%m-%d %H:%M %Z}",
        versions=", ".join(f"{name} {version}" for name, version in versions().items()),
    )


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["n"] = lambda value: f"{value:.2f}".rstrip("0").rstrip(".")
    # A unit stays on the line of its number.
    environment.filters["units"] = lambda text: re.sub(r"(?<=\d) (?=%|m?s\b)", "\u00a0", text)
    return environment.from_string(_source("page.html"))


@cache
def _source(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _axis(results: Sequence[Result]) -> Axis:
    low = min(result.series.start for result in results)
    high = max(result.series.at(len(result.series)) for result in results)
    return Axis(math.floor(low), max(math.ceil(high), math.floor(low) + 1))


def _kinds(pictures: Sequence[Picture]) -> list[tuple[str, str]]:
    """Return the phases that occur, with their texts for the legend."""
    seen = {span.kind for picture in pictures for lane in picture.lanes for span in lane.spans}
    return [(kind, text) for kind, text in KINDS.items() if kind in seen]


def _losses(result: Result) -> list[tuple[str, ...]]:
    lost = sorted(result.tally.lost_records, key=lambda record: record.started)
    return [
        (
            f"{report_text.lost_at(record, result):.2f}",
            "" if (since := result.since_t0(record)) is None else f"{since:.2f}",
            report_text.label(record.outcome),
            record.kind.value,
            f"{record.method} {record.path}",
            record.endpoint,
            record.error,
        )
        for record in lost[:MOST_LOSSES]
    ]
