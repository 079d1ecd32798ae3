"""What is told of a rehearsal as text and as JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import jsonschema
import pytest

from gunicorn_grace.rehearsal.command.contenders import (
    contender_named,
)
from gunicorn_grace.rehearsal.kubernetes.rollout import Rollout
from gunicorn_grace.rehearsal.kubernetes.routing import Lag
from gunicorn_grace.rehearsal.load.tally import ConnectionKind, RequestOutcome
from gunicorn_grace.rehearsal.plan import PLAIN, Plan
from gunicorn_grace.rehearsal.report import schema
from gunicorn_grace.rehearsal.report import text as report_text
from gunicorn_grace.rehearsal.result import Gone, Result
from support.rehearsed import DELETED, plain, record, refused, result

pytestmark = pytest.mark.once

MADE = datetime(2026, 7, 1, 12, tzinfo=timezone.utc)
SLEEP = contender_named("sleep:15")


def three() -> list[Result]:
    """All three contenders, and only plain gunicorn loses."""
    return [plain(0.1, 0.2, 2.9), result(SLEEP, exited=15.4, seconds=17), result()]


# -- text ----


def test_three_contenders_stand_side_by_side_in_80_columns() -> None:
    """Lost, exit, budget and slowest answer of each in one row, under the names."""
    assert max(map(len, report_text.render(three()).splitlines())) <= report_text.WIDTH
    lines = report_text.table(three()).splitlines()
    cells = {line[:17].strip(): line[17:].split() for line in lines if line[:17].strip()}
    assert next(line.split() for line in lines if "sleep 15" in line)[:2] == ["plain", "gunicorn"]
    assert cells["lost"] == ["3", "0", "0"]
    assert cells["refused"] == ["3", "0", "0"]
    assert cells["gone after"] == ["0.4", "s", "15.4", "s", "5.6", "s"]
    assert cells["budget used"] == [
        "1",
        "%",
        "of",
        "30",
        "s",
        "51",
        "%",
        "of",
        "30",
        "s",
        "19",
        "%",
        "of",
        "30",
        "s",
    ]
    assert cells["slowest answer"] == ["0.01", "s"] * 3


def test_more_contenders_than_fit_go_below() -> None:
    """A fourth one gets a table of its own, and nothing is wider than the terminal."""
    results = [*three()[:2], result(contender_named("sleep:5")), result()]
    text = report_text.table(results)
    assert max(map(len, text.splitlines())) <= report_text.WIDTH
    assert len([line for line in text.splitlines() if line.startswith("budget used")]) == 2


@pytest.mark.parametrize(
    "outcome", [outcome for outcome in RequestOutcome if outcome is not RequestOutcome.OK]
)
def test_every_kind_of_loss_has_its_row(outcome: RequestOutcome) -> None:
    """And only those that occurred."""
    found = report_text.rows([result(lost=[record(1.0, outcome, status=500)])])
    assert [row.label for row in found if row.detail] == [report_text.label(outcome)]


def test_the_last_line_is_the_verdict() -> None:
    """The line that the README promises: who lost nothing, and what the other one lost."""
    assert report_text.render([plain(0.5), result()]).splitlines()[-1] == (
        "gunicorn-grace lost none of 70 requests. plain gunicorn lost 1."
    )


@pytest.mark.parametrize(
    ("results", "max_lost", "interrupted", "passed", "words"),
    [
        ([result()], 0, False, True, "gunicorn-grace lost none of 70 requests."),
        (
            [plain(1.0), result()],
            0,
            False,
            True,
            "lost none of 70 requests. plain gunicorn lost 1.",
        ),
        ([result(lost=refused(1.0))], 0, False, False, "gunicorn-grace LOST 1 of 71 requests."),
        (
            [result(lost=refused(1.0))],
            1,
            False,
            True,
            "gunicorn-grace lost 1, as --max-lost 1 allows, of 71 requests.",
        ),
        (
            [result(lost=refused(1, 2))],
            1,
            False,
            False,
            "LOST 2 of 72 requests. --max-lost allows 1.",
        ),
        ([result()], 0, True, False, "Interrupted. gunicorn-grace lost 0 of 70."),
        (
            [plain(1.0), result(complete=False)],
            9,
            True,
            False,
            "lost 1 of 71. gunicorn-grace had lost 0 of 70.",
        ),
    ],
)
def test_the_verdict_is_that_on_the_last_contender(
    results: list[Result], max_lost: int, interrupted: bool, passed: bool, words: str
) -> None:
    """Losses up to --max-lost pass, an interrupted rehearsal never does."""
    assert report_text.passed(results, max_lost, interrupted) is passed
    assert words in report_text.verdict(results, max_lost, interrupted)


def test_an_instance_ended_by_sigkill_fails_whatever_may_be_lost() -> None:
    """To outlive the period is a failure of its own, and the comparison has a row for it."""
    end = Gone("instance 3", DELETED, 0.0, 30.0, 30.0, -9, True, None, "", ())
    run = result(gone=(end,))
    assert not report_text.passed([run], max_lost=100)
    assert "1 instance had to be ENDED BY SIGKILL" in report_text.verdict([run])
    assert ("ended by SIGKILL", ("1",)) in [
        (row.label, row.cells) for row in report_text.rows([run])
    ]


def test_a_run_that_cannot_be_trusted_says_so() -> None:
    """A generator that fell behind is named before the verdict, with its reason."""
    text = report_text.render([result(fell_behind="the load generator was 60 ms late")])
    assert "gunicorn-grace: CANNOT BE TRUSTED: the load generator was 60 ms late." in text


def test_the_heading_says_what_was_played() -> None:
    """Scale-downs and roll-outs, one lag or many."""
    assert "3 instances scaled down to 2 at 100 requests per second" in report_text.heading(
        Plan("a:b")
    )
    assert "The routing learns of it 3 s later" in report_text.heading(Plan("a:b"))
    rollout = Plan("a:b", rollout=Rollout(), routing=Lag(1, 8, slow=20, slow_share=0.05))
    assert "3 instances replaced (surge 25%, unavailable 25%)" in report_text.heading(rollout)
    assert "1 to 8 s" in report_text.heading(rollout)
    assert max(map(len, report_text.heading(rollout).splitlines())) <= report_text.WIDTH
    held = Plan("a:b", stream_path="/events", websocket_path="/ws", held=4)
    assert "Held open: 4 streams at /events and 4 WebSockets at /ws." in report_text.heading(held)


def test_the_timeline_follows_the_instance() -> None:
    """Deletion, SIGTERM, readiness, the plugin's own words and the end, in their order."""
    words = [
        "1 deleted",
        "SIGTERM",
        "shutdown_initiated",
        "found not ready by its probe",
        "routing has learned",
        "lame_duck_ended",
        "gone, exit code 0",
    ]
    text = report_text.timeline(result())
    places = [text.index(word) for word in words]
    assert places == sorted(places)


