"""The answers to the platform's probes, for every way in.

Path, query, phase and the outcomes of checks go in; status, headers and body come out. No
framework, no socket, no clock, and no check is run in here: the overlay, the middleware, the
blueprint and the probe port are thin adapters over this, so that one question has one answer.
Nothing that a caller sent comes back to it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import parse_qs

from ..shared.memory import NS, Memory
from ..shared.phase import Kind, Phase, is_terminating
from ..shared.settings import Settings
from .checks import Outcome

LIVENESS_ALIAS = "/healthz"

DOCKERFLOW_PATHS = {"/__lbheartbeat__": Kind.LIVENESS, "/__heartbeat__": Kind.READINESS}
"""With ``grace_dockerflow``: the paths that Mozilla's Dockerflow gives to the two questions."""

HEADERS: tuple[tuple[str, str], ...] = (
    ("Content-Type", "text/plain; charset=utf-8"),
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
)

JSON_HEADERS = (("Content-Type", "application/json"), *HEADERS[1:])


@dataclass(frozen=True)
class Answer:
    """A complete response to a probe."""

    status: int
    body: str
    headers: tuple[tuple[str, str], ...] = HEADERS

    @property
    def status_line(self) -> str:
        """As WSGI wants it."""
        return f"{self.status} {_REASONS[self.status]}"


_REASONS = {
    200: "OK",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    503: "Service Unavailable",
}

OK = Answer(200, "ok\n")
TRIGGERED = Answer(503, "[-]shutdown failed: reason withheld\n")
"""To whoever triggers. With ``grace_readiness_delay`` readiness is still 200, but a hook is told
that it worked."""
FORBIDDEN = Answer(403, "forbidden\n")
NOT_FOUND = Answer(404, "no such check\n")
NOT_ALLOWED = Answer(405, "method not allowed\n", (*HEADERS, ("Allow", "GET, HEAD")))


@dataclass(frozen=True)
class Situation:
    """What a probe is answered from.

    :param phase: the phase, as this process sees it now.
    :param since_t0: seconds since the shutdown began; 0 before it.
    :param upgraded: whether another arbiter serves the same sockets: then this one's end is
        nobody's business.
    :param seconds_left: seconds until the process has to be gone; ``None`` while no deadline is
        known.
    """

    phase: Phase
    since_t0: float = 0.0
    upgraded: bool = False
    seconds_left: float | None = None

    @classmethod
    def of(cls, memory: Memory, now: int) -> Situation:
        """What a probe is answered from.

        :param memory: the shared memory.
        :param now: the monotonic clock, in nanoseconds.
        """
        t0 = memory.t0()
        since_t0 = (now - t0) / NS if t0 else 0.0
        return cls(memory.phase(), since_t0, bool(memory.header.upgraded), memory.seconds_left())


class Target(NamedTuple):
    """What the path of a probe names.

    :param check: the one check that ``/readyz/<check>`` asks for.
    """

    kind: Kind
    check: str | None = None


@dataclass(frozen=True)
class Query:
    """How a probe wants to be answered.

    :param verbose: whether the checks that pass are listed as well.
    :param exclude: checks that are not to count.
    :param as_json: whether ``Accept`` names JSON.
    """

    verbose: bool = False
    exclude: frozenset[str] = frozenset()
    as_json: bool = False

    @classmethod
    def of(cls, query_string: str, accept: str = "") -> Query:
        """Read a query and an ``Accept`` header. What it does not know, or cannot read, is as if it
        were not there."""
        as_json = "application/json" in accept.lower()
        if not query_string and not as_json:
            return PLAIN
        values = parse_qs(query_string, keep_blank_values=True) if query_string else {}
        return cls("verbose" in values, frozenset(values.get("exclude", ())), as_json)


PLAIN = Query()


Condition = Callable[[Situation], bool]
"""A check of the plugin's own; it passes by returning true. The shutdown is one of them."""


def shutdown_check(readiness_delay: float) -> Condition:
    """The check that turns readiness red: ``readiness_delay`` seconds after the shutdown began."""

    def check(situation: Situation) -> bool:
        if situation.upgraded or not is_terminating(situation.phase):
            return True
        return situation.phase is Phase.LAME_DUCK and situation.since_t0 < readiness_delay

    return check


def booted_check(situation: Situation) -> bool:
    """Passes once a worker has booted."""
    return situation.phase is not Phase.STARTING


PASSED, FAILED, EXCLUDED = "ok", "failed", "excluded"
"""What JSON says of a check."""

_LINES = {
    PASSED: "[+]{} ok\n",
    FAILED: "[-]{} failed: reason withheld\n",
    EXCLUDED: "[ ]{} excluded\n",
}


