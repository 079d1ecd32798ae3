"""The answers to the probes: DESIGN section 9, for every phase and kind."""

from __future__ import annotations

import itertools
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from gunicorn_grace.probes import checks
from gunicorn_grace.probes.answers import (
    FORBIDDEN,
    NOT_ALLOWED,
    NOT_FOUND,
    Answer,
    Answers,
    Query,
    Situation,
    Target,
)
from gunicorn_grace.probes.checks import Outcome
from gunicorn_grace.shared.memory import Memory
from gunicorn_grace.shared.phase import Kind, Phase
from gunicorn_grace.shared.settings import Settings

pytestmark = pytest.mark.once

# liveness, readiness, start-up; STOPPED as the phase before it.
TABLE = {
    Phase.STARTING: (200, 503, 503),
    Phase.SERVING: (200, 200, 200),
    Phase.LAME_DUCK: (200, 503, 200),
    Phase.DRAINING: (200, 503, 200),
    Phase.STOPPED: (200, 503, 200),
}


@pytest.mark.parametrize(("phase", "kind"), list(itertools.product(Phase, Kind)))
def test_the_table(phase: Phase, kind: Kind) -> None:
    """What is alive, ready and started in each phase."""
    status = Answers(Settings()).answer(kind, Situation(phase)).status
    assert status == dict(zip(Kind, TABLE[phase], strict=True))[kind]


@pytest.mark.parametrize(
    ("phase", "since_t0", "status"),
    [
        (Phase.LAME_DUCK, 0, 200),
        (Phase.LAME_DUCK, 2.9, 200),
        (Phase.LAME_DUCK, 3, 503),
        (Phase.DRAINING, 1, 503),
        (Phase.STARTING, 0, 503),
    ],
)
def test_readiness_can_turn_later_but_not_while_draining(
    phase: Phase, since_t0: float, status: int
) -> None:
    """``grace_readiness_delay`` 3: ready for 3 s of LAME_DUCK, never once no connection is taken
    any more."""
    probes = Answers(Settings(readiness_delay=3))
    assert probes.answer(Kind.READINESS, Situation(phase, since_t0)).status == status


@pytest.mark.parametrize("phase", [Phase.LAME_DUCK, Phase.DRAINING])
def test_an_upgraded_instance_stays_ready(phase: Phase) -> None:
    """The new arbiter serves the same sockets: whoever gets this answer is asking about both."""
    assert (
        Answers(Settings()).answer(Kind.READINESS, Situation(phase, 5, upgraded=True)).status == 200
    )


def test_the_paths_are_those_of_the_settings_and_the_alias() -> None:
    """``/healthz`` is liveness wherever liveness is."""
    assert Answers(Settings()).paths == {
        "/readyz": Kind.READINESS,
        "/livez": Kind.LIVENESS,
        "/startupz": Kind.STARTUP,
        "/healthz": Kind.LIVENESS,
    }
    moved = Answers(Settings(readiness_path="/r", liveness_path="/l", startup_path="/s")).paths
    assert moved == {
        "/r": Kind.READINESS,
        "/l": Kind.LIVENESS,
        "/s": Kind.STARTUP,
        "/healthz": Kind.LIVENESS,
    }


@pytest.mark.parametrize(
    ("answer", "status_line", "body"),
    [
        (Answers(Settings()).answer(Kind.READINESS, Situation(Phase.SERVING)), "200 OK", "ok\n"),
        (
            Answers(Settings()).answer(Kind.READINESS, Situation(Phase.LAME_DUCK)),
            "503 Service Unavailable",
            "[-]shutdown failed: reason withheld\n",
        ),
        (
            Answers(Settings()).answer(Kind.STARTUP, Situation(Phase.STARTING)),
            "503 Service Unavailable",
            "[-]booted failed: reason withheld\n",
        ),
        (FORBIDDEN, "403 Forbidden", "forbidden\n"),
        (NOT_FOUND, "404 Not Found", "no such check\n"),
        (NOT_ALLOWED, "405 Method Not Allowed", "method not allowed\n"),
    ],
    ids=["ok", "shutdown", "booted", "forbidden", "unknown", "method"],
)
def test_an_answer_is_complete_and_withholds_reasons(
    answer: Answer, status_line: str, body: str
) -> None:
    """Plain text that nobody caches or sniffs; which check failed is on the wire, and why is
    not."""
    assert (answer.status_line, answer.body) == (status_line, body)
    headers = dict(answer.headers)
    assert headers.pop("Content-Type") == "text/plain; charset=utf-8"
    assert headers.pop("Cache-Control") == "no-store"
    assert headers.pop("X-Content-Type-Options") == "nosniff"
    assert headers == ({"Allow": "GET, HEAD"} if answer.status == 405 else {})