def test_long_events_are_wrapped_and_not_cut() -> None:
    """The verdict of the plugin's own summary stands at the end of a long line."""
    summary = (
        "stopped: lame duck 5.0 s, draining 0.7 s, " + "12 requests since T0, " * 5 + "it fits"
    )
    run = result(events=[(0.0, "shutdown_initiated by SIGTERM"), (5.5, summary)])
    lines = report_text.timeline(run).splitlines()
    assert max(map(len, lines)) <= report_text.WIDTH
    assert summary in " ".join(" ".join(lines).split())


def test_rows_that_do_not_explain_themselves_are_explained() -> None:
    """Every explanation is of a row that exists, and both the terminal and the page have it."""
    rows = {row.label for row in report_text.rows([result()])}
    assert set(report_text.MEANINGS) <= rows
    for row, meaning in report_text.MEANINGS.items():
        assert f"{row:19}{meaning}\n" in report_text.render([result()])


def test_streams_and_websockets_have_rows_and_notes() -> None:
    """How many there were, how many were lost, and that the server ended some of them well."""
    held = [
        record(1.0, latency=3, kind=ConnectionKind.STREAM),
        record(1.0, latency=3, kind=ConnectionKind.WEBSOCKET, close_code=1012),
        record(2.0, RequestOutcome.REFUSED, kind=ConnectionKind.WEBSOCKET, endpoint=DELETED),
    ]
    run = result(lost=held)
    rows = [(row.label, row.cells) for row in report_text.rows([run])]
    at = rows.index(("streams", ("1",)))
    assert rows[at : at + 4] == [
        ("streams", ("1",)),
        ("lost", ("0",)),
        ("WebSockets", ("2",)),
        ("lost", ("1",)),
    ]
    assert report_text.notes([run]) == [
        "gunicorn-grace: 0 lost on fresh connections, 0 on kept-alive ones, 0 streams, "
        "1 WebSocket.",
        "gunicorn-grace: the server closed 1 WebSocket with a close frame (1012); the clients "
        "connected again.",
    ]
    assert "refused, WebSocket to" in report_text.timeline(run)
    assert ("slowest answer", ("0.01 s",)) in rows


