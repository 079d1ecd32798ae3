"""Writes the advice of a report: a remedy if the rehearsal failed, and the gain if it passed.

Without a remedy, the reader of a verdict would have to study the log. The numbers that explain a
failure are all in the result, so this module says which of them matters and what to set.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..load.tally import HELD, ConnectionKind, RequestOutcome, RequestRecord
from ..plan import GRACE, PLAIN
from ..result import Gone, Result

SLEEP = 15.0
"""The sleep of the preStop hook that most charts have, in seconds. The gain is measured against it
if no contender with such a hook was played."""

MOST_NAMED = 3
"""The largest number of requests that are named."""


def advice(results: Sequence[Result], max_lost: int = 0, interrupted: bool = False) -> str:
    """Return the remedy for the judged contender, or its gain.

    :param results: the runs; the last one is judged.
    :param max_lost: how many lost requests are still a success.
    :param interrupted: whether Ctrl-C ended the rehearsal.
    :returns: one or two sentences; empty if there is no advice.
    """
    result = results[-1]
    if interrupted:
        return ""
    if result.fell_behind:
        return "The numbers cannot be trusted: this machine was too busy. Lower --rate."
    if result.killed:
        return _why_killed(result)
    if result.tally.lost > max_lost:
        return _why_lost(result)
    return _gain(results) if result.contender.name == GRACE.name else ""


def _gain(results: Sequence[Result]) -> str:
    """Say how much sooner the instances were gone than with a hook that only sleeps."""
    gone = results[-1].gone_after
    slept = [
        (other.gone_after, other.contender.name)
        for other in results[:-1]
        if other.contender.pre_stop is not None and other.gone_after is not None
    ]
    if slept:
        seconds, name = min(slept)
        than = f"sooner than with {name}"
    else:
        seconds, than = SLEEP, f"before a preStop hook that sleeps {SLEEP:g} s would have ended"
    if gone is None or seconds - gone < 1:
        return ""
    return f"The last instance was gone {seconds - gone:.0f} s {than}."


def _why_killed(result: Result) -> str:
    """Say why an instance was still running at the end of the period, and what to do."""
    period, counted_on = result.plan.period, result.period_counted_on
    deleted = {life.name: life.deleted or 0.0 for life in result.lives}
    hook = max(
        (g.sigterm - deleted.get(g.name, 0.0) for g in result.gone if g.sigterm is not None),
        default=0.0,
    )
    if counted_on is not None and hook >= 1 and counted_on > period - hook:
        return (
            f"The preStop hook took {hook:.0f} s of the period of {period:g} s, and the plugin "
            f"counted on {counted_on:g} s (grace_termination_period) from SIGTERM on: leave out "
            f"the hook, or set grace_termination_period to {max(1, math.floor(period - hook))}."
        )
    if counted_on is not None and counted_on > period:
        return (
            f"The plugin counted on {counted_on:g} s (grace_termination_period), and the period is "
            f"{period:g} s: set grace_termination_period to {period:g}, or raise the period to "
            f"{counted_on:g} s."
        )
    late = [gone.pre_stop_problem for gone in result.gone if gone.killed and gone.pre_stop_problem]
    if late:
        return f"The period includes the hook: {late[0]}."
    held = _named(_pending(result)) or "Something"
    waits = "" if counted_on is not None else " gunicorn waits for it for graceful_timeout."
    return f"{held} held the instance to the end of the period of {period:g} s.{waits}"


def _pending(result: Result) -> list[RequestRecord]:
    """Return the requests that an instance was serving in the second before its SIGKILL."""
    found = []
    for gone in result.gone:
        if gone.killed and gone.exited is not None:
            end = result.origin + gone.exited
            found += [
                record
                for record in result.tally.records
                if record.endpoint == gone.endpoint and record.started < end - 1 < record.ended
            ]
    return found


def _latest_after_a_hook(result: Result) -> tuple[float, float]:
    """Return how long after its own deletion the last request came to an instance, and when the
    instance's hook was done, both in seconds. It is the instance with the latest such request."""
    deleted = {life.name: life.deleted or 0.0 for life in result.lives}
    seen = [
        (
            at - deleted.get(gone.name, 0.0),
            (gone.pre_stop_done or 0.0) - deleted.get(gone.name, 0.0),
        )
        for gone in result.gone
        if (at := result.last_request(gone)) is not None
    ]
    return max(seen, default=(0.0, 0.0))


