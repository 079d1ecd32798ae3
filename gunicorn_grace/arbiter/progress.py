"""The progress of the shutdown, as the arbiter knows it.

The header of the shared memory shows a copy of it to the other processes. The arbiter bases no
decision on that copy, because any worker can store anything there. Otherwise a worker could make
the arbiter, which may run as root, ignore a SIGTERM, skip the drain, or exit.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..shared.cells import Header
from ..shared.phase import Origin, Phase
from .lifecycle import Reason


@dataclass
class Progress:
    """The arbiter's own record of the shutdown. Times are monotonic nanoseconds; 0 means "never".

    It has more attributes than a class should, because it is one record: the arbiter decides by
    it, and shows most of it to the other processes.

    :param phase: the current phase.
    :param origin: the origin of the shutdown; ``NONE`` before it has begun.
    :param t0: when the shutdown began.
    :param platform: when a trigger of the platform began the platform's period.
    :param platform_origin: the origin of that trigger.
    :param platform_over: triggers of the platform up to this time are no longer in force.
    :param held: whether an operator's drain is in force. It lasts until ``undrain``.
    :param sigterm: when the first SIGTERM came. The signal handler writes it. If another arbiter
        served the same sockets then, the main loop writes it once that one no longer serves.
    :param told: when the first SIGTERM came, also while another arbiter serves the same sockets.
        The signal handler writes it.
    :param terms: how many SIGTERMs came. The signal handler writes it.
    :param consumed: triggers up to this time are no longer in force.
    :param deadline: when the process must have exited; 0 without a known deadline.
    :param waited_until: when a request last waited in LAME_DUCK for a worker to begin it.
    :param delay_over: the first moment at which a SIGTERM would have begun draining at once.
    :param drain: when draining began.
    :param drain_limit: when draining ends at the latest.
    :param upgraded: whether this arbiter drains while another one serves the same sockets.
    :param emptied: whether the listeners were sealed, and their accept queues served to their end.
    :param http_shut: whether ``?down=true`` is disabled until restart.
    :param failed: whether the plugin has given up.
    :param rate: requests in 1000 seconds, over the minute before T0.
    :param delay: how long LAME_DUCK lasts at most unless late requests extend it, in nanoseconds.
    :param handed_over: whether another process made the listening sockets and keeps them.
    :param reasons: the reason for which each phase was entered.
    :param stamps: when each phase was entered.
    :param in_flight: how many requests were in flight when each phase was entered; ``None`` if they
        cannot be counted.
    """

    phase: Phase = Phase.STARTING
    origin: Origin = Origin.NONE
    t0: int = 0
    platform: int = 0
    platform_origin: Origin = Origin.NONE
    platform_over: int = 0
    held: bool = False
    sigterm: int = 0
    told: int = 0
    terms: int = 0
    consumed: int = 0
    deadline: int = 0
    waited_until: int = 0
    delay_over: int = 0
    drain: int = 0
    drain_limit: int = 0
    upgraded: bool = False
    emptied: bool = False
    http_shut: bool = False
    failed: bool = False
    rate: int = 0
    delay: int = 0
    handed_over: bool = False
    reasons: dict[Phase, Reason] = field(default_factory=dict)
    stamps: dict[Phase, int] = field(default_factory=dict)
    in_flight: dict[Phase, int | None] = field(default_factory=dict)

    def publish(self, header: Header) -> None:
        """Store a copy into the header, which also mends cells that another process has
        overwritten.

        A reader may look between two stores. So the values that belong to a phase are stored before
        the phase.

        :param header: the header of the shared memory.
        """
        for name in _SHOWN:
            # The cell is read first. The signal handler may run in between, and stores both.
            shown = getattr(header, name)
            known = int(getattr(self, name))
            if shown != known:
                setattr(header, name, known)


_SHOWN = (
    "t0",
    "told",
    "sigterm",
    "deadline",
    "delay_over",
    "held",
    "upgraded",
    "drain_limit",
    "drain",
    "emptied",
    "http_shut",
    "failed",
    "rate",
    "delay",
    "handed_over",
    "consumed",
    "phase",
)
