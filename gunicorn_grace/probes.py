"""The answers to the platform's probes, for every way in.

Path, phase and checks go in; status, headers and body come out. No framework, no socket, no clock: the overlay, the
middleware and the blueprint are thin adapters over this, so that one question has one answer.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from .phase import Phase, is_terminating
from .settings import Settings

LIVENESS_ALIAS = "/healthz"

HEADERS: tuple[tuple[str, str], ...] = (
    ("Content-Type", "text/plain; charset=utf-8"),
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
)


class Kind(enum.Enum):
    """Which question a probe asks."""

    LIVENESS = "liveness"
    READINESS = "readiness"
    STARTUP = "startup"


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


_REASONS = {200: "OK", 403: "Forbidden", 405: "Method Not Allowed", 503: "Service Unavailable"}

OK = Answer(200, "ok\n")
FORBIDDEN = Answer(403, "forbidden\n")
NOT_ALLOWED = Answer(405, "method not allowed\n", (*HEADERS, ("Allow", "GET, HEAD")))


@dataclass(frozen=True)
class Situation:
    """What a probe is answered from.

    :param phase: the phase, as this process sees it now.
    :param since_t0: seconds since the shutdown began; 0 before it.
    :param upgraded: whether another arbiter serves the same sockets: then this one's end is nobody's business.
    """

    phase: Phase
    since_t0: float = 0.0
    upgraded: bool = False


Check = Callable[[Situation], bool]
"""A named condition; it passes by returning true. The shutdown is one of them."""


def shutdown_check(readiness_delay: float) -> Check:
    """The check that turns readiness red: ``readiness_delay`` seconds after the shutdown began."""

    def check(situation: Situation) -> bool:
        if situation.upgraded or not is_terminating(situation.phase):
            return True
        return situation.phase is Phase.LAME_DUCK and situation.since_t0 < readiness_delay

    return check


def booted_check(situation: Situation) -> bool:
    """Passes once a worker has booted."""
    return situation.phase is not Phase.STARTING


@dataclass(frozen=True)
class Probes:
    """The probes of one instance.

    :param settings: paths and ``grace_readiness_delay``.
    :param checks: for each kind, its checks by name.
    """

    settings: Settings
    checks: Mapping[Kind, Mapping[str, Check]] = field(init=False)
    paths: Mapping[str, Kind] = field(init=False)

    def __post_init__(self) -> None:
        s = self.settings
        object.__setattr__(
            self,
            "paths",
            {
                LIVENESS_ALIAS: Kind.LIVENESS,
                s.liveness_path: Kind.LIVENESS,
                s.startup_path: Kind.STARTUP,
                s.readiness_path: Kind.READINESS,
            },
        )
        shutdown = shutdown_check(s.readiness_delay)
        object.__setattr__(
            self,
            "checks",
            {
                Kind.LIVENESS: {},
                Kind.READINESS: {"booted": booted_check, "shutdown": shutdown},
                Kind.STARTUP: {"booted": booted_check},
            },
        )

    def failed(self, kind: Kind, situation: Situation) -> Sequence[str]:
        """The names of the checks that do not pass."""
        return [name for name, check in self.checks[kind].items() if not check(situation)]

    def answer(self, kind: Kind, situation: Situation) -> Answer:
        """The response to a probe of this kind. Reasons stay out of it: they are for the log."""
        failed = self.failed(kind, situation)
        if not failed:
            return OK
        return Answer(503, "".join(f"[-]{name} failed: reason withheld\n" for name in failed))