def test_the_shutdown_is_just_a_named_check() -> None:
    """``failed`` names it, beside those that fail for other reasons."""
    probes = Answers(Settings())
    assert list(probes.failed(Kind.READINESS, Situation(Phase.DRAINING))) == ["shutdown"]
    assert list(probes.failed(Kind.READINESS, Situation(Phase.STARTING))) == ["booted"]
    assert list(probes.failed(Kind.LIVENESS, Situation(Phase.DRAINING))) == []


# -- the application's checks ----


UP, DOWN = (
    Outcome("cache", True),
    Outcome("database", False, "OperationalError: no route to 10.9.8.7"),
)
SERVING = Situation(Phase.SERVING)
DOWN_LINE = "[-]database failed: reason withheld\n"


def answer(
    kind: Kind = Kind.READINESS, situation: Situation = SERVING, *outcomes: Outcome, **more: Any
) -> Answer:
    return Answers(Settings()).answer(kind, situation, outcomes, **more)


def test_kinds_are_those_of_the_checks() -> None:
    """One enumeration, wherever it is imported from."""
    assert Kind is checks.Kind


@pytest.mark.parametrize(("phase", "kind"), list(itertools.product(Phase, Kind)))
def test_the_table_with_checks(phase: Phase, kind: Kind) -> None:
    """A check that fails turns what it is a check of while serving, and nothing else: not alive is
    no reason to end what is ending, and before a worker has booted, and from T0 on, nobody need run
    any."""
    expected = 503 if phase is Phase.SERVING else dict(zip(Kind, TABLE[phase], strict=True))[kind]
    assert answer(kind, Situation(phase), UP, DOWN).status == expected
    assert (
        answer(kind, Situation(phase), UP).status
        == dict(zip(Kind, TABLE[phase], strict=True))[kind]
    )
    assert Answers(Settings()).asks_checks(kind, Situation(phase)) is (phase is Phase.SERVING)


def test_checks_count_as_long_as_the_instance_is_ready() -> None:
    """For ``grace_readiness_delay`` after T0, and of one that was upgraded, whose sockets another
    arbiter serves."""
    probes = Answers(Settings(readiness_delay=3))
    for situation in (Situation(Phase.LAME_DUCK, 2.9), Situation(Phase.DRAINING, 5, upgraded=True)):
        assert probes.asks_checks(Kind.READINESS, situation)
        assert (
            probes.answer(Kind.READINESS, situation, [DOWN]).body
            == "[-]database failed: reason withheld\n"
        )
    assert not probes.asks_checks(Kind.READINESS, Situation(Phase.LAME_DUCK, 3))


def test_a_check_without_an_outcome_has_not_passed() -> None:
    """Where it would decide: whoever answers, and could not run it, must not say ready."""
    assert answer(known=("database",)).status == 503
    assert answer(Kind.READINESS, SERVING, UP, known=("cache", "database")).body == DOWN_LINE
    assert answer(Kind.LIVENESS, Situation(Phase.DRAINING), known=("loop",)).status == 200


@pytest.mark.parametrize(
    ("query", "situation", "status", "body"),
    [
        (Query(), SERVING, 503, DOWN_LINE),
        (
            Query(verbose=True),
            SERVING,
            503,
            f"[+]booted ok\n[+]shutdown ok\n[+]cache ok\n{DOWN_LINE}",
        ),
        (
            Query(verbose=True, exclude=frozenset({"database"})),
            SERVING,
            200,
            "[+]booted ok\n[+]shutdown ok\n[+]cache ok\n[ ]database excluded\n",
        ),
        (Query(exclude=frozenset({"database"})), SERVING, 200, "ok\n"),
        (
            Query(verbose=True),
            Situation(Phase.LAME_DUCK),
            503,
            "[+]booted ok\n[-]shutdown failed: reason withheld\n",
        ),
    ],
)
def test_verbose_and_exclude(query: Query, situation: Situation, status: int, body: str) -> None:
    """Verbose lists what passes as well; what is excluded does not count."""
    found = answer(Kind.READINESS, situation, UP, DOWN, query=query)
    assert (found.status, found.body) == (status, body)


