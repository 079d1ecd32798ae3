"""Tells what a rehearsal found: a table, what happened when, and a verdict. Plain text, 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from .scene import Plan, Result
from .tally import Outcome, Record

WIDTH = 80
#: The timeline follows so many instances; of more, only the first.
_FOLLOWED = 2
_COLUMNS = (
    ("requests", 9),
    ("lost", 6),
    ("refused", 8),
    ("reset", 6),
    ("cut off", 8),
    ("timeout", 8),
    ("not 2xx", 8),
    ("exit", 8),
)
_NAME = WIDTH - sum(width for _, width in _COLUMNS)


def render(results: Sequence[Result]) -> str:
    """The whole report on one or more runs of the same plan."""
    parts = [heading(results[0].plan), table(results)]
    parts += [timeline(result) for result in results]
    parts += ["\n".join(textwrap.fill(note, WIDTH) for note in notes(results)), verdict(results)]
    return "\n\n".join(filter(None, parts)) + "\n"


def heading(plan: Plan) -> str:
    """What was played."""
    return (
        f"{plan.app}: {plan.instances} instances scaled down to {plan.remaining} "
        f"at {plan.rate:g} requests per second.\n"
        f"Routing learns of it {plan.lag:g} s later; the period is {plan.period:g} s."
    )


def table(results: Iterable[Result]) -> str:
    """A row for each contender; ``exit`` is the longest time from SIGTERM to the end of an instance."""
    lines = [" " * _NAME + "".join(name.rjust(width) for name, width in _COLUMNS), "-" * WIDTH]
    for result in results:
        tally = result.tally
        cells = [
            str(tally.total),
            str(tally.lost),
            *(
                str(tally.count(outcome))
                for outcome in (
                    Outcome.REFUSED,
                    Outcome.RESET,
                    Outcome.TRUNCATED,
                    Outcome.TIMEOUT,
                )
            ),
            str(sum(map(tally.count, (Outcome.SERVER_ERROR, Outcome.NOT_READY, Outcome.STATUS)))),
            "-" if result.exit_after is None else f"{result.exit_after:.1f} s",
        ]
        row = "".join(cell.rjust(width) for cell, (_, width) in zip(cells, _COLUMNS, strict=True))
        lines.append(result.contender.name[:_NAME].ljust(_NAME) + row)
    return "\n".join(lines)


def timeline(result: Result) -> str:
    """What happened when, in seconds since the deletion."""
    plan = result.plan
    lost = sorted(result.tally.lost_records, key=lambda record: record.started)
    count = len(result.gone)
    entries = [
        (0.0, f"{count} deleted, routed to for {plan.lag:g} s more"),
        (plan.lag, "routing has learned of it"),
    ]
    followed = result.gone if count <= _FOLLOWED else result.gone[:1]
    for gone in followed:
        who = "" if count == 1 else f"{gone.name} "
        if gone.pre_stop_done is not None:
            entries.append((gone.pre_stop_done, f"{who}preStop hook done"))
        if gone.sigterm is not None:
            entries.append((gone.sigterm, f"{who}SIGTERM"))
        if gone.exited is not None:
            how = "killed: the period was over" if gone.killed else f"gone, exit code {gone.exit_code}"
            entries.append((gone.exited, who + how))
        entries += [(at, who + text) for at, text in gone.events]
    if lost:
        entries.append((lost_at(lost[0], result), f"first request lost: {described(lost[0])}"))
    if len(lost) > 1:
        entries.append((lost_at(lost[-1], result), f"last request lost: {described(lost[-1])}"))
    entries.sort(key=lambda entry: entry[0])
    lines = [f"{result.contender.name}:"]
    lines += [_cut(f"  {at:6.1f} s  {text}") for at, text in entries]
    if len(followed) < count:
        ends = [gone.exited for gone in result.gone if gone.exited is not None]
        lines.append(f"            {count - 1} more alike, the last one gone at {max(ends, default=0.0):.1f} s")
    return "\n".join(lines)


def lost_at(record: Record, result: Result) -> float:
    """When a lost request was started, in seconds since the deletion."""
    return record.started - result.origin


def described(record: Record) -> str:
    """A lost request in a few words."""
    return f"{record.outcome.value}, {record.kind.value} connection to {record.endpoint}"


def notes(results: Sequence[Result]) -> list[str]:
    """What makes the numbers mean less, or more, than they seem to."""
    found = []
    for result in results:
        name, tally = result.contender.name, result.tally
        if tally.lost:
            fresh, kept = (tally.summary()[f"lost_{kind}"] for kind in ("fresh", "kept"))
            found.append(f"{name}: {fresh} lost on fresh connections, {kept} on kept-alive ones.")
        if result.lost_elsewhere:
            found.append(f"{name}: {result.lost_elsewhere} of them lost by instances that stayed: overloaded?")
        if tally.skipped:
            found.append(f"{name}: {tally.skipped} requests were not sent: this machine was too busy; lower --rate.")
        found += sorted({f"{name}: {gone.pre_stop_problem}" for gone in result.gone if gone.pre_stop_problem})
        codes = sorted({gone.exit_code for gone in result.gone if gone.exit_code and not gone.killed})
        if codes:
            found.append(f"{name}: exit codes other than 0: {', '.join(map(str, codes))}.")
    return found


def verdict(results: Sequence[Result]) -> str:
    """One line on the contender that is judged: the last one."""
    result = results[-1]
    name, tally = result.contender.name, result.tally
    if result.killed:
        return f"{name} LOST {tally.lost} of {tally.total} requests; {result.killed} instances had to be killed."
    if tally.lost:
        return f"{name} LOST {tally.lost} of {tally.total} requests."
    others = "".join(f" {other.contender.name} lost {other.tally.lost}." for other in results[:-1])
    return f"{name} lost none of {tally.total} requests.{others}"


def _cut(line: str) -> str:
    return line if len(line) <= WIDTH else line[: WIDTH - 3] + "..."
