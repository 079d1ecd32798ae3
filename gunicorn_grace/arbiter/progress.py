"""How far the shutdown is, as the arbiter knows it.

The header of the shared memory shows a copy of this to the other processes. The arbiter never reads
that copy: any worker can store anything there, and would otherwise make an arbiter that may run as
root ignore a SIGTERM, skip the drain, or exit.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..shared.cells import Header
from ..shared.phase import Origin, Phase
from .lifecycle import Reason


@dataclass
class Progress:
    """The arbiter's own record of the shutdown. Times are nanoseconds, 0 is "never".

    It has more attributes than a class should, because it is one record: what the other processes
    are shown of the shutdown, and where the arbiter itself looks it up.

    :param phase: the phase it is in.
    :param origin: who began the shutdown, ``NONE`` while it has not begun.
    :param t0: when it began.
    :param platform: when the platform's period began by a trigger; 0 while it has not.
    :param platform_origin: which trigger that was.
    :param platform_over: triggers of the platform up to this time are over.
    :param held: whether an operator's drain is in force, which waits for ``undrain``.
    :param sigterm: when the first SIGTERM came. Written in the signal handler.
    :param told: when the first SIGTERM came, also if another arbiter serves on. Written in the
        signal handler.
    :param terms: how many SIGTERMs came. Written in the signal handler.
    :param consumed: triggers up to this time are over.
    :param deadline: when the process has to be gone; 0 while no deadline is known.
    :param waited_until: when a request last waited in LAME_DUCK for a worker that would begin it.
    :param delay_over: when a SIGTERM would first have drained at once.
    :param drain: when draining began.
    :param drain_limit: when draining ends at the latest.
    :param upgraded: whether another arbiter serves the same sockets.
    :param emptied: whether the accept queues were served to their end.
    :param http_shut: whether ``?down=true`` is disabled until restart.
    :param failed: whether the plugin has given up.
    :param rate: requests in 1000 seconds, before T0.
    :param delay: how long LAME_DUCK lasts at most unless late requests extend it.
    :param handed_over: whether somebody else made the listening sockets and keeps them.
    :param reasons: why each phase was entered.
    :param stamps: when each phase was entered.
    :param in_flight: how many requests were in flight then; ``None`` if nobody can count them.
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
        """Show it to the other processes, and mend what another process has overwritten.

        A reader may look between two stores. So what belongs to a phase is stored before the phase.
        """
        for name in _SHOWN:
            # The cell first: the signal handler, which may run in between, stores into both.
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
