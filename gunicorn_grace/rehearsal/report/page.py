"""The page: one HTML file that shows what a rehearsal found, for people who were not there.

It is opened from a mail, a CI artifact or a chat, years later, on a phone: so it holds everything
that it needs and asks the network for nothing (its own Content-Security-Policy forbids it), it
works without JavaScript, and each picture has the table of its numbers behind it. Names, paths and
log lines come from others: the template escapes them all, and the policy names the one script that
may run by its hash.

The pictures are SVG without a fixed width: shapes are given in seconds across and pixels down, and
are stretched sideways to whatever screen there is; text is placed at percentages and keeps its
size.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cache
from importlib import resources

import jinja2
from markupsafe import Markup

from ..load.tally import Outcome
from ..result import Gone, Life, Result
from . import text as report_text
from .schema import versions

#: The most lanes of deleted instances that a picture has, and rows that the table of losses has.
MOST_LANES = 6
MOST_LOSSES = 500

# Pixels down. The bars, below them the marks of losses, the requests in flight and the lanes.
_LABEL_ROW = 15
_BARS = 120
_MARKS = 10
_FLIGHT = 36
_LANE = 17
_READY = 5
_GAP = 8
_TICKS = 20

#: Labels are placed so that they do not overlap on a screen this wide, with letters this wide: the
#: narrowest phone.
_NARROWEST = 320.0
_LETTER = 6.3


@dataclass(frozen=True)
class Span:
    """A phase of an instance, in seconds since the deletions began. ``kind`` is also the class that
    colours it."""

    kind: str
    label: str
    start: float
    end: float


@dataclass(frozen=True)
class Mark:
    """A moment that is named above the bars, on one of several rows so that names do not
    overlap."""

    at: float
    label: str
    kind: str
    percent: float
    anchor: str
    row: int


@dataclass(frozen=True)
class Bar:
    """A step of time: a rectangle for each outcome, ``(class, top, height)`` in pixels."""

    at: float
    title: str
    parts: tuple[tuple[str, float, float], ...]
    lost: int


@dataclass(frozen=True)
class Lane:
    """A deleted instance: its phases, and when the platform held it for ready."""

    name: str
    top: float
    spans: tuple[Span, ...]
    ready: tuple[tuple[float, float], ...]
    end: Span | None
    name_at: float


@dataclass(frozen=True)
class Picture:
    """What is drawn of one contender. Everything down the page is in pixels from the top of the
    picture."""

    result: Result
    anchor: str
    summary: str
    step: float
    marks: tuple[Mark, ...]
    bars: tuple[Bar, ...]
    shades: tuple[Span, ...]
    lanes: tuple[Lane, ...]
    unseen: int
    bars_top: float
    bars_end: float
    flight_top: float
    flight_end: float
    flight: str
    flight_deleted: str
    most_in_flight: int
    grid: tuple[tuple[int, float], ...]
    height: float
    table: tuple[tuple[str, ...], ...] = field(default=())


@dataclass(frozen=True)
class Axis:
    """The one time axis that all contenders share: whole seconds since the deletions began."""

    low: float
    high: float

    @property
    def span(self) -> float:
        """Seconds from one end to the other."""
        return self.high - self.low

    def percent(self, at: float) -> float:
        """Where a moment is, from 0 at the left to 100 at the right."""
        return round(100 * (min(max(at, self.low), self.high) - self.low) / self.span, 3)

    def ticks(self) -> list[tuple[float, str, bool]]:
        """``(percent, label, whether a narrow screen has room for it)``."""
        step = next(
            (s for s in (1, 2, 5, 10, 20, 30, 60, 120, 300, 600) if self.span / s <= 14), 1800
        )
        numbers = range(math.ceil(self.low / step), math.floor(self.high / step) + 1)
        return [(self.percent(n * step), f"{n * step}", n % 2 == 0) for n in numbers]


def page(
    results: Sequence[Result], *, made: datetime, max_lost: int = 0, interrupted: bool = False
) -> str:
    """The HTML page on one or more runs of the same plan.

    Args:
        results: the last one is judged.
        made: when; with a time zone.
        max_lost, interrupted: see ``report_text.passed``.
    """
    axis = _axis(results)
    used = [
        outcome for outcome in Outcome if any(result.tally.count(outcome) for result in results)
    ]
    highest = max(
        [1, *(result.series.total(i) for result in results for i in range(len(result.series)))]
    )
    in_flight = max([1, *(most for result in results for most in result.series.in_flight)])
    pictures = [
        _picture(result, n, axis, used, highest, in_flight) for n, result in enumerate(results)
    ]
    template = _template()
    style, script = (_source(f"page.{kind}") for kind in ("css", "js"))
    return template.render(
        policy=f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; base-uri 'none'; "
        "form-action 'none'",
        style=Markup(style),
        script=Markup(script),
        results=results,
        plan=results[0].plan,
        heading=report_text.heading(results[0].plan),
        verdict=report_text.verdict(results, max_lost, interrupted),
        passed=report_text.passed(results, max_lost, interrupted),
        rows=report_text.rows(results),
        notes=report_text.notes(results),
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
    """The phases that the legend has to explain."""
    seen = {span.kind for picture in pictures for lane in picture.lanes for span in lane.spans}
    return [(kind, text) for kind, text in KINDS.items() if kind in seen]


KINDS = {
    "prestop": "preStop hook: serving",
    "lame-duck": "lame duck: not ready, serving",
    "draining": "draining",
    "stopping": "stopping, closed to new connections",
}
"""The phases of an instance that is deleted, as the legend explains them."""


def phases(gone: Gone, life: Life | None) -> tuple[Span, ...]:
    """What a deleted instance went through. The plugin says it in its log; without it there are
    hook and SIGTERM.

    An instance that has not gone is drawn up to the last thing known of it.
    """
    deleted = life.deleted if life is not None and life.deleted is not None else 0.0
    said = {text.split(maxsplit=1)[0]: at for at, text in reversed(gone.events)}
    known = [gone.exited, gone.sigterm, gone.pre_stop_done, deleted, *said.values()]
    end = gone.exited if gone.exited is not None else max(at for at in known if at is not None)
    began = said.get("shutdown_initiated")
    if began is not None:
        over = min(said.get("lame_duck_ended", end), end)
        steps = [("lame-duck", "lame duck", began, over), ("draining", "draining", over, end)]
        before = began
    else:
        sigterm = gone.sigterm if gone.sigterm is not None else end
        steps = [("stopping", "stopping", sigterm, end)]
        before = sigterm
    steps.insert(
        0,
        ("prestop", "preStop hook", deleted, before if gone.pre_stop_done is not None else deleted),
    )
    return tuple(Span(*step) for step in steps if step[3] - step[2] > 0.001)


def _picture(
    result: Result, number: int, axis: Axis, used: Sequence[Outcome], highest: int, in_flight: int
) -> Picture:
    series = result.series
    lives = {life.name: life for life in result.lives}
    marks = _marks(result, axis)
    bars_top = _LABEL_ROW * (max((mark.row for mark in marks), default=0) + 1) + 4.0
    bars_end = bars_top + _BARS
    scale = _BARS / (1.1 * highest)
    flight_top = bars_end + _MARKS + _GAP + 12
    flight_end = flight_top + _FLIGHT
    lanes_top = flight_end + _GAP + 4
    order = sorted(result.gone, key=lambda gone: (gone.exited is None, gone.exited or 0.0))
    # Of many, the first to go and the last: the others lie between them.
    followed = (
        order
        if len(order) <= MOST_LANES
        else [*order[: MOST_LANES // 2], *order[-(MOST_LANES // 2) :]]
    )
    lanes = []
    for index, gone in enumerate(followed):
        life = lives.get(gone.name)
        spans = phases(gone, life)
        lane_end = None
        if gone.exited is not None:
            how = "ended by SIGKILL" if gone.killed else f"gone, exit code {gone.exit_code}"
            lane_end = Span("end", how, gone.exited, gone.exited)
        lanes.append(
            Lane(
                gone.name,
                lanes_top + index * (_LANE + _READY + 4),
                spans,
                _ready(life, gone, axis),
                lane_end,
                _name_at(gone.name, spans, axis),
            )
        )

    def bar(index: int) -> Bar:
        counts = [(outcome, series.began[outcome][index]) for outcome in used]
        parts, level = [], bars_end
        for outcome, n in counts:
            height = n * scale
            level -= height
            if n:
                parts.append((outcome.value, round(level, 2), round(height, 2)))
        said = (
            ", ".join(f"{n} {report_text.label(outcome)}" for outcome, n in counts if n)
            or "no request began"
        )
        title = (
            f"{series.at(index):.1f} to {series.at(index + 1):.1f} s\n{said}\n"
            f"in flight: {series.in_flight[index]}, at deleted instances: {series.in_flight_deleted[index]}"
        )
        return Bar(round(series.at(index), 3), title, tuple(parts), series.lost(index))

    def level(most: int) -> float:
        return flight_end - _FLIGHT * most / in_flight

    lost = result.tally.lost
    return Picture(
        result=result,
        anchor=f"contender-{number + 1}",
        summary=f"{result.contender.name}: {result.tally.total} requests, {lost} lost; "
        f"gone after {'-' if result.gone_after is None else f'{result.gone_after:.1f} s'}",
        step=series.step,
        marks=marks,
        bars=tuple(
            bar(index)
            for index in range(len(series))
            if series.total(index) or series.in_flight[index]
        ),
        shades=lanes[0].spans if lanes and result.plan.rollout is None else (),
        lanes=tuple(lanes),
        unseen=len(order) - len(followed),
        bars_top=bars_top,
        bars_end=bars_end,
        flight_top=flight_top,
        flight_end=flight_end,
        flight=_outline(series.in_flight, series.at, level, flight_end),
        flight_deleted=_outline(series.in_flight_deleted, series.at, level, flight_end),
        most_in_flight=max(series.in_flight, default=0),
        grid=tuple((n, round(bars_end - n * scale, 2)) for n in _grid(highest)),
        height=lanes_top + len(lanes) * (_LANE + _READY + 4) + _TICKS,
        table=tuple(
            (
                f"{series.at(index):.1f}",
                *(str(series.began[outcome][index]) for outcome in used),
                str(series.in_flight[index]),
                str(series.in_flight_deleted[index]),
            )
            for index in range(len(series))
        ),
    )


def _marks(result: Result, axis: Axis) -> tuple[Mark, ...]:
    """The moments that are named above the bars, those that fall together under one name."""
    ends = [gone.exited for gone in result.gone if gone.exited is not None]
    sigterms = [gone.sigterm for gone in result.gone if gone.sigterm is not None]
    last = [at for gone in result.gone if (at := result.last_request(gone)) is not None]
    unrouted = [life.unrouted for life in result.lives if life.unrouted is not None]
    many = len(result.gone) > 1
    wanted: list[tuple[float, str, str]] = [(0.0, "deleted", "event")]
    if sigterms:
        wanted.append(
            (
                max(sigterms),
                "last SIGTERM" if many and max(sigterms) - min(sigterms) > 0.1 else "SIGTERM",
                "event",
            )
        )
    if last:
        wanted.append((max(last), "last request", "event"))
    if unrouted:
        wanted.append((max(unrouted), "routing knows", "event"))
    if ends:
        word = "SIGKILL" if result.killed else "gone"
        wanted.append((max(ends), f"last one {word}" if many else word, "end"))
    joined: list[tuple[float, str, str]] = []
    for at, text, kind in sorted(wanted, key=lambda moment: moment[0]):
        if joined and at - joined[-1][0] < max(0.15, axis.span / 100) and joined[-1][2] == kind:
            joined[-1] = (joined[-1][0], f"{joined[-1][1]}, {text}", kind)
        else:
            joined.append((at, text, kind))
    marks: list[Mark] = []
    for at, text, kind in joined:
        percent = axis.percent(at)
        text = f"{text} {at:.1f} s"
        anchor = "start" if percent + _width(text) < 100 else "end"
        marks.append(Mark(at, text, kind, percent, anchor, _row(percent, text, anchor, marks)))
    top = min(mark.row for mark in marks)
    return tuple(replace(mark, row=mark.row - top) for mark in marks)


def _row(percent: float, text: str, anchor: str, marks: Sequence[Mark]) -> int:
    """The row of one more label: where it covers no other, and no label is crossed by another one's
    line.

    Rows count downwards, a line goes from its label down to the bars. A new row opens below the
    others or above them.
    """

    def extent(percent: float, text: str, anchor: str) -> tuple[float, float]:
        width = _width(text) + 1
        return (percent, percent + width) if anchor == "start" else (percent - width, percent)

    left, right = extent(percent, text, anchor)
    others = [(mark, *extent(mark.percent, mark.label, mark.anchor)) for mark in marks]
    rows = [mark.row for mark in marks]

    def covers(row: int) -> bool:
        return any(mark.row == row and left < end and start < right for mark, start, end in others)

    def crosses(row: int) -> bool:
        return any(
            (mark.row < row and left < mark.percent < right)
            or (mark.row > row and start < percent < end)
            for mark, start, end in others
        )

    lowest, highest = max(rows, default=-1) + 1, min(rows, default=0) - 1
    candidates = [row for row in [*sorted(set(rows)), lowest, highest] if not covers(row)]
    return next((row for row in candidates if not crosses(row)), lowest)


def _name_at(name: str, spans: Sequence[Span], axis: Axis) -> float:
    """Where a lane's name begins, percent: behind its end, or on it where there is no room."""
    start, end = (spans[0].start, spans[-1].end) if spans else (0.0, 0.0)
    room = 100 - axis.percent(end)
    return axis.percent(end if room > _width(name) + 2 else start)


