"""The arithmetic of losses."""

from __future__ import annotations

import json
import re

import pytest

from gunicorn_grace.rehearsal.load.requests import parse_lines
from gunicorn_grace.rehearsal.load.tally import (
    ConnectionKind,
    RequestOutcome,
    RequestRecord,
    Tally,
    percentile,
)
from support.paths import DOCS

pytestmark = pytest.mark.once


def record(
    outcome: RequestOutcome = RequestOutcome.OK,
    kind: ConnectionKind = ConnectionKind.FRESH,
    latency: float = 0.1,
) -> RequestRecord:
    return RequestRecord(
        1.0,
        kind,
        "/",
        outcome,
        200 if outcome is RequestOutcome.OK else None,
        latency,
        "127.0.0.1:1",
    )


def test_everything_but_a_complete_2xx_is_lost() -> None:
    """One record of each outcome: all are lost but the one that is ok, and they keep their
    order."""
    tally = Tally([record(outcome) for outcome in RequestOutcome])
    assert tally.total == len(RequestOutcome)
    assert tally.lost == len(RequestOutcome) - 1
    assert [lost.outcome for lost in tally.lost_records] == [
        o for o in RequestOutcome if o is not RequestOutcome.OK
    ]


def test_counts_are_kept_by_outcome_and_by_kind() -> None:
    """A count can be narrowed to fresh or kept-alive connections, by the enum or by its word."""
    tally = Tally(
        [
            record(RequestOutcome.RESET, ConnectionKind.KEPT),
            record(RequestOutcome.RESET, ConnectionKind.FRESH),
            record(kind=ConnectionKind.KEPT),
        ]
    )
    assert tally.count(RequestOutcome.RESET) == 2
    assert tally.count(RequestOutcome.RESET, ConnectionKind.KEPT) == 1
    assert tally.count(RequestOutcome.RESET, "fresh") == 1
    assert tally.count(RequestOutcome.OK, ConnectionKind.FRESH) == 0


def test_the_summary_adds_up_and_goes_into_json() -> None:
    """The outcomes sum up to the requests, the kinds of lost ones to the lost, and JSON takes all
    of it."""
    tally = Tally(
        [record(o, k) for o in RequestOutcome for k in ConnectionKind],
        lags=[0.001, 0.002],
        skipped=3,
    )
    summary = json.loads(json.dumps(tally.summary()))
    assert (
        sum(summary[outcome.value] for outcome in RequestOutcome)
        == summary["requests"]
        == len(ConnectionKind) * len(RequestOutcome)
    )
    assert (
        sum(summary[f"lost_{kind.value}"] for kind in ConnectionKind)
        == summary["lost"]
        == len(ConnectionKind) * (len(RequestOutcome) - 1)
    )
    assert summary["skipped"] == 3
    assert summary["lag_max"] == 0.002


def test_latencies_are_those_of_answered_requests() -> None:
    """A request that was refused in no time does not make the service look fast, nor a timeout
    slow."""
    tally = Tally(
        [
            record(latency=0.2),
            record(RequestOutcome.REFUSED, latency=0.0),
            record(RequestOutcome.TIMEOUT, latency=9.0),
        ]
    )
    assert tally.summary()["latency_p50"] == tally.summary()["latency_max"] == 0.2


@pytest.mark.parametrize(
    ("percent", "expected"),
    [(1, 1.0), (50, 50.0), (99, 99.0), (99.5, 100.0), (100, 100.0), (0, 1.0)],
)
def test_percentiles_are_nearest_rank(percent: float, expected: float) -> None:
    """Of 1 to 100 in any order, the n-th percentile is n, and a fraction goes up to the next
    value."""
    assert percentile([float(n) for n in range(100, 0, -1)], percent) == expected


def test_an_empty_tally_says_zero() -> None:
    """Nothing measured gives zeros, not an error."""
    assert percentile([], 99) == 0.0
    assert Tally().summary()["lost"] == 0


def test_a_record_knows_when_it_ended() -> None:
    """Start plus latency."""
    assert record(latency=0.5).ended == 1.5


def test_a_generator_that_kept_its_schedule_is_trusted() -> None:
    """One late request of a hundred is not a reason; two are, and the sentence holds both numbers
    and the way out."""
    good = Tally(lags=[0.001] * 99 + [0.5], rate=100.0)
    assert good.fell_behind() == ""
    bad = Tally(lags=[0.001] * 98 + [0.5] * 2, rate=100.0)
    assert "1 of 100 requests 500 ms late or more, and 20 ms are allowed" in bad.fell_behind()
    assert "lower --rate" in bad.fell_behind()


def test_a_stall_at_the_deletion_is_not_lost_in_a_long_run() -> None:
    """Late for 50 ms of a minute: the run as a whole is fine, the second of the deletion is not."""
    lags = [0.001] * 6000
    lags[3000:3005] = [0.3] * 5
    tally = Tally(lags=lags, rate=100.0, began=1000.0)
    assert tally.fell_behind() == ""
    assert tally.fell_behind(1010.0, 1020.0) == ""
    assert "while instances were being deleted" in tally.fell_behind(1029.5, 1031.0)


def test_a_slow_schedule_may_be_late_by_its_own_spacing() -> None:
    """At 10 requests a second, 80 ms late is not skipped, so that it is not called late either."""
    assert Tally(lags=[0.08] * 100, rate=10.0).fell_behind() == ""
    assert Tally(lags=[0.08] * 100, rate=100.0).fell_behind() != ""


def test_the_achieved_rate_leaves_out_what_was_skipped() -> None:
    """Of 100 requests a second 3 % were skipped: 97 a second."""
    assert Tally(lags=[0.0] * 200, skipped=6, rate=100.0).rate_achieved == pytest.approx(97.0)
    assert Tally().rate_achieved == 0.0


PAGE = DOCS / "reference/rehearsal.md"


def test_every_outcome_is_in_the_docs() -> None:
    """The table of classes names each outcome that is a loss, by its name in the JSON, and no
    other."""
    named = re.findall(r"^\| [^|]+ \| `([a-z_]+)` \| ", PAGE.read_text(encoding="utf-8"), re.M)
    assert sorted(named) == sorted(
        outcome.value for outcome in RequestOutcome if outcome is not RequestOutcome.OK
    )


def test_the_requests_in_the_docs_can_be_sent() -> None:
    """The example of a file of requests is one."""
    (example,) = re.findall(
        r"^```text\n(# nine.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S
    )
    requests = parse_lines(example, "urls.txt", lambda name: name.encode())
    assert [request.method for request in requests] == ["GET", "GET", "POST", "PUT", "GET"]
    assert (requests[0].weight, sum(request.weight for request in requests)) == (9, 15)
