"""The picture of one contender's run: bars, requests in flight and lanes, in seconds and pixels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..load.tally import RequestOutcome
from ..result import Gone, Life, Result
from . import text as report_text
from .labels import NARROWEST, WIDE, Axis, Mark, fits, marks_of, name_of_lane
from .phases import Span, phases

#: The largest number of lanes for deleted instances in a picture.
MOST_LANES = 6


# Heights in pixels: a row of labels; the bars, below them the marks of losses, and the requests in
# flight; a lane's name, the lane and the line that says ready; a gap, and the seconds.
_LABEL_ROW = 15
_BARS, _MARKS, _FLIGHT = 120, 10, 36
_NAME, _LANE, _READY = 14, 17, 5
_GAP, _TICKS = 8, 20


@dataclass(frozen=True)
class Bar:
    """A step of time: a rectangle for each outcome, ``(class, top, height)`` in pixels."""

    at: float
    title: str
    parts: tuple[tuple[str, float, float], ...]
    lost: int


@dataclass(frozen=True)
class PhaseName:
    """The name of a phase on its lane. If ``wide`` is true, a narrow screen has no room for it."""

    label: str
    percent: float
    wide: bool


@dataclass(frozen=True)
class Lane:
    """A deleted instance: its phases, and the intervals in which the platform considered it
    ready."""

    name: str
    top: float
    spans: tuple[Span, ...]
    ready: tuple[tuple[float, float], ...]
    end: Span | None
    shown: str
    name_at: float
    anchor: str
    phase_names: tuple[PhaseName, ...]


@dataclass(frozen=True)
class Picture:
    """The picture of one contender. Vertical positions are pixels from the top of the picture."""

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


def picture_of(
    result: Result,
    number: int,
    axis: Axis,
    used: Sequence[RequestOutcome],
    highest: int,
    in_flight: int,
) -> Picture:
    series = result.series
    lives = {life.name: life for life in result.lives}
    marks = marks_of(result, axis)
    bars_top = _LABEL_ROW * (max((mark.row for mark in marks), default=0) + 1) + 4.0
    bars_end = bars_top + _BARS
    scale = _BARS / (1.1 * highest)
    flight_top = bars_end + _MARKS + _GAP + 12
    flight_end = flight_top + _FLIGHT
    lanes_top = flight_end + _GAP + 4
    order = sorted(result.gone, key=lambda gone: (gone.exited is None, gone.exited or 0.0))
    # If there are too many, only the instances that were gone first and last are shown.
    followed = (
        order
        if len(order) <= MOST_LANES
        else [*order[: MOST_LANES // 2], *order[-(MOST_LANES // 2) :]]
    )
    lanes, each = [], _NAME + _LANE + _READY + 4
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
                lanes_top + index * each + _NAME,
                spans,
                _ready(life, gone, axis),
                lane_end,
                *name_of_lane(gone.name, spans, axis),
                _phase_names(spans, axis),
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
            f"in flight: {series.in_flight[index]}, "
            f"at deleted instances: {series.in_flight_deleted[index]}"
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
        height=lanes_top + len(lanes) * each + _TICKS,
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


def _phase_names(spans: Sequence[Span], axis: Axis) -> tuple[PhaseName, ...]:
    """Return the names of the phases that are long enough to show their names."""
    return tuple(
        PhaseName(span.label, axis.percent(span.start), not fits(span.label, room, NARROWEST))
        for span in spans
        if fits(span.label, room := axis.percent(span.end) - axis.percent(span.start), WIDE)
    )


def _ready(life: Life | None, gone: Gone, axis: Axis) -> tuple[tuple[float, float], ...]:
    """Return the intervals in which the platform considered an instance ready."""
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
    """Return a stepped outline as an SVG path. It is closed along its base, and has points only
    where it changes."""
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
    """Return one to three round numbers for the grid lines."""
    size = 10 ** math.floor(math.log10(highest))
    step = next(size * m for m in (1, 2, 5, 10) if highest / (size * m) < 3) if highest > 3 else 1
    return list(range(step, highest + 1, step))[:3]
