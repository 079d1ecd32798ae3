"""The records of a run, counted in steps of time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from gunicorn_grace.rehearsal.load.tally import RequestOutcome
from gunicorn_grace.rehearsal.report.series import MOST_STEPS, STEP, count
from support.rehearsed import DELETED, ORIGIN, record

pytestmark = pytest.mark.once


def test_each_request_counts_in_the_step_in_which_it_began() -> None:
    """Three outcomes in two steps, one of them before the deletion; steps lie on whole multiples of
    a tenth."""
    series = count(
        [
            record(-0.05),
            record(0.05),
            record(0.07, RequestOutcome.REFUSED),
            record(0.31, RequestOutcome.RESET),
        ],
        ORIGIN,
        ORIGIN + 0.4,
    )
    assert (round(series.start, 3), series.step) == (-STEP, STEP)
    assert series.began[RequestOutcome.OK][:3] == [1, 1, 0]
    assert series.began[RequestOutcome.REFUSED][:3] == [0, 1, 0]
    assert series.began[RequestOutcome.RESET][4] == 1
    assert [series.lost(index) for index in range(5)] == [0, 1, 0, 0, 1]
    assert round(series.at(4), 3) == 0.3


def test_what_is_under_way_at_one_moment_is_in_flight_together() -> None:
    """Two that overlap count as two, two that follow each other as one, and a long one in every
    step until its end."""
    overlapping = count(
        [record(0.01, latency=0.02), record(0.02, latency=0.02)], ORIGIN, ORIGIN + 0.05
    )
    following = count(
        [record(0.01, latency=0.01), record(0.03, latency=0.01)], ORIGIN, ORIGIN + 0.05
    )
    long = count(
        [record(0.05, latency=0.4), record(0.25, latency=0.01, endpoint=DELETED)],
        ORIGIN,
        ORIGIN + 1,
        {DELETED},
    )
    assert overlapping.in_flight == [2]
    assert following.in_flight == [1]
    assert long.in_flight == [1, 1, 2, 1, 1, 0, 0, 0, 0, 0, 0]
    assert long.in_flight_deleted == [0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]


def test_a_refused_request_was_never_in_flight() -> None:
    """No connection, no request at the instance."""
    assert (
        count([record(0.0, RequestOutcome.REFUSED, latency=2.0)], ORIGIN, ORIGIN + 1).in_flight[0]
        == 0
    )


def test_a_long_run_gets_longer_steps() -> None:
    """An hour is not counted in 36,000 steps, and every request is still in one."""
    records = [record(at) for at in range(3600)]
    series = count(records, ORIGIN, ORIGIN + 3600)
    assert len(series) <= MOST_STEPS + 1
    assert sum(series.began[RequestOutcome.OK]) == 3600
    assert round(series.step / STEP, 6).is_integer()


def test_a_run_without_a_request_can_be_counted() -> None:
    """Interrupted at once: empty steps, no error."""
    series = count([], ORIGIN, ORIGIN)
    assert len(series) == 1
    assert (series.total(0), series.in_flight) == (0, [0])


@given(
    some.lists(
        some.tuples(
            some.floats(-5, 60), some.floats(0, 20), some.sampled_from(list(RequestOutcome))
        ),
        min_size=1,
        max_size=60,
    )
)
def test_no_request_is_missed_and_none_counted_twice(
    drawn: list[tuple[float, float, RequestOutcome]],
) -> None:
    """Whatever the moments, the steps add up to the records, and nobody is in flight who is not
    there."""
    records = [record(at, outcome, latency=latency) for at, latency, outcome in drawn]
    series = count(records, ORIGIN, ORIGIN + 1)
    for outcome in RequestOutcome:
        assert sum(series.began[outcome]) == sum(r.outcome is outcome for r in records)
    assert max(series.in_flight) <= sum(r.outcome is not RequestOutcome.REFUSED for r in records)
    if any(r.outcome is not RequestOutcome.REFUSED and r.ended > r.started for r in records):
        assert max(series.in_flight) >= 1
