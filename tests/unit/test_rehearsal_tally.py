"""The arithmetic of losses."""

from __future__ import annotations

import json

import pytest

from gunicorn_grace.rehearsal.tally import Kind, Outcome, Record, Tally, percentile


def record(outcome: Outcome = Outcome.OK, kind: Kind = Kind.FRESH, latency: float = 0.1) -> Record:
    return Record(1.0, kind, "/", outcome, 200 if outcome is Outcome.OK else None, latency, "127.0.0.1:1")


def test_everything_but_a_complete_2xx_is_lost() -> None:
    """One record of each outcome: all are lost but the one that is ok, and they keep their order."""
    tally = Tally([record(outcome) for outcome in Outcome])
    assert tally.total == len(Outcome)
    assert tally.lost == len(Outcome) - 1
    assert [lost.outcome for lost in tally.lost_records] == [o for o in Outcome if o is not Outcome.OK]


def test_counts_are_kept_by_outcome_and_by_kind() -> None:
    """A count can be narrowed to fresh or kept-alive connections, by the enum or by its word."""
    tally = Tally([record(Outcome.RESET, Kind.KEPT), record(Outcome.RESET, Kind.FRESH), record(kind=Kind.KEPT)])
    assert tally.count(Outcome.RESET) == 2
    assert tally.count(Outcome.RESET, Kind.KEPT) == 1
    assert tally.count(Outcome.RESET, "fresh") == 1
    assert tally.count(Outcome.OK, Kind.FRESH) == 0


def test_the_summary_adds_up_and_goes_into_json() -> None:
    """The outcomes sum up to the requests, both kinds of lost ones to the lost, and JSON takes all of it."""
    tally = Tally([record(o, k) for o in Outcome for k in Kind], lags=[0.001, 0.002], skipped=3)
    summary = json.loads(json.dumps(tally.summary()))
    assert sum(summary[outcome.value] for outcome in Outcome) == summary["requests"] == 12
    assert summary["lost_fresh"] + summary["lost_kept"] == summary["lost"] == 10
    assert summary["skipped"] == 3
    assert summary["lag_max"] == 0.002


def test_latencies_are_those_of_answered_requests() -> None:
    """A request that was refused in no time does not make the service look fast, nor a timeout slow."""
    tally = Tally([record(latency=0.2), record(Outcome.REFUSED, latency=0.0), record(Outcome.TIMEOUT, latency=9.0)])
    assert tally.summary()["latency_p50"] == tally.summary()["latency_max"] == 0.2


@pytest.mark.parametrize(
    ("percent", "expected"), [(1, 1.0), (50, 50.0), (99, 99.0), (99.5, 100.0), (100, 100.0), (0, 1.0)]
)
def test_percentiles_are_nearest_rank(percent: float, expected: float) -> None:
    """Of 1 to 100 in any order, the n-th percentile is n, and a fraction goes up to the next value."""
    assert percentile([float(n) for n in range(100, 0, -1)], percent) == expected


def test_an_empty_tally_says_zero() -> None:
    """Nothing measured gives zeros, not an error."""
    assert percentile([], 99) == 0.0
    assert Tally().summary()["lost"] == 0


def test_a_record_knows_when_it_ended() -> None:
    """Start plus latency."""
    assert record(latency=0.5).ended == 1.5