@dataclass(frozen=True)
class Answers:
    """The probes of one instance.

    :param settings: paths and ``grace_readiness_delay``.
    :param more: checks of readiness that whoever answers has beside, or instead of, those that
        every worker has.
    :param checks: for each kind, the plugin's own checks by name. No query excludes them.
    :param paths: each path of its own, and what it asks. Below each of them are its checks, one by
        one.
    """

    settings: Settings
    more: Mapping[str, Condition] = field(default_factory=dict)
    checks: Mapping[Kind, Mapping[str, Condition]] = field(init=False)
    paths: Mapping[str, Kind] = field(init=False)
    prefixes: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        s = self.settings
        paths = {
            **(DOCKERFLOW_PATHS if s.dockerflow else {}),
            LIVENESS_ALIAS: Kind.LIVENESS,
            s.liveness_path: Kind.LIVENESS,
            s.startup_path: Kind.STARTUP,
            s.readiness_path: Kind.READINESS,
        }
        object.__setattr__(self, "paths", paths)
        object.__setattr__(self, "prefixes", tuple(path.rstrip("/") + "/" for path in paths))
        shutdown = shutdown_check(s.readiness_delay)
        object.__setattr__(
            self,
            "checks",
            {
                Kind.LIVENESS: {},
                Kind.READINESS: {"booted": booted_check, "shutdown": shutdown, **self.more},
                Kind.STARTUP: {"booted": booted_check},
            },
        )

    def target(self, path: str) -> Target | None:
        """What a path asks, or ``None`` when it is none of ours. A check that it names need not be
        one."""
        kind = self.paths.get(path)
        if kind is not None:
            return Target(kind)
        if path.startswith(self.prefixes):
            parent, _, name = path.rpartition("/")
            kind = self.paths.get(parent)
            if kind is not None and name:
                return Target(kind, name)
        return None

    def asks_checks(self, kind: Kind, situation: Situation) -> bool:
        """Whether the application's checks decide now, so that somebody has to run them.

        From T0 on readiness is 503 whatever they would say, and an instance that is going is
        neither restarted for a check nor told that it never started; before a worker has booted
        there is nothing that they could look at.
        """
        return self._asks_checks(kind, situation, self.failed(kind, situation))

    @staticmethod
    def _asks_checks(kind: Kind, situation: Situation, failed: Collection[str]) -> bool:
        return not failed if kind is Kind.READINESS else situation.phase is Phase.SERVING

    def failed(self, kind: Kind, situation: Situation) -> list[str]:
        """The names of the plugin's own checks that do not pass."""
        return [name for name, check in self.checks[kind].items() if not check(situation)]

    def answer(
        self,
        kind: Kind,
        situation: Situation,
        outcomes: Collection[Outcome] = (),
        query: Query = PLAIN,
        *,
        check: str | None = None,
        known: Collection[str] = (),
    ) -> Answer:
        """The response to a probe. Reasons stay out of it: they are for the log.

        :param outcomes: of the application's checks of this kind. Ignored where :meth:`asks_checks`
            says that they do not decide, so that nobody need run them then; so are those that the
            query excludes.
        :param check: the one check that is asked for; the plugin's own that fail count all the
            same, so that such a path turns red with readiness.
        :param known: the names of all the application's checks of this kind. One that would decide
            and has no outcome has not passed.
        """
        failed = self.failed(kind, situation)
        if not failed and check is None and query is PLAIN and _all_passed(outcomes, known):
            return OK  # What is asked a thousand times for each of the others.
        found = {name: FAILED if name in failed else PASSED for name in self.checks[kind]}
        exclude = query.exclude
        names = list(dict.fromkeys([*known, *(outcome.name for outcome in outcomes)]))
        if self._asks_checks(kind, situation, failed):
            passed = {outcome.name for outcome in outcomes if outcome.passed}
            found.update({name: PASSED if name in passed else FAILED for name in names})
        if check is not None:
            if check not in names and check not in found:
                return NOT_FOUND
            found = {name: said for name, said in found.items() if name == check or name in failed}
            exclude = frozenset()
        found.update({name: EXCLUDED for name in names if name in exclude})
        return _said(found, situation, query, unknown=len(exclude.difference(names)))


def _all_passed(outcomes: Collection[Outcome], known: Collection[str]) -> bool:
    return all(outcome.passed for outcome in outcomes) and (
        not known or [outcome.name for outcome in outcomes] == list(known)
    )


def _said(found: Mapping[str, str], situation: Situation, query: Query, unknown: int) -> Answer:
    failing = FAILED in found.values()
    status = 503 if failing else 200
    if query.as_json:
        left = situation.seconds_left
        told = {
            "status": FAILED if failing else PASSED,
            "phase": str(situation.phase),
            "seconds_left": None if left is None else round(left, 3),
            "checks": found,
        }
        return Answer(status, json.dumps(told) + "\n", JSON_HEADERS)
    shown = (
        found.items() if query.verbose else [item for item in found.items() if item[1] == FAILED]
    )
    lines = [_LINES[said].format(name) for name, said in shown]
    if query.verbose and unknown:
        # Kubernetes' API server lists them here. What was sent does not come back from us.
        lines.append(
            f"warn: not excluded: {unknown} given as exclude, no check by that name or the plugin's own\n"
        )
    return Answer(status, "".join(lines)) if lines else OK