def test_colours_are_paint_and_no_more() -> None:
    """Painted or not, the words are the same; zero losses are good, others bad."""
    painted: list[tuple[str, str]] = []

    def paint(text: str, what: str) -> str:
        painted.append((text.strip(), what))
        return text

    assert report_text.render(three(), paint=paint) == report_text.render(three())
    assert ("3", "bad") in painted
    assert ("0", "good") in painted


# -- JSON


def valid(document: Any) -> Any:
    """The document, once it has been through JSON and its schema."""
    sent = json.loads(json.dumps(document, allow_nan=False))
    jsonschema.Draft202012Validator(schema.schema()).validate(sent)
    return sent


def test_the_document_is_what_its_schema_says() -> None:
    """All outcomes, all contenders, complete or not: every field is described, and no more."""
    jsonschema.Draft202012Validator.check_schema(schema.schema())
    losses = [
        record(n / 10, outcome, kind=kind)
        for n, outcome in enumerate(RequestOutcome)
        for kind in ConnectionKind
    ]
    runs = [*three(), result(lost=losses), result(PLAIN, exited=None, complete=False)]
    document = valid(schema.document(runs, made=MADE, max_lost=3, interrupted=True))
    assert document["made"] == "2026-07-01T12:00:00+00:00"
    assert document["passed"] is False
    assert [run["contender"] for run in document["results"]][:3] == [
        "plain gunicorn",
        "preStop: sleep 15",
        "gunicorn-grace",
    ]
    assert document["results"][1]["budget_used"] == pytest.approx(15.4 / 30)


def test_the_schema_knows_every_outcome() -> None:
    """A new way to lose a request is described before it is reported."""
    defined = schema.schema()["$defs"]
    assert set(defined["timeline"]["properties"]["began"]["properties"]) == {
        outcome.value for outcome in RequestOutcome
    }
    assert {outcome.value for outcome in RequestOutcome} <= set(defined["result"]["properties"])
    assert {*defined["lost_request"]["properties"]["outcome"]["enum"], "ok"} == {
        outcome.value for outcome in RequestOutcome
    }


def test_what_is_not_described_is_refused() -> None:
    """The schema can fail: a field more, one less, and a word where a number belongs."""
    document = schema.document([result()], made=MADE)
    (run,) = document["results"]
    for wrong in (
        {**document, "more": 1},
        {key: value for key, value in document.items() if key != "verdict"},
        {**document, "results": [{**run, "lost": "none"}]},
        {**document, "results": [{**run, "gone": [{}]}]},
    ):
        with pytest.raises(jsonschema.ValidationError):
            valid(wrong)


def test_the_counts_of_the_timeline_add_up_to_the_requests() -> None:
    """What is drawn is what is counted."""
    (run,) = valid(schema.document([plain(0.1, 1.1)], made=MADE))["results"]
    assert sum(map(sum, run["timeline"]["began"].values())) == run["requests"]
    assert sum(run["timeline"]["began"]["refused"]) == run["refused"] == 2


# -- a result ----


def test_the_budget_counts_from_the_deletion_not_from_sigterm() -> None:
    """A hook that sleeps uses up the period too."""
    (gone,) = result().gone
    slept = result(SLEEP, gone=(replace(gone, sigterm=15.0, exited=15.6, exit_after=0.6),))
    assert (slept.exit_after, slept.gone_after) == (0.6, 15.6)
    assert slept.budget_used == pytest.approx(0.52)
    assert result(plan=Plan("app:app", period=0)).budget_used is None
    assert result(exited=None).gone_after is None


def test_a_result_in_a_failing_assertion_is_short() -> None:
    """pytest shows it: not its thousands of records."""
    assert repr(plain(1.0)) == "<Result plain gunicorn: 1 of 71 requests lost>"