@pytest.mark.parametrize("name", ["shutdown", "booted", "nothing", "<script>", "database2"])
def test_what_cannot_be_excluded_warns_and_counts(name: str) -> None:
    """The plugin's own checks, and names of no check: told to whoever asks for the list, and not
    shown to them."""
    query = Query(verbose=True, exclude=frozenset({name, "database"}))
    told = answer(Kind.READINESS, SERVING, UP, DOWN, query=query)
    assert told.status == 200
    assert told.body.endswith(
        "warn: not excluded: 1 given as exclude, no check by that name or the plugin's own\n"
    )
    assert name not in told.body.splitlines()[-1]
    ending = answer(
        Kind.READINESS, Situation(Phase.DRAINING), query=Query(exclude=frozenset({name}))
    )
    assert (ending.status, ending.body) == (503, "[-]shutdown failed: reason withheld\n")


def test_a_liveness_probe_without_checks_has_nothing_to_list() -> None:
    """Then verbose says what is said without it."""
    assert answer(Kind.LIVENESS, query=Query(verbose=True)).body == "ok\n"


@pytest.mark.parametrize(
    ("check", "situation", "status", "body"),
    [
        ("cache", SERVING, 200, "ok\n"),
        ("database", SERVING, 503, DOWN_LINE),
        ("shutdown", SERVING, 200, "ok\n"),
        ("booted", Situation(Phase.STARTING), 503, "[-]booted failed: reason withheld\n"),
        ("cache", Situation(Phase.LAME_DUCK), 503, "[-]shutdown failed: reason withheld\n"),
        ("nothing", SERVING, 404, "no such check\n"),
        ("nothing", Situation(Phase.LAME_DUCK), 404, "no such check\n"),
        ("", SERVING, 404, "no such check\n"),
    ],
)
def test_a_single_check(check: str, situation: Situation, status: int, body: str) -> None:
    """It decides alone, but for the plugin's own that fail: whoever routes by one check has to see
    the flip too."""
    found = answer(Kind.READINESS, situation, UP, DOWN, check=check, known=("cache", "database"))
    assert (found.status, found.body) == (status, body)


def test_a_single_check_cannot_be_excluded() -> None:
    """Or it would pass always."""
    query = Query(exclude=frozenset({"database"}))
    assert answer(Kind.READINESS, SERVING, DOWN, query=query, check="database").status == 503


def test_a_single_check_of_liveness_while_ending_is_200() -> None:
    """As liveness is, without running it."""
    found = answer(Kind.LIVENESS, Situation(Phase.DRAINING), check="loop", known=("loop",))
    assert found == answer(Kind.LIVENESS)


# -- JSON


JSON = Query(as_json=True)


def test_json_says_status_phase_seconds_left_and_checks() -> None:
    """With each check, passing or not; text and JSON never disagree on the status."""
    found = answer(Kind.READINESS, SERVING, UP, DOWN, query=JSON)
    assert found.status == 503
    assert json.loads(found.body) == {
        "status": "failed",
        "phase": "SERVING",
        "seconds_left": None,
        "checks": {"booted": "ok", "shutdown": "ok", "cache": "ok", "database": "failed"},
    }
    headers = dict(found.headers)
    assert headers == {
        "Content-Type": "application/json",
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
    }
    ending = Situation(Phase.LAME_DUCK, 1.0, seconds_left=26.98765)
    query = Query(as_json=True, exclude=frozenset({"cache"}))
    assert json.loads(answer(Kind.READINESS, ending, UP, query=query).body) == {
        "status": "failed",
        "phase": "LAME_DUCK",
        "seconds_left": 26.988,
        "checks": {"booted": "ok", "shutdown": "failed", "cache": "excluded"},
    }
    assert json.loads(answer(Kind.LIVENESS, query=JSON).body)["status"] == "ok"


