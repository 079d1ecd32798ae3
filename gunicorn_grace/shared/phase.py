"""The phases of an instance, and which may follow which.

    STARTING ──▶ SERVING ──▶ LAME_DUCK ──▶ DRAINING ──▶ STOPPED
                    ▲            │
                    └────────────┘  undrained, or the trigger expired

Everything that has to know "how far is the shutdown" compares with these; nothing keeps a flag of
its own. The order of the values is the order in time, so ``phase >= Phase.LAME_DUCK`` reads
"shutdown has begun".
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType

from ..errors import TransitionError


class Phase(enum.IntEnum):
    """Where an instance is in its life. The values are what the shared memory holds."""

    STARTING = 0
    """No worker has booted yet."""
    SERVING = 1
    """At least one worker has booted, and no shutdown has begun."""
    LAME_DUCK = 2
    """Readiness is 503, requests are served as ever."""
    DRAINING = 3
    """No new connection is taken; what is in flight is finished."""
    STOPPED = 4
    """Every worker is gone, or the deadline has come."""

    def __str__(self) -> str:
        return self.name


TRANSITIONS: Mapping[Phase, frozenset[Phase]] = MappingProxyType(
    {
        # A server that was never ready has nobody to wait for.
        Phase.STARTING: frozenset({Phase.SERVING, Phase.STOPPED}),
        # DRAINING without LAME_DUCK: another arbiter serves the same sockets (SIGUSR2). STOPPED:
        # SIGINT, SIGQUIT.
        Phase.SERVING: frozenset({Phase.LAME_DUCK, Phase.DRAINING, Phase.STOPPED}),
        Phase.LAME_DUCK: frozenset({Phase.SERVING, Phase.DRAINING, Phase.STOPPED}),
        Phase.DRAINING: frozenset({Phase.STOPPED}),
        Phase.STOPPED: frozenset(),
    }
)


def check_transition(current: Phase, wanted: Phase) -> None:
    """Raise :class:`~gunicorn_grace.errors.TransitionError` unless ``wanted`` may follow
    ``current``."""
    if wanted not in TRANSITIONS[current]:
        raise TransitionError(current, wanted)


def is_terminating(phase: Phase) -> bool:
    """Whether the shutdown has begun: readiness is (or will be) 503 and connections are told to
    close."""
    return phase >= Phase.LAME_DUCK


class Origin(enum.IntEnum):
    """Who began the shutdown. The values are what the shared memory holds."""

    NONE = 0
    SIGTERM = 1
    HTTP = 2
    """``GET /readyz?down=true``."""
    PRESTOP = 3
    """``gunicorn-grace prestop``."""
    DRAIN = 4
    """``gunicorn-grace drain``: an operator, who will take it back by hand. Never expires."""


TRIGGERS = frozenset({Origin.HTTP, Origin.PRESTOP, Origin.DRAIN})
"""The origins that another process than the arbiter may give."""


class Kind(enum.Enum):
    """Which question a probe asks, and a check answers."""

    LIVENESS = "liveness"
    READINESS = "readiness"
    STARTUP = "startup"
