"""The remedy after a rehearsal that failed, and the gain of one that passed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from gunicorn_grace.rehearsal.command.contenders import contender_named
from gunicorn_grace.rehearsal.load.tally import ConnectionKind, RequestOutcome
from gunicorn_grace.rehearsal.plan import GRACE, PLAIN, Contender, Plan
from gunicorn_grace.rehearsal.report.advice import advice
from gunicorn_grace.rehearsal.result import Result
from support.rehearsed import DELETED, STAYED, plain, record, refused, result

pytestmark = pytest.mark.once

SLEEP = contender_named("sleep:15")
TOLD = "[1] gunicorn-grace: lame duck 10 s, then up to 18 s to drain, gone by 28 s of 30 s"


def routed_until(last: float, over: float, **more: Any) -> Result:
    """A run in which the deleted instance gets its last request, and refuses it, after the delay
    was over."""
    events = (
        (0.0, "shutdown_initiated by SIGTERM: not ready for 1 s"),
        (over, f"lame_duck_ended after {over:.1f} s: delay elapsed"),
    )
    run = result(lost=refused(last), events=events, **more)
    records = [
        r for r in run.tally.records if r.endpoint == STAYED or r.started - run.origin <= last
    ]
    return replace(run, tally=replace(run.tally, records=records))


def killed(
    contender: Contender = GRACE,
    *,
    period: float = 10,
    said: str = TOLD,
    sigterm: float = 0.0,
    lost: Sequence[Any] = (),
) -> Result:
    """A run whose instance was ended by SIGKILL at the end of the period."""
    run = result(contender, plan=Plan("app:app", rate=10, period=period), seconds=12, lost=lost)
    (gone,) = run.gone
    gone = replace(gone, sigterm=sigterm, exited=period, exit_code=-9, killed=True)
    return replace(run, gone=(gone,), outputs={gone.name: said})


def test_a_delay_that_is_too_short_gets_its_number() -> None:
    """The last request, the delay, and the smallest delay that would have been enough."""
    assert advice([routed_until(4.0, 0.5)]) == (
        "The last request came 4.0 s after T0, and the delay was over after 0.5 s: "
        "set grace_shutdown_delay to at least 5."
    )


def test_an_instance_that_was_killed_gets_the_cause() -> None:
    """The plugin counts on a period that the platform does not grant, with a hook or without."""
    assert advice([killed()]) == (
        "The plugin counted on 30 s (grace_termination_period), and the period is 10 s: "
        "set grace_termination_period to 10, or raise the period to 30 s."
    )
    hook = killed(period=30, sigterm=15.0)
    assert "took 15 s of the period of 30 s" in advice([hook])
    assert advice([hook]).endswith("set grace_termination_period to 15.")
    warned = (
        "[1] gunicorn-grace: grace_shutdown_delay 25 + graceful_timeout 30 + grace_exit_margin 2 = "
        "57 s > grace_termination_period 20 s: draining will be cut to 3 s"
    )
    assert "counted on 20 s" in advice([killed(said=warned)])


def test_what_held_an_instance_to_the_end_is_named() -> None:
    """Without the plugin nothing is known of a period, but the requests are."""
    stream = record(
        1.0,
        latency=9.5,
        kind=ConnectionKind.STREAM,
        path="/events",
        endpoint=DELETED,
    )
    run = killed(PLAIN, said="", lost=[stream])
    assert advice([run]) == (
        "The stream /events held the instance to the end of the period of 10 s. "
        "gunicorn waits for it for graceful_timeout."
    )


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (
            result(lost=[record(1.0, RequestOutcome.REFUSED, endpoint=STAYED)]),
            "1 of 1 went to instances that stayed: lower --rate, or add --workers.",
        ),
        (
            result(lost=[record(1.0, RequestOutcome.NOT_READY, path="/readyz", endpoint=DELETED)]),
            "GET /readyz is a probe, which is not ready during a shutdown: leave it out.",
        ),
        (
            result(
                lost=[
                    record(
                        1.0,
                        RequestOutcome.TRUNCATED,
                        latency=4.4,
                        kind=ConnectionKind.STREAM,
                        path="/events",
                        endpoint=DELETED,
                    )
                ]
            ),
            "The stream /events was cut off: end the stream in time with "
            "gunicorn_grace.until_terminating.",
        ),
        (
            result(
                lost=[
                    record(
                        1.0,
                        RequestOutcome.TRUNCATED,
                        latency=4.4,
                        method="POST",
                        path="/upload",
                        endpoint=DELETED,
                    )
                ]
            ),
            "POST /upload had not ended after 4.4 s: raise graceful_timeout",
        ),
        (
            result(lost=[record(1.0, RequestOutcome.RESET, endpoint=DELETED, error="oh dear")]),
            "the first: GET /, oh dear.",
        ),
        (plain(2.0), "The plugin keeps it open for that long."),
    ],
)
def test_each_kind_of_loss_has_its_remedy(run: Result, said: str) -> None:
    """It follows from what was lost, where and when."""
    assert said in advice([run])


def test_a_hook_that_sleeps_too_short_gets_its_number() -> None:
    """The same for the contender that only sleeps."""
    run = routed_until(4.0, 0.5, contender=contender_named("sleep:2"))
    (gone,) = run.gone
    run = replace(run, gone=(replace(gone, pre_stop_done=2.0, sigterm=2.0, events=()),))
    assert advice([run]) == (
        "The last request came 4.0 s after the deletion, and the hook slept 2.0 s: "
        "sleep at least 5 s."
    )


def test_in_a_roll_out_each_hook_counts_from_its_own_deletion() -> None:
    """The instance was deleted 1.5 s after the first one: that is no part of what its hook has to
    sleep."""
    run = routed_until(4.0, 0.5, contender=contender_named("sleep:2"))
    (gone,), (life,) = run.gone, run.lives
    run = replace(
        run,
        gone=(replace(gone, pre_stop_done=3.5, sigterm=3.5, events=()),),
        lives=(replace(life, deleted=1.5),),
    )
    assert advice([run]) == (
        "The last request came 2.5 s after the deletion, and the hook slept 2.0 s: "
        "sleep at least 4 s."
    )


def test_what_passed_tells_its_gain() -> None:
    """Against the hook that was played, or else the one that most charts have; nothing is said
    where nothing was gained."""
    assert advice([result(SLEEP, exited=15.6, seconds=17), result()]) == (
        "The last instance was gone 10 s sooner than with preStop: sleep 15."
    )
    assert advice([result()]) == (
        "The last instance was gone 9 s before a preStop hook that sleeps 15 s would have ended."
    )
    assert advice([result(exited=14.9, seconds=17)]) == ""
    assert advice([result(SLEEP, exited=15.6, seconds=17)]) == ""


def test_numbers_that_mean_nothing_give_no_advice() -> None:
    """After Ctrl-C, and where the load fell behind."""
    assert advice([plain(1.0)], interrupted=True) == ""
    assert "cannot be trusted" in advice([result(fell_behind="too late")])