@pytest.mark.parametrize(
    ("accept", "as_json"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain", False),
        ("application/json", True),
        ("application/json; charset=utf-8", True),
        ("APPLICATION/JSON", True),
        ("application/json, text/plain, */*", True),
        ("application/json;q=0.5, text/plain", True),
        ("text/plain;q=0.5, application/json", True),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", False),
        ("application/*, text/*;q=0.1", False),
        ("application/xml", False),
        ("application/" + ',;="' * 50, False),
    ],
)
def test_json_is_for_those_who_name_it(accept: str, as_json: bool) -> None:
    """What kubelet, balancers and browsers send gets text."""
    assert Query.of("", accept).as_json is as_json


# -- paths and queries ----


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/readyz", Target(Kind.READINESS)),
        ("/healthz", Target(Kind.LIVENESS)),
        ("/readyz/database", Target(Kind.READINESS, "database")),
        ("/healthz/loop", Target(Kind.LIVENESS, "loop")),
        ("/startupz/x", Target(Kind.STARTUP, "x")),
        ("/readyz/", None),
        ("/readyz/a/b", None),
        ("/readyz//a", None),
        ("/readyzz", None),
        ("/", None),
        ("", None),
        ("/__heartbeat__", None),
    ],
)
def test_what_a_path_asks(path: str, target: Target | None) -> None:
    """A probe, a single check of one, or nothing of ours."""
    assert Answers(Settings()).target(path) == target


def test_a_probe_at_the_root_has_no_checks_below_it() -> None:
    """Every path is below ``/``."""
    probes = Answers(Settings(liveness_path="/"))
    assert probes.target("/") == Target(Kind.LIVENESS)
    assert probes.target("/login") is None


def test_dockerflow_paths_are_aliases_when_they_are_wanted() -> None:
    """``/__lbheartbeat__`` asks for liveness, ``/__heartbeat__`` for readiness."""
    probes = Answers(Settings(dockerflow=True))
    assert probes.target("/__lbheartbeat__") == Target(Kind.LIVENESS)
    assert probes.target("/__heartbeat__") == Target(Kind.READINESS)
    assert probes.target("/__heartbeat__/database") == Target(Kind.READINESS, "database")
    moved = Answers(Settings(dockerflow=True, startup_path="/__heartbeat__"))
    assert moved.target("/__heartbeat__") == Target(Kind.STARTUP)


@pytest.mark.parametrize(
    ("query", "meant"),
    [
        ("", Query()),
        ("verbose", Query(verbose=True)),
        ("verbose=1&x=y", Query(verbose=True)),
        ("exclude=a&exclude=b%2Fc", Query(exclude=frozenset({"a", "b/c"}))),
        ("exclude", Query(exclude=frozenset({""}))),
        ("&&=&%zz&verbosee", Query()),
    ],
)
def test_what_a_query_asks(query: str, meant: Query) -> None:
    """As Kubernetes' API server has it: ``verbose`` by being there, ``exclude`` as often as it
    takes."""
    assert Query.of(query) == meant


@given(
    some.text(max_size=200),
    some.text(max_size=100),
    some.sampled_from(Phase),
    some.text(max_size=20),
)
def test_whatever_is_asked_is_answered_and_nothing_of_it_comes_back(
    query: str, accept: str, phase: Phase, check: str
) -> None:
    """No query, header or name raises; the status is one of three; the body holds words of ours
    alone."""
    said = (
        "ok failed excluded reason withheld warn not by that name no such check given as exclude "
        "or the plugin's own "
        "booted shutdown cache database"
    )
    for single in (None, check):
        told = answer(
            Kind.READINESS, Situation(phase), UP, DOWN, query=Query.of(query, accept), check=single
        )
        assert told.status in (200, 404, 503)
        if ("Content-Type", "application/json") in told.headers:
            assert json.loads(told.body).keys() == {"status", "phase", "seconds_left", "checks"}
        else:
            for mark in ("[+]", "[-]", "[ ]", ":", ","):
                told = Answer(told.status, told.body.replace(mark, " "))
            assert {word for word in told.body.split() if not word.isdigit()} <= set(said.split())


def test_a_clock_that_was_read_before_t0_is_not_ready(memory: Memory) -> None:
    """SIGTERM comes between a thread's look at the clock and its look at the memory: 503, as for
    every other probe from then on."""
    memory.header.phase = Phase.SERVING
    before = time.monotonic_ns()
    memory.header.sigterm = before + 1_000_000
    situation = Situation.of(memory, before)
    assert situation.since_t0 == 0
    assert Answers(Settings()).answer(Kind.READINESS, situation).status == 503
