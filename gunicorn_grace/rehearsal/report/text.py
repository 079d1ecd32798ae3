"""The report as text of 80 columns: the contenders side by side, a timeline for each, and a
verdict.

The page takes its words and numbers from here.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..load.tally import ConnectionKind, RequestOutcome, RequestRecord, percentile
from ..plan import Plan
from ..result import Result
from .advice import advice
from .notes import notes, number

WIDTH = 80
#: The timeline shows up to this many instances. If there are more, it shows only the first one.
_FOLLOWED = 2
#: The number of contenders side by side.
_ABREAST = 3
_LABEL = 17
_CELL = (WIDTH - _LABEL) // _ABREAST

#: The width of a time in the timeline.
_INDENT = " " * 12

LABELS: dict[str, str] = {
    "truncated": "cut off",
    "not_ready": "503 by us",
    "server_error": "5xx",
    "status": "not 2xx",
}
"""The labels of outcomes whose own names are not clear to a reader."""

KINDS = {
    ConnectionKind.FRESH: "fresh connection",
    ConnectionKind.KEPT: "kept connection",
    ConnectionKind.STREAM: "stream",
    ConnectionKind.WEBSOCKET: "WebSocket",
}
"""The kinds of connections in words."""

Paint = Callable[[str, str], str]
"""Colours a text by its role: ``good``, ``bad``, ``dim`` or ``head``."""


def unpainted(text: str, what: str) -> str:
    """Leave the text as it is."""
    return text


def label(outcome: RequestOutcome) -> str:
    """The label of an outcome for readers."""
    return LABELS.get(outcome.value, outcome.value.replace("_", " "))


MEANINGS = {
    "gone after": "from the deletion of an instance to its end, the longest",
    "budget used": "the same as a share of the period",
    "last request": "when the last one was sent to a deleted instance, since then",
    "slowest answer": "the slowest of the requests that were not lost",
    "generator lag p99": "how late the load started 99 of 100 requests",
}
"""The meaning of the rows that do not explain themselves."""


@dataclass(frozen=True)
class Row:
    """One line of the comparison: a cell for each contender.

    In a ``losses`` row, a zero is green and any other number is red. A ``detail`` row belongs to
    the row above it.
    """

    label: str
    cells: tuple[str, ...]
    losses: bool = False
    detail: bool = False


def render(
    results: Sequence[Result],
    max_lost: int = 0,
    interrupted: bool = False,
    paint: Paint = unpainted,
) -> str:
    """Return the whole report on one or more runs of the same plan.

    :param results: the runs; the last one is judged.
    :param max_lost: how many lost requests are still a success.
    :param interrupted: whether Ctrl-C ended the rehearsal.
    :param paint: colours a text.
    """
    good = passed(results, max_lost, interrupted)
    parts = [
        heading(results[0].plan),
        table(results, paint),
        paint("\n".join(f"{row:19}{text}" for row, text in MEANINGS.items()), "dim"),
    ]
    parts += [timeline(result, paint) for result in results]
    parts += ["\n".join(textwrap.fill(note, WIDTH) for note in notes(results))]
    parts += [textwrap.fill(advice(results, max_lost, interrupted), WIDTH)]
    # The verdict is the last line, and programs look for it. So it is wrapped only if it is too
    # long.
    parts += [
        paint(
            textwrap.fill(verdict(results, max_lost, interrupted), WIDTH), "good" if good else "bad"
        )
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def heading(plan: Plan) -> str:
    """Return the plan in words, as lines of at most ``WIDTH`` columns."""
    return "\n".join(textwrap.fill(sentence, WIDTH) for sentence in sentences(plan))


def sentences(plan: Plan) -> list[str]:
    """Return the plan in words, as sentences."""
    what = f"{plan.instances} instances scaled down to {plan.remaining}"
    if (rollout := plan.rollout) is not None:
        how = (
            "in order"
            if rollout.in_order
            else f"surge {rollout.max_surge}, unavailable {rollout.max_unavailable}"
        )
        what = f"{plan.instances} instances replaced ({how})"
    return [
        f"{plan.app}: {what} at {plan.rate:g} requests per second.",
        f"The routing learns of it {_lag(plan)} later; the period is {plan.period:g} s.",
        *([f"All requests go through {plan.through}."] if plan.through else []),
        *_held(plan),
    ]


def _held(plan: Plan) -> list[str]:
    """The streams and WebSockets of a plan in words."""
    held = [
        f"{number(plan.held, word)} at {path}"
        for word, path in (("stream", plan.stream_path), ("WebSocket", plan.websocket_path))
        if path is not None
    ]
    return [f"Held open: {' and '.join(held)}."] if held else []


def rows(results: Sequence[Result]) -> list[Row]:
    """Return the rows that compare the contenders: lost requests, time to exit, share of the
    budget."""
    tallies = [result.tally for result in results]
    found = [
        Row("requests", tuple(str(tally.total) for tally in tallies)),
        Row("lost", tuple(str(tally.lost) for tally in tallies), losses=True),
    ]
    for outcome in RequestOutcome:
        counts = [tally.count(outcome) for tally in tallies]
        if outcome is not RequestOutcome.OK and any(counts):
            found.append(Row(label(outcome), tuple(map(str, counts)), losses=True, detail=True))
    for word, kind in (
        ("streams", ConnectionKind.STREAM),
        ("WebSockets", ConnectionKind.WEBSOCKET),
    ):
        opened = [tally.of(kind) for tally in tallies]
        if any(opened):
            losses = [tally.summary()[f"lost_{kind.value}"] for tally in tallies]
            found.append(Row(word, tuple(map(str, opened))))
            found.append(Row("lost", tuple(map(str, losses)), losses=True, detail=True))
    if any(result.killed for result in results):
        found.append(
            Row("ended by SIGKILL", tuple(str(result.killed) for result in results), losses=True)
        )
    found += [
        Row("gone after", tuple(_seconds(result.gone_after) for result in results)),
        Row("budget used", tuple(_share(result) for result in results)),
        Row("last request", tuple(_seconds(_last(result)) for result in results)),
        Row(
            "slowest answer",
            tuple(_seconds(tally.summary()["latency_max"] or None, 2) for tally in tallies),
        ),
        Row(
            "generator lag p99",
            tuple(f"{percentile(tally.lags, 99) * 1000:.1f} ms" for tally in tallies),
        ),
    ]
    return found


def table(results: Sequence[Result], paint: Paint = unpainted) -> str:
    """Return the table of the contenders, three side by side.

    ``gone after`` is the longest time from the deletion of an instance to its end, and ``budget
    used`` its share of the period. ``last request`` is the time at which the last request was
    routed to a deleted instance. ``slowest answer`` is the slowest request that was not lost.
    """
    blocks = []
    for first in range(0, len(results), _ABREAST):
        abreast = results[first : first + _ABREAST]
        names = "".join(_fit(result.contender.name, _CELL - 1).rjust(_CELL) for result in abreast)
        lines = [paint(" " * _LABEL + names, "head"), "-" * (_LABEL + _CELL * len(abreast))]
        for row in rows(abreast):
            cells = []
            for cell in row.cells:
                shown = cell.rjust(_CELL)
                cells.append(
                    paint(shown, "good" if cell == "0" else "bad") if row.losses else shown
                )
            lines.append((("  " if row.detail else "") + row.label).ljust(_LABEL) + "".join(cells))
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def timeline(result: Result, paint: Paint = unpainted) -> str:
    """Return the events of a run as text, with the seconds since the deletions began."""
    lines = [paint(f"{result.contender.name}:", "head")]
    lines += [
        textwrap.fill(f"  {at:6.1f} s  {text}", WIDTH, subsequent_indent=_INDENT)
        for at, text in moments(result, _FOLLOWED)
    ]
    count = len(result.gone)
    if count > _FOLLOWED:
        ends = [gone.exited for gone in result.gone if gone.exited is not None]
        lines.append(
            f"{_INDENT}{count - 1} more like it, "
            f"the last one gone at {max(ends, default=0.0):.1f} s"
        )
    return "\n".join(lines)


def moments(result: Result, followed: int) -> list[tuple[float, str]]:
    """Return the events of a run in their order, with the seconds since the deletions began.

    :param result: the run.
    :param followed: how many deleted instances to show. If there are more, only the first is shown.
    """
    plan, lives = result.plan, {life.name: life for life in result.lives}
    lost = sorted(result.tally.lost_records, key=lambda record: record.started)
    count = len(result.gone)
    found = []
    if plan.rollout is None:
        found.append((0.0, f"{count} deleted, the routing knows it {_lag(plan)} later"))
        if (unrouted := max((life.unrouted or 0.0 for life in result.lives), default=0.0)) > 0:
            found.append((unrouted, "the routing has learned of it"))
    for gone in result.gone if count <= followed else result.gone[:1]:
        who = "" if count == 1 else f"{gone.name} "
        if (life := lives.get(gone.name)) is not None:
            if plan.rollout is not None and life.deleted is not None:
                found.append((life.deleted, f"{who}deleted"))
            # A verdict before the deletion belongs to the start, and one at the end adds nothing to
            # the exit.
            turned = [
                at for at, ready in life.readiness if not ready and at >= (life.deleted or 0.0)
            ]
            if turned and (gone.exited is None or turned[0] < gone.exited):
                found.append((turned[0], f"{who}found not ready by its probe"))
        if gone.pre_stop_done is not None:
            found.append((gone.pre_stop_done, f"{who}preStop hook done"))
        if gone.sigterm is not None:
            found.append((gone.sigterm, f"{who}SIGTERM"))
        if (last := result.last_request(gone)) is not None:
            found.append((last, f"{who}last request routed to it"))
        if gone.exited is not None:
            how = (
                "ended by SIGKILL: the period was over"
                if gone.killed
                else f"gone, exit code {gone.exit_code}"
            )
            found.append((gone.exited, who + how))
        found += [(at, who + text) for at, text in gone.events]
    if lost:
        found.append((lost_at(lost[0], result), f"first request lost: {described(lost[0])}"))
    if len(lost) > 1:
        found.append((lost_at(lost[-1], result), f"last request lost: {described(lost[-1])}"))
    return sorted(found, key=lambda moment: moment[0])


def lost_at(record: RequestRecord, result: Result) -> float:
    """Return the start of a lost request, in seconds since the deletions began."""
    return record.started - result.origin


def described(record: RequestRecord) -> str:
    """Describe a lost request in a few words."""
    to = record.endpoint or "no instance"
    return f"{label(record.outcome)}, {KINDS[record.kind]} to {to}"


def passed(results: Sequence[Result], max_lost: int = 0, interrupted: bool = False) -> bool:
    """Whether the run came to its end and the judged contender, the last one, passed.

    It passes if every instance was gone within its period and at most ``max_lost`` requests were
    lost.
    """
    result = results[-1]
    return not interrupted and not result.killed and result.tally.lost <= max_lost


def verdict(results: Sequence[Result], max_lost: int = 0, interrupted: bool = False) -> str:
    """Return a line about the judged contender, the last one."""
    result = results[-1]
    name, tally = result.contender.name, result.tally
    if interrupted:
        return "Interrupted. " + " ".join(
            f"{each.contender.name} {'lost' if each.complete else 'had lost'} "
            f"{each.tally.lost} of {each.tally.total}."
            for each in results
        )
    if result.killed:
        lost = f"LOST {tally.lost} of" if tally.lost else "lost none of"
        return (
            f"{name} {lost} {tally.total} requests, "
            f"but {number(result.killed, 'instance')} had to be ENDED BY SIGKILL."
        )
    if tally.lost > max_lost:
        allowed = f" --max-lost allows {max_lost}." if max_lost else ""
        return f"{name} LOST {tally.lost} of {tally.total} requests.{allowed}"
    others = "".join(f" {other.contender.name} lost {other.tally.lost}." for other in results[:-1])
    lost = f"{tally.lost}, as --max-lost {max_lost} allows, of" if tally.lost else "none of"
    return f"{name} lost {lost} {tally.total} requests.{others}"


def _lag(plan: Plan) -> str:
    return f"{plan.lag:g} s" if plan.routing is None else str(plan.routing)


def _last(result: Result) -> float | None:
    return max(
        (at for gone in result.gone if (at := result.last_request(gone)) is not None), default=None
    )


def _seconds(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f} s"


def _share(result: Result) -> str:
    used = result.budget_used
    return "-" if used is None else f"{100 * used:.0f} % of {result.plan.period:g} s"


def _fit(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."
