"""The time axis, and the positions of the labels at a picture. No label covers another one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..result import Result
from .phases import Span

#: Pixels of the narrowest phone. Labels do not overlap on a screen this wide.
NARROWEST = 320.0
#: Pixels of the narrowest screen that is not narrow; see ``page.css``.
WIDE = 640.0
#: The largest number of letters that are shown of an instance's name.
LONGEST_NAME = 30
#: The width of a letter, and the margins of a picture, in pixels.
_LETTER, _MARGINS = 6.3, 40.0


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
        """Return the position of a moment, from 0 at the left to 100 at the right."""
        return round(100 * (min(max(at, self.low), self.high) - self.low) / self.span, 3)

    def ticks(self) -> list[tuple[float, str, bool]]:
        """Return the ticks as ``(percent, label, whether a narrow screen has room for it)``."""
        step = next(
            (s for s in (1, 2, 5, 10, 20, 30, 60, 120, 300, 600) if self.span / s <= 14), 1800
        )
        numbers = range(math.ceil(self.low / step), math.floor(self.high / step) + 1)
        return [(self.percent(n * step), f"{n * step} s", n % 2 == 0) for n in numbers]


@dataclass(frozen=True)
class Mark:
    """A moment with a label above the bars, on one of several rows so that labels do not
    overlap."""

    at: float
    label: str
    kind: str
    percent: float
    anchor: str
    row: int


def marks_of(result: Result, axis: Axis) -> tuple[Mark, ...]:
    """Return the moments that have a label above the bars. Moments that are close together share a
    label."""
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
    """Return a row where a new label covers no other label and no line crosses a label.

    Rows count downwards, and a line goes from its label down to the bars. A new row opens below the
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


def name_of_lane(name: str, spans: Sequence[Span], axis: Axis) -> tuple[str, float, str]:
    """Return the name above a lane, shortened if it is too long, its position in percent and its
    anchor."""
    shown = name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 3] + "..."
    start, end = (spans[0].start, spans[-1].end) if spans else (0.0, 0.0)
    at = axis.percent(start)
    if at + _width(shown) < 100:
        return shown, at, "start"
    return shown, max(axis.percent(end), _width(shown)), "end"


def fits(text: str, percent: float, screen: float) -> bool:
    """Whether a text fits into a part of a picture.

    :param text: the text.
    :param percent: the width of the part, in percent of the picture.
    :param screen: the width of the screen, in pixels. The picture is as wide, less its margins.
    """
    return len(text) * _LETTER + 8 < percent * (screen - _MARGINS) / 100


def _width(text: str) -> float:
    """Return the width of a text in percent of the narrowest screen."""
    return 100 * len(text) * _LETTER / NARROWEST