def _why_lost(result: Result) -> str:
    """Say what to do about lost requests."""
    lost = result.tally.lost_records
    if 2 * result.lost_elsewhere >= len(lost):
        less = "--rate or --held" if result.tally.held else "--rate"
        return (
            f"{result.lost_elsewhere} of {len(lost)} went to instances that stayed: "
            f"lower {less}, or add --workers."
        )
    if any(record.outcome is RequestOutcome.NOT_READY for record in lost):
        named = _named([r for r in lost if r.outcome is RequestOutcome.NOT_READY])
        return f"{named} is a probe, which is not ready during a shutdown: leave it out."
    last = _last_after(result)
    if result.contender.name == PLAIN.name:
        return (
            f"gunicorn closes its listener at SIGTERM, and the last request came {last:.1f} s "
            "later. The plugin keeps it open for that long."
            if last is not None
            else ""
        )
    if result.contender.pre_stop is not None:
        arrived, slept = _latest_after_a_hook(result)
        if arrived > slept:
            return (
                f"The last request came {arrived:.1f} s after the deletion, and the hook slept "
                f"{slept:.1f} s: sleep at least {math.ceil(arrived + 1)} s."
            )
    over = max((_delay_over(result, gone) or 0.0 for gone in result.gone), default=0.0)
    late = [at for record in lost if (at := result.since_t0(record)) is not None and at >= over]
    if last is not None and over and late:
        last = max(last, *late)
        return (
            f"The last request came {last:.1f} s after T0, and the delay was over after "
            f"{over:.1f} s: set grace_shutdown_delay to at least {math.ceil(last + 1)}."
        )
    cut = [r for r in lost if r.outcome in (RequestOutcome.TRUNCATED, RequestOutcome.TIMEOUT)]
    if streams := [record for record in cut if record.kind is ConnectionKind.STREAM]:
        return (
            f"{_named(streams)} was cut off: end the stream in time with "
            "gunicorn_grace.until_terminating."
        )
    if cut:
        longest = max(record.latency for record in cut)
        return (
            f"{_named(cut)} had not ended after {longest:.1f} s: raise graceful_timeout and the "
            "period, or make it shorter."
        )
    return f"--json and --html list each lost request; the first: {_described(lost[0])}."


def _last_after(result: Result) -> float | None:
    """Return the time of the last request to a deleted instance, in seconds since its T0; None if
    no request came after T0."""
    deleted = {gone.endpoint for gone in result.gone}
    times = [
        since
        for record in result.tally.records
        if record.endpoint in deleted and (since := result.since_t0(record)) is not None
    ]
    return max((since for since in times if since > 0), default=None)


def _delay_over(result: Result, gone: Gone) -> float | None:
    """Return the time at which the delay of an instance was over, in seconds since its T0; None if
    the plugin did not log it."""
    said = {text.split(maxsplit=1)[0]: at for at, text in reversed(gone.events)}
    began, over = said.get("shutdown_initiated"), said.get("lame_duck_ended")
    return None if began is None or over is None else over - began


def _named(records: Sequence[RequestRecord]) -> str:
    """Return the names of the requests, each only once."""
    names = list(dict.fromkeys(_name(record) for record in records))
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _name(record: RequestRecord) -> str:
    if record.kind in HELD:
        word = "The stream" if record.kind is ConnectionKind.STREAM else "The WebSocket"
        return f"{word} {record.path}"
    return f"{record.method} {record.path}"


def _described(record: RequestRecord) -> str:
    return f"{_name(record)}, {record.error or record.outcome.value}"
