"""The budget: how the delay and the drain fit into the platform's period.

The defaults fit into Kubernetes' 30 s. Some platforms wait for 10 s, 5 s or less. There the margin
and the reserve would use up the whole budget, and SIGTERM would act as SIGKILL. So each of them is
limited to a share of the period, and some time is always left for the delay and for the requests in
flight. All durations are seconds. Runs in the arbiter and in commands.
"""

from __future__ import annotations

import math

from .settings import Settings

MARGIN_SHARE = 1 / 5
"""The largest share of the period that ``grace_exit_margin`` can take."""

RESERVE_SHARE = 1 / 2
"""The largest share of the period that ``grace_drain_reserve`` can take."""

ROUNDING = 1e-6
"""Seconds by which a sum of decimals may be off, because computers add in binary."""


def exceeds(total: float, limit: float) -> bool:
    """Return whether a sum is larger than its limit, by more than what comes from rounding."""
    return total > limit + ROUNDING


def whole_seconds(total: float) -> int:
    """Return the least number of whole seconds that a sum does not exceed."""
    return math.ceil(total - ROUNDING)


def exit_margin(s: Settings) -> float:
    """Return the margin in use: how long before the end of the period the process has exited. It is
    0 if the period is not known."""
    return min(s.exit_margin, s.termination_period * MARGIN_SHARE)


def drain_reserve(s: Settings) -> float:
    """Return the reserve in use. If the period is not known, nothing limits the reserve."""
    if not s.termination_period:
        return s.drain_reserve
    return min(s.drain_reserve, s.termination_period * RESERVE_SHARE)


def budget(s: Settings) -> float:
    """Return how long a shutdown can last. This is meaningful only if the period is known."""
    return s.termination_period - exit_margin(s)


def longest_delay(s: Settings) -> float:
    """Return how long LAME_DUCK lasts at most, unless late requests extend it: the delay, or the
    rest of the budget after the reserve if that is shorter."""
    if not s.termination_period:
        return s.shutdown_delay
    return min(s.shutdown_delay, max(0.0, budget(s) - drain_reserve(s)))
