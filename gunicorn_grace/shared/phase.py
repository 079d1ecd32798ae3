"""The phases of an instance, and the transitions between them.

    STARTING ──▶ SERVING ──▶ LAME_DUCK ──▶ DRAINING ──▶ STOPPED
                    ▲            │
                    └────────────┘  undrained, or the trigger expired

SERVING can also become DRAINING (SIGUSR2), and every phase can become STOPPED: see
:data:`TRANSITIONS`.

Code that needs the progress of the shutdown compares with these values and keeps no flag of its
own. The values are in the order of time, so ``phase >= Phase.LAME_DUCK`` means "the shutdown has
begun". Runs in any process.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType

from ..errors import TransitionError


class Phase(enum.IntEnum):
    """A phase in the life of an instance. The shared memory holds these values."""

    STARTING = 0
    """No worker has booted yet."""
    SERVING = 1
    """At least one worker has booted, and no shutdown has begun."""
    LAME_DUCK = 2
    """Readiness is 503 (after ``grace_readiness_delay``), and requests are served as before."""
    DRAINING = 3
    """No new connection is accepted, and the requests in flight are finished."""
    STOPPED = 4
    """Every worker is gone, or the deadline has passed."""

    def __str__(self) -> str:
        return self.name


TRANSITIONS: Mapping[Phase, frozenset[Phase]] = MappingProxyType(
    {
        # A router sends no requests to a server that was never ready, so there is no delay.
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
    """Check that ``wanted`` may follow ``current``.

    :raises TransitionError: the table has no such transition.
    """
    if wanted not in TRANSITIONS[current]:
        raise TransitionError(current, wanted)


def is_terminating(phase: Phase) -> bool:
    """Whether the shutdown has begun: readiness is (or will be) 503, and responses say
    ``Connection: close``."""
    return phase >= Phase.LAME_DUCK


class Origin(enum.IntEnum):
    """The origin of a shutdown. The shared memory holds these values."""

    NONE = 0
    SIGTERM = 1
    HTTP = 2
    """``GET /readyz?down=true``."""
    PRESTOP = 3
    """``gunicorn-grace prestop``."""
    DRAIN = 4
    """``gunicorn-grace drain``. It never expires: an operator takes it back by hand."""


PLATFORM = frozenset({Origin.HTTP, Origin.PRESTOP})
"""The origins that are a hook of the platform. The platform's period begins with such a trigger."""

TRIGGERS = PLATFORM | {Origin.DRAIN}
"""The origins that a process other than the arbiter may store."""


class Kind(enum.Enum):
    """The question that a probe asks and a check helps to answer."""

    LIVENESS = "liveness"
    READINESS = "readiness"
    STARTUP = "startup"
