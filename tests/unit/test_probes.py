"""The answers to the probes: DESIGN section 9, for every phase and kind."""

from __future__ import annotations

import itertools

import pytest

from gunicorn_grace.phase import Phase
from gunicorn_grace.probes import FORBIDDEN, NOT_ALLOWED, Answer, Kind, Probes, Situation
from gunicorn_grace.settings import Settings

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
    status = Probes(Settings()).answer(kind, Situation(phase)).status
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
def test_readiness_can_turn_later_but_not_while_draining(phase: Phase, since_t0: float, status: int) -> None:
    """``grace_readiness_delay`` 3: ready for 3 s of LAME_DUCK, never once no connection is taken any more."""
    probes = Probes(Settings(readiness_delay=3))
    assert probes.answer(Kind.READINESS, Situation(phase, since_t0)).status == status


@pytest.mark.parametrize("phase", [Phase.LAME_DUCK, Phase.DRAINING])
def test_an_upgraded_instance_stays_ready(phase: Phase) -> None:
    """The new arbiter serves the same sockets: whoever gets this answer is asking about both."""
    assert Probes(Settings()).answer(Kind.READINESS, Situation(phase, 5, upgraded=True)).status == 200


def test_the_paths_are_those_of_the_settings_and_the_alias() -> None:
    """``/healthz`` is liveness wherever liveness is."""
    assert Probes(Settings()).paths == {
        "/readyz": Kind.READINESS,
        "/livez": Kind.LIVENESS,
        "/startupz": Kind.STARTUP,
        "/healthz": Kind.LIVENESS,
    }
    moved = Probes(Settings(readiness_path="/r", liveness_path="/l", startup_path="/s")).paths
    assert moved == {"/r": Kind.READINESS, "/l": Kind.LIVENESS, "/s": Kind.STARTUP, "/healthz": Kind.LIVENESS}


@pytest.mark.parametrize(
    ("answer", "status_line", "body"),
    [
        (Probes(Settings()).answer(Kind.READINESS, Situation(Phase.SERVING)), "200 OK", "ok\n"),
        (
            Probes(Settings()).answer(Kind.READINESS, Situation(Phase.LAME_DUCK)),
            "503 Service Unavailable",
            "[-]shutdown failed: reason withheld\n",
        ),
        (
            Probes(Settings()).answer(Kind.STARTUP, Situation(Phase.STARTING)),
            "503 Service Unavailable",
            "[-]booted failed: reason withheld\n",
        ),
        (FORBIDDEN, "403 Forbidden", "forbidden\n"),
        (NOT_ALLOWED, "405 Method Not Allowed", "method not allowed\n"),
    ],
    ids=["ok", "shutdown", "booted", "forbidden", "method"],
)
def test_an_answer_is_complete_and_withholds_reasons(answer: Answer, status_line: str, body: str) -> None:
    """Plain text that nobody caches or sniffs; which check failed is on the wire, and why is not."""
    assert (answer.status_line, answer.body) == (status_line, body)
    headers = dict(answer.headers)
    assert headers.pop("Content-Type") == "text/plain; charset=utf-8"
    assert headers.pop("Cache-Control") == "no-store"
    assert headers.pop("X-Content-Type-Options") == "nosniff"
    assert headers == ({"Allow": "GET, HEAD"} if answer.status == 405 else {})


def test_the_shutdown_is_just_a_named_check() -> None:
    """``failed`` names it, beside those that fail for other reasons."""
    probes = Probes(Settings())
    assert list(probes.failed(Kind.READINESS, Situation(Phase.DRAINING))) == ["shutdown"]
    assert list(probes.failed(Kind.READINESS, Situation(Phase.STARTING))) == ["booted"]
    assert list(probes.failed(Kind.LIVENESS, Situation(Phase.DRAINING))) == []
