"""The answers to the platform's probes, for every way in which a probe may come.

The input is a path, a query, the phase and the outcomes of checks; the output is a status, headers
and a body. This module uses no framework, no socket and no clock, and it runs no check. The
overlay, the middlewares, the blueprint and the probe port are thin adapters over it, so the same
question gets the same answer everywhere. An answer never repeats anything that the caller sent.
Runs in workers and in the probe responder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import parse_qs

from ..shared.cells import NS
from ..shared.memory import Memory
from ..shared.phase import Kind, Phase, is_terminating
from ..shared.settings import Settings
from .checks import Outcome

LIVENESS_ALIAS = "/healthz"

DOCKERFLOW_PATHS = {"/__lbheartbeat__": Kind.LIVENESS, "/__heartbeat__": Kind.READINESS}
"""The paths of Mozilla's Dockerflow for liveness and readiness, used with ``grace_dockerflow``."""

METHODS = frozenset({"GET", "HEAD"})
"""The methods of a probe."""

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
        """The status line in the form that WSGI requires."""
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
"""The answer to an accepted trigger. It is 503 even while ``grace_readiness_delay`` keeps readiness
at 200, so that the hook sees that the trigger worked."""
SWITCHED_OFF = Answer(200, "gunicorn-grace is switched off: nothing was done\n")
"""The answer to every trigger of an instance that is switched off. Its status is 200, because a
hook must not fail for that."""
FORBIDDEN = Answer(403, "forbidden\n")
NOT_FOUND = Answer(404, "no such check\n")
NOT_ALLOWED = Answer(405, "method not allowed\n", (*HEADERS, ("Allow", "GET, HEAD")))


@dataclass(frozen=True)
class Situation:
    """The state of the instance that decides on the answers.

    :ivar phase: the phase that this process sees.
    :ivar since_t0: seconds since the shutdown began; 0 before it.
    :ivar upgraded: whether another arbiter serves the same sockets. The end of this instance then
        does not affect readiness.
    :ivar seconds_left: seconds until the deadline; ``None`` without a known deadline.
    """

    phase: Phase
    since_t0: float = 0.0
    upgraded: bool = False
    seconds_left: float | None = None

    @classmethod
    def of(cls, memory: Memory, now: int) -> Situation:
        """Read the state of the instance from its shared memory.

        :param memory: the shared memory.
        :param now: the monotonic clock, in nanoseconds.
        """
        t0 = memory.t0()
        since_t0 = max(0, now - t0) / NS if t0 else 0.0  # T0 may be later than `now`.
        return cls(memory.phase(), since_t0, bool(memory.header.upgraded), memory.seconds_left())


class Target(NamedTuple):
    """The question that the path of a probe asks.

    :ivar kind: the kind of probe.
    :ivar check: the single check that ``/readyz/<check>`` asks for; ``None`` for the whole probe.
    """

    kind: Kind
    check: str | None = None


@dataclass(frozen=True)
class Query:
    """The options of a probe request.

    :ivar verbose: whether the answer also lists the checks that pass.
    :ivar exclude: names of checks that do not count.
    :ivar as_json: whether ``Accept`` names JSON.
    """

    verbose: bool = False
    exclude: frozenset[str] = frozenset()
    as_json: bool = False

    @classmethod
    def of(cls, query_string: str, accept: str = "") -> Query:
        """Read a query and an ``Accept`` header. Unknown and unreadable parts are ignored."""
        as_json = "application/json" in accept.lower()
        if not query_string and not as_json:
            return PLAIN
        values = parse_qs(query_string, keep_blank_values=True) if query_string else {}
        return cls("verbose" in values, frozenset(values.get("exclude", ())), as_json)


PLAIN = Query()


Condition = Callable[[Situation], bool]
"""One of the plugin's own checks, such as the shutdown. It passes by returning true."""


def shutdown_check(readiness_delay: float) -> Condition:
    """Return the check that fails readiness from ``readiness_delay`` seconds after T0 on."""

    def check(situation: Situation) -> bool:
        if situation.upgraded or not is_terminating(situation.phase):
            return True
        return situation.phase is Phase.LAME_DUCK and situation.since_t0 < readiness_delay

    return check


def booted_check(situation: Situation) -> bool:
    """Pass once a worker has booted."""
    return situation.phase is not Phase.STARTING


PASSED, FAILED, EXCLUDED = "ok", "failed", "excluded"
"""The states of a check in the JSON answer."""

_LINES = {
    PASSED: "[+]{} ok\n",
    FAILED: "[-]{} failed: reason withheld\n",
    EXCLUDED: "[ ]{} excluded\n",
}


@dataclass(frozen=True)
class Answers:
    """The probes of one instance.

    :param settings: the settings. The paths and ``grace_readiness_delay`` are used.
    :param more: further readiness checks of the process that answers. They are added to the checks
        that every worker has, and replace those of the same name.
    :ivar checks: for each kind, the plugin's own checks by name. No query can exclude them.
    :ivar paths: the probe paths, each with its kind. The paths of single checks are below them.
    :ivar prefixes: the beginnings of the paths of single checks.
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
        """Return the question that a path asks; ``None`` if it is not a probe path. The check in
        the path need not exist."""
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
        """Whether the application's checks count now, so that they have to be run.

        From T0 on readiness is 503 regardless of them. A failing check must neither restart an
        instance that is shutting down nor make it look as if it had never started. Before a worker
        has booted there is no application to check.
        """
        return self._asks_checks(kind, situation, self.failed(kind, situation))

    @staticmethod
    def _asks_checks(kind: Kind, situation: Situation, failed: Collection[str]) -> bool:
        return not failed if kind is Kind.READINESS else situation.phase is Phase.SERVING

    def failed(self, kind: Kind, situation: Situation) -> list[str]:
        """Return the names of the plugin's own checks that fail."""
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
        """Return the response to a probe. It does not contain the reasons of failures; they go to
        the log.

        :param kind: the kind of probe.
        :param situation: the state of the instance.
        :param outcomes: the outcomes of the application's checks of this kind. They are ignored
            when :meth:`asks_checks` returns false, so the checks need not be run then. Those that
            the query excludes are ignored too.
        :param query: the options of the request.
        :param check: the single check that is asked for. The plugin's own checks that fail count as
            well, so that the path of a single check fails together with readiness.
        :param known: the names of all the application's checks of this kind. A check that counts
            but has no outcome has failed.
        """
        failed = self.failed(kind, situation)
        if not failed and check is None and query is PLAIN and _all_passed(outcomes, known):
            return OK  # This is by far the most frequent case.
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
        # Kubernetes' API server lists the names here. This answer does not repeat what was sent.
        lines.append(
            f"warn: not excluded: {unknown} given as exclude, no check by that name or the "
            "plugin's own\n"
        )
    return Answer(status, "".join(lines)) if lines else OK