def _width(text: str) -> float:
    """How much of the narrowest screen a text takes, percent."""
    return 100 * len(text) * _LETTER / _NARROWEST


def _ready(life: Life | None, gone: Gone, axis: Axis) -> tuple[tuple[float, float], ...]:
    """From when to when the platform held an instance for ready."""
    if life is None or not life.readiness:
        return ()
    end = gone.exited if gone.exited is not None else axis.high
    intervals, since = [], None
    for at, ready in life.readiness:
        if ready and since is None:
            since = at
        elif not ready and since is not None:
            intervals.append((since, min(at, end)))
            since = None
    if since is not None:
        intervals.append((since, end))
    return tuple(
        (max(start, axis.low), stop) for start, stop in intervals if stop > max(start, axis.low)
    )


def _outline(
    counts: Sequence[int], at: Callable[[int], float], level: Callable[[int], float], base: float
) -> str:
    """A stepped outline, closed along its base; only where it changes."""
    points = [f"M{at(0):.2f} {base:.1f}"]
    before: int | None = None
    for index, count in enumerate(counts):
        if count != before:
            if before is not None:
                points.append(f"H{at(index):.2f}")
            points.append(f"V{level(count):.1f}")
            before = count
    return "".join([*points, f"H{at(len(counts)):.2f}", f"V{base:.1f}", "Z"])


def _grid(highest: int) -> list[int]:
    """A round number or two to read the bars by."""
    size = 10 ** math.floor(math.log10(highest))
    step = next(size * m for m in (1, 2, 5, 10) if highest / (size * m) < 3) if highest > 3 else 1
    return list(range(step, highest + 1, step))[:3]


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
