"""The notes of a report, which a reader needs to judge the numbers."""

from __future__ import annotations

from collections.abc import Sequence

from ..load.tally import ConnectionKind, Tally
from ..result import Result

MOST_WARNINGS = 5
"""The largest number of boot warnings among the notes. The JSON document has all of them."""


def notes(results: Sequence[Result]) -> list[str]:
    """Return the notes on these runs."""
    found = []
    for result in results:
        name, tally = result.contender.name, result.tally
        if not result.complete:
            found.append(f"{name}: interrupted; the numbers cover the run until then.")
        if result.fell_behind:
            found.append(f"{name}: CANNOT BE TRUSTED: {result.fell_behind}.")
        if tally.lost:
            found.append(f"{name}: {_lost_by_kind(tally)}.")
        if result.lost_elsewhere:
            found.append(
                f"{name}: {result.lost_elsewhere} of them lost at instances that stayed, "
                "which may be overloaded."
            )
        if tally.skipped and not result.fell_behind:
            found.append(
                f"{name}: not sent, because this machine was too busy: "
                f"{number(tally.skipped, 'request')}; lower --rate."
            )
        if closed := tally.summary()["websockets_closed"]:
            codes = sorted({r.close_code for r in tally.records if r.close_code is not None})
            found.append(
                f"{name}: the server closed {number(closed, 'WebSocket')} with a close frame "
                f"({', '.join(map(str, codes))}); the clients connected again."
            )
        found += sorted(
            {f"{name}: {gone.pre_stop_problem}" for gone in result.gone if gone.pre_stop_problem}
        )
        codes = sorted(
            {gone.exit_code for gone in result.gone if gone.exit_code and not gone.killed}
        )
        if codes:
            found.append(f"{name}: exit codes other than 0: {', '.join(map(str, codes))}.")
    return found + _boot_notes(results)


def _lost_by_kind(tally: Tally) -> str:
    """Return the number of lost requests for each kind of connection, as text."""
    counts = tally.summary()
    text = (
        f"{counts['lost_fresh']} lost on fresh connections, {counts['lost_kept']} on kept-alive "
        "ones"
    )
    for kind, word in ((ConnectionKind.STREAM, "stream"), (ConnectionKind.WEBSOCKET, "WebSocket")):
        if tally.of(kind):
            text += f", {number(counts[f'lost_{kind.value}'], word)}"
    return text


def _boot_notes(results: Sequence[Result]) -> list[str]:
    """Return the warnings and errors that the instances logged while they booted. A text has no
    contender's name if all contenders logged it."""
    said: dict[str, list[str]] = {}
    for result in results:
        for text in result.boot_warnings:
            said.setdefault(text, []).append(result.contender.name)
    found = [
        ("" if len(names) == len(results) else f"{', '.join(names)}: ") + f"at boot, {text}"
        for text, names in said.items()
    ]
    if (more := len(found) - MOST_WARNINGS) > 0:
        found[MOST_WARNINGS:] = [f"at boot, {more} more warnings and errors; --json has them all."]
    return found


def number(count: int, thing: str) -> str:
    """Return a count with its noun, such as ``1 instance`` or ``2 instances``."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"
