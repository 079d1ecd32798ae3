"""The lifecycle: a pure function decides on the next phase of the shutdown.

:func:`decide` takes the arbiter's observation and the settings, and returns the phase to be in and
the reason. It uses no clock, no process and no socket, so a test can try every interleaving of
signals, arrivals and time. If the rules were in the signal handlers instead, they would be spread
over several places, and each race would have to be handled in each of them.

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
"""Seconds. If the last request came within this time, requests still arrive when the delay is over,
so the delay is extended. The extension ends after this much silence. It is twice a typical interval
between two health checks of a connection pool."""

UNKNOWN_PERIOD_EXPIRY = 30.0
"""Seconds after which a trigger expires if ``grace_termination_period`` is 0. It is Kubernetes' own
default period."""

QUIET_MISS = 1e-6
"""The error of the quiet test. It is the probability that the test ends LAME_DUCK because of a
silence that came by chance, while routers still send the smallest share of the traffic."""


class Reason(str, enum.Enum):
    """The reason of a change of phase, in the words of the log."""

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
    """The state of the instance as the arbiter sees it at one moment. Times are seconds.

    :param now: the moment.
    :param phase: the current phase.
    :param booted: whether any worker has booted.
    :param origin: the origin of the shutdown; ``NONE`` before it has begun.
    :param t0: when the shutdown began; ``None`` before that.
    :param clock: when the platform's period began: with its trigger or with the SIGTERM, whichever
        came first; ``None`` before that.
    :param sigterm: when the first SIGTERM came; ``None`` before that. A trigger alone never begins
        draining. A repeated SIGTERM changes nothing, because process managers repeat it.
    :param held: whether an operator's drain is in force. It lasts until ``undrain``.
    :param ended: whether a command ended the delay.
    :param awaited: whether another instance waits for the addresses of this one.
    :param undrain: whether an operator took the drain back.
    :param upgraded: whether another arbiter serves the same sockets (SIGUSR2).
    :param last_arrival: when a request last came, or may have come: in LAME_DUCK a connection that
        waits for a worker counts too, and so does a gap in the arbiter's observation. Probes that
        a worker has begun do not count. ``None`` if there was no request.
    :param rate: requests per second over the minute before T0.
    :param longest_silence: the longest time without a request in the five minutes before T0.
    :param longest_request: the longest request of the last five minutes.
    :param drain_started: when DRAINING began; ``None`` before that.
    :param workers: how many workers are left; at least 1 until they are dismissed.
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
    """Return the time by which the process must have exited; infinity if the platform's period is
    not known or has not begun.

    Kubernetes includes the preStop hook in its period (pod lifecycle, "Termination of Pods", step
    2: the grace period countdown begins before preStop is executed). So the clock starts with the
    hook's trigger. An operator's drain is not part of a termination, and does not start the clock.

    :param clock: when the period began; ``None`` before that.
    """
    if clock is None or not settings.termination_period:
        return math.inf
    return clock + budget(settings)


def drain_limit(drain_started: float, gone_by: float, settings: Settings) -> float:
    """Return when draining ends at the latest: ``graceful_timeout`` after it began, or at the
    deadline ``gone_by`` if that is sooner."""
    return min(drain_started + settings.graceful_timeout, gone_by)


def has_expired(o: Observation, s: Settings) -> bool:
    """Whether a platform's trigger has expired, because no SIGTERM followed it. A trigger never
    expires before the delay, counted from the trigger, is over."""
    if o.sigterm is not None or o.clock is None:
        return False
    return o.now >= o.clock + max(s.termination_period or UNKNOWN_PERIOD_EXPIRY, s.shutdown_delay)


def quiet_after(settings: Settings, rate: float, longest_silence: float) -> float:
    """Return how many seconds of silence end the delay early; infinity if no silence does.

    With ``grace_quiet_period = "auto"`` the number comes from the traffic before T0, which was
    ``rate`` requests per second. Suppose that a share ``s`` of the routers does not know of the
    shutdown yet. If arrivals are a Poisson process, requests still come at ``a = s * rate``, and
    the silence after one of them lasts ``t`` seconds by chance with probability ``exp(-a * t)``.
    The arbiter looks all the time, so each silence in LAME_DUCK can mislead it: the one after T0,
    and one after each of the ``a * d`` requests to be expected if LAME_DUCK lasts ``d`` seconds. By
    the union bound, the probability that any of them lasts ``t`` seconds is at most
    ``(1 + a * d) * exp(-a * t)``. It equals :data:`QUIET_MISS` if
    ``t = ln((1 + a * d) / QUIET_MISS) / a``. The code uses the longest possible LAME_DUCK, with its
    extension, as ``d``.

    The formula assumes that requests of the share are independent, that their rate is still that of
    the minute before T0, and that the share is at least ``grace_quiet_share``. Real traffic has
    longer gaps than a Poisson process, so the silence must also last twice as long as the longest
    one seen. Without traffic there is no evidence, so the arbiter waits for the whole delay.
    ``python tests/long/benchmarks quiet`` measures how often the test is wrong.

    :param rate: requests per second before T0.
    :param longest_silence: the longest silence before T0, in seconds.
    """
    if settings.quiet_period != AUTO:
        return float(settings.quiet_period) or math.inf
    if rate <= 0:
        return math.inf
    still = settings.quiet_share * rate
    silences = 1 + still * (settings.termination_period or 2 * settings.shutdown_delay)
    return max(math.log(silences / QUIET_MISS) / still, 2 * longest_silence)


def decide(o: Observation, s: Settings) -> tuple[Phase, Reason | None]:
    """Return the phase to be in now, and the reason; ``(o.phase, None)`` if nothing changes.

    The function is pure. Runs in the arbiter, at least once in each pass of its loop. It returns
    only the current phase, or a phase that may follow it in the transition table.
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
    """Whether draining would begin at once if a SIGTERM came now. A preStop hook waits for that."""
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
            # If a preStop hook waits, the SIGTERM may come long after the delay is over.
            asked = max(o.t0 + s.shutdown_delay, o.sigterm)
            extended = s.extend_delay and late_until > asked
            return Phase.DRAINING, Reason.EXTENDED if extended else Reason.DELAY_ELAPSED
        latest = gone_by - _reserve(o, s, gone_by)
        if not s.termination_period:
            # Without a period there is no budget that ends an extension. So this limit is needed:
            # a client that never looks at readiness could otherwise extend the delay for ever.
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
    """Return the seconds of the budget that an extension leaves for draining. They are the drain
    reserve, or the longest request if that takes longer. The longest request counts only if the
    budget has room for one that begins at the end of the delay.

    Only an extension makes room for the longest request. If the delay itself were cut for it, one
    slow request would cost all the quick requests that still arrive. Some requests do not fit into
    the budget in any case, such as an event stream of many minutes. They must not cost the quick
    requests their extension.
    """
    assert o.t0 is not None
    assert o.clock is not None
    begins = max(o.t0 + s.shutdown_delay, o.clock)
    savable = o.longest_request if o.longest_request <= gone_by - begins else 0.0
    return max(drain_reserve(s), savable)
