"""The budget: how the delay and the drain fit into the platform's period.

The defaults fit into Kubernetes' 30 s. Some platforms wait for 10 s, 5 s or less. There the margin
and the reserve would be all of the budget, or more than it, and SIGTERM would act as SIGKILL. So
only a share of the period counts of each of them, and something is always left for the delay and
for what is in flight. All durations are seconds.
"""

from __future__ import annotations

from .settings import Settings

MARGIN_SHARE = 1 / 5
"""The largest share of the period that ``grace_exit_margin`` can take."""

RESERVE_SHARE = 1 / 2
"""The largest share of the period that ``grace_drain_reserve`` can take."""


def exit_margin(s: Settings) -> float:
    """Return the margin that counts: how long before the end of the period the process is gone."""
    return min(s.exit_margin, s.termination_period * MARGIN_SHARE)


def drain_reserve(s: Settings) -> float:
    """Return the reserve that counts. Where the period is not known, nothing limits it."""
    if not s.termination_period:
        return s.drain_reserve
    return min(s.drain_reserve, s.termination_period * RESERVE_SHARE)


def budget(s: Settings) -> float:
    """Return how long a shutdown can last, where the period is known."""
    return s.termination_period - exit_margin(s)


def longest_delay(s: Settings) -> float:
    """How long LAME_DUCK lasts at the most, unless late requests extend it: the delay, or what the
    budget leaves it."""
    if not s.termination_period:
        return s.shutdown_delay
    return min(s.shutdown_delay, max(0.0, budget(s) - drain_reserve(s)))
