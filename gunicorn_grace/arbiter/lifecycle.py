"""The lifecycle: a pure function says the next phase of the shutdown.

:func:`decide` gets what the arbiter sees and the settings, and says which phase it should be in and
why. It knows no clock, no process and no socket, so that every interleaving of signals, arrivals
and time can be tried in a test. If this lived in the signal handlers instead, each race would have
its own half of the rules.

All times are seconds on one monotonic clock; durations are seconds.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from dataclasses import dataclass

from ..shared.budget import budget, drain_reserve
from ..shared.phase import Origin, Phase
from ..shared.settings import AUTO, Settings

LATE_WINDOW = 2.0
"""Seconds. A request that came this recently is "still arriving" when the delay is over; and so
much silence ends an extension. Twice a typical interval between two health checks of a connection
pool."""

UNKNOWN_PERIOD_EXPIRY = 30.0
"""Seconds after which a trigger expires where ``grace_termination_period`` is 0: Kubernetes' own
default period."""

QUIET_MISS = 1e-6
"""The quiet test's error: the probability that traffic at the smallest share still routed is taken
to be over, by a silence that came by chance, anywhere in LAME_DUCK."""


class Reason(str, enum.Enum):
    """Why the lifecycle took a step. The words are those of the log."""

    BOOTED = "booted"
    NEVER_READY = "never ready"
    SIGNAL = "signal"
    TRIGGER = "trigger"
    UPGRADED = "upgraded"
    DELAY_ELAPSED = "delay elapsed"
    QUIET = "quiet"
    EXTENDED = "extended until quiet"
    ENDED = "ended by command"
    SUCCESSOR = "successor waits"
    BUDGET = "budget"
    EXPIRED = "trigger expired"
    UNDRAINED = "undrained"
    DRAINED = "drained"
    DEADLINE = "deadline"

    def __str__(self) -> str:
        return self.value


CUT_SHORT = frozenset({Reason.ENDED, Reason.SUCCESSOR, Reason.BUDGET})
"""Reasons for which the delay ends although requests may still come."""


@dataclass(frozen=True)
class Observation:
    """The arbiter's view at one moment.

    :param now: the moment.
    :param phase: the phase it is in.
    :param booted: whether any worker has booted.
    :param origin: who began the shutdown, ``NONE`` while it has not begun.
    :param t0: when it began; ``None`` while it did not.
    :param clock: when the platform's period began: with its trigger or the SIGTERM, whichever
        came first; ``None`` while neither did.
    :param sigterm: when the first SIGTERM came; ``None`` while none did. A trigger alone never
        drains, and a SIGTERM that is repeated changes nothing: process managers repeat it.
    :param held: whether an operator's drain is in force, which waits for ``undrain``.
    :param ended: whether a command ended the delay.
    :param awaited: whether another instance waits for the addresses of this one.
    :param undrain: whether an operator took the drain back.
    :param upgraded: whether another arbiter serves the same sockets (SIGUSR2).
    :param last_arrival: when the last request came, probes excluded; ``None`` when none ever did.
    :param rate: requests per second over the minute before T0.
    :param longest_silence: longest time without a request in the five minutes before T0.
    :param longest_request: longest request of the last five minutes.
    :param drain_started: when DRAINING began; ``None`` before it.
    :param workers: how many workers are left.
    """

    now: float
    phase: Phase = Phase.SERVING
    booted: bool = True
    origin: Origin = Origin.NONE
    t0: float | None = None
    clock: float | None = None
    sigterm: float | None = None
    held: bool = False
    ended: bool = False
    awaited: bool = False
    undrain: bool = False
    upgraded: bool = False
    last_arrival: float | None = None
    rate: float = 0.0
    longest_silence: float = 0.0
    longest_request: float = 0.0
    drain_started: float | None = None
    workers: int = 1


def deadline(clock: float | None, settings: Settings) -> float:
    """When the process has to be gone; infinity where the platform's period is not known, or has
    not begun.

    Kubernetes counts the preStop hook in (pod lifecycle, "Termination of Pods", step 2: the grace
    period countdown begins before preStop is executed), so the clock runs from its trigger. An
    operator's drain is not part of a termination, and starts no clock.
    """
    if clock is None or not settings.termination_period:
        return math.inf
    return clock + budget(settings)


def drain_limit(drain_started: float, gone_by: float, settings: Settings) -> float:
    """When draining ends at the latest: ``graceful_timeout`` after it began, or the deadline if
    that is sooner."""
    return min(drain_started + settings.graceful_timeout, gone_by)


def has_expired(o: Observation, s: Settings) -> bool:
    """Whether a platform's trigger gives up, because no SIGTERM followed it. It never does before
    the delay itself is over."""
    if o.sigterm is not None or o.clock is None:
        return False
    return o.now >= o.clock + max(s.termination_period or UNKNOWN_PERIOD_EXPIRY, s.shutdown_delay)


def quiet_after(settings: Settings, rate: float, longest_silence: float) -> float:
    """How much silence ends the delay early, in seconds; infinity when nothing can.

    With ``grace_quiet_period = "auto"``: traffic of ``rate`` requests per second came before T0.
    Say a share ``s`` of the routers has not yet heard of the shutdown. If arrivals are Poisson,
    requests still come at ``a = s * rate``, and the silence after one of them lasts ``t`` seconds
    by chance with probability ``exp(-a * t)``. The arbiter looks all the time, so each silence of
    LAME_DUCK is a chance to be wrong: the one after T0, and one after each of the ``a * d``
    requests to be expected if it lasts ``d`` seconds. By the union bound, one of them is that long
    with probability ``(1 + a * d) * exp(-a * t)`` at most, which is :data:`QUIET_MISS` when ``t =
    ln((1 + a * d) / QUIET_MISS) / a``. For ``d`` stands the longest that LAME_DUCK can last,
    extended.

    It assumes that the share's requests know nothing of each other, that their rate is still the
    one of the minute before T0, and that the share is no smaller than ``grace_quiet_share``. Real
    traffic has gaps that Poisson has not, so the silence must also be twice the longest one seen.
    Without traffic there is no evidence: then the whole delay is waited out. ``python
    tests/long/benchmarks quiet`` measures how often it is wrong.
    """
    if settings.quiet_period != AUTO:
        return float(settings.quiet_period) or math.inf
    if rate <= 0:
        return math.inf
    still = settings.quiet_share * rate
    silences = 1 + still * (settings.termination_period or 2 * settings.shutdown_delay)
    return max(math.log(silences / QUIET_MISS) / still, 2 * longest_silence)


def decide(o: Observation, s: Settings) -> tuple[Phase, Reason | None]:
    """The phase to be in now, and why; ``(o.phase, None)`` when nothing changes.

    Pure. Runs in the arbiter, once in each pass of its loop, and anywhere in tests. Every phase
    that it returns is the present one or one that the transition table allows to follow.
    """
    if o.phase is Phase.STARTING:
        if o.booted:
            return Phase.SERVING, Reason.BOOTED
        if o.sigterm is not None:
            return Phase.STOPPED, Reason.NEVER_READY
    elif o.phase is Phase.SERVING:
        if o.upgraded and o.sigterm is not None:
            return Phase.DRAINING, Reason.UPGRADED
        if o.t0 is not None:
            return Phase.LAME_DUCK, Reason.SIGNAL if o.origin is Origin.SIGTERM else Reason.TRIGGER
    elif o.phase is Phase.LAME_DUCK:
        return _lame_duck(o, s)
    elif o.phase is Phase.DRAINING:
        if not o.workers:
            return Phase.STOPPED, Reason.DRAINED
        assert o.drain_started is not None
        if o.now >= drain_limit(o.drain_started, deadline(o.clock, s), s):
            return Phase.STOPPED, Reason.DEADLINE
    return o.phase, None


def is_delay_over(o: Observation, s: Settings) -> bool:
    """Whether a SIGTERM that came now would drain at once: what a preStop hook waits for."""
    if o.phase is not Phase.LAME_DUCK:
        return o.phase > Phase.LAME_DUCK
    signalled = dataclasses.replace(
        o,
        clock=o.now if o.clock is None else o.clock,
        sigterm=o.now if o.sigterm is None else o.sigterm,
    )
    return decide(signalled, s)[0] is Phase.DRAINING


def _lame_duck(o: Observation, s: Settings) -> tuple[Phase, Reason | None]:
    assert o.t0 is not None
    if o.sigterm is None:
        if o.undrain:
            return Phase.SERVING, Reason.UNDRAINED
        if not o.held and has_expired(o, s):
            return Phase.SERVING, Reason.EXPIRED
        return o.phase, None

    if o.upgraded:
        return Phase.DRAINING, Reason.UPGRADED
    if o.ended:
        return Phase.DRAINING, Reason.ENDED
    if o.awaited:
        return Phase.DRAINING, Reason.SUCCESSOR

    assert o.clock is not None
    elapsed = o.now - o.t0
    gone_by = deadline(o.clock, s)
    if elapsed >= s.shutdown_delay:
        late_until = -math.inf if o.last_arrival is None else o.last_arrival + LATE_WINDOW
        if not s.extend_delay or o.now >= late_until:
            # With a hook that waits, the SIGTERM may come when the delay is long over.
            asked = max(o.t0 + s.shutdown_delay, o.sigterm)
            extended = s.extend_delay and late_until > asked
            return Phase.DRAINING, Reason.EXTENDED if extended else Reason.DELAY_ELAPSED
        latest = gone_by - _reserve(o, s, gone_by)
        if not s.termination_period:
            # With no period there is no budget that could end an extension; without an end, a
            # client that never looks at readiness could keep the process for ever.
            latest = o.clock + 2 * s.shutdown_delay
    else:
        latest = gone_by - drain_reserve(s)
    if o.now >= latest:
        return Phase.DRAINING, Reason.BUDGET
    if elapsed >= s.min_delay:
        silence = o.now - max(o.t0, o.last_arrival or o.t0)
        if silence >= quiet_after(s, o.rate, o.longest_silence):
            return Phase.DRAINING, Reason.QUIET
    return o.phase, None


def _reserve(o: Observation, s: Settings, gone_by: float) -> float:
    """What an extension leaves of the budget: the drain reserve, or the longest request if it takes
    longer and the budget could still save one that begins when the delay is over.

    Only an extension makes room for the longest request: were the delay itself cut for it, one slow
    request would cost every quick one that still arrives. And a request for which the budget is too
    short in any case, such as an event stream of many minutes, may not cost them the extension.
    """
    assert o.t0 is not None
    assert o.clock is not None
    begins = max(o.t0 + s.shutdown_delay, o.clock)
    savable = o.longest_request if o.longest_request <= gone_by - begins else 0.0
    return max(drain_reserve(s), savable)
