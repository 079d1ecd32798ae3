"""The budget: how the delay and the drain fit into the platform's period. Arbiter.

The defaults fit into Kubernetes' 30 s. Some platforms wait for 10 s, 5 s or less. There the margin
and the reserve would be all of the budget, or more than it, and SIGTERM would act as SIGKILL. So
only a share of the period counts of each of them, and something is always left for the delay and
for what is in flight. All durations are seconds.
"""

from __future__ import annotations

import math
from typing import Any

from ..shared import platforms
from ..shared.platforms import UNKNOWN, Platform
from ..shared.settings import Settings

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


def budget_line(
    s: Settings,
    *,
    graceful_timeout_given: bool,
    all_defaults: bool = False,
    platform: Platform = UNKNOWN,
) -> tuple[bool, str]:
    """The sum of the timeline in one line, and whether it is a warning.

    :param graceful_timeout_given: whether a person chose ``graceful_timeout``; a default that is
        cut is not worth a warning.
    :param all_defaults: whether nobody chose the period, the delay, the reserve or the margin.
        Defaults that are cut to fit a platform are not worth a warning either.
    :param platform: the platform, for the name of what a person would have to raise.
    """
    if not s.termination_period:
        return (
            False,
            f"lame duck {s.shutdown_delay:g} s, then up to {s.graceful_timeout:g} s to drain; "
            "the platform's period is not known",
        )
    lame_duck = longest_delay(s)
    left = budget(s) - lame_duck
    # The sums have the values as they were set: whoever makes room for those has room.
    needed = s.shutdown_delay + s.graceful_timeout + s.exit_margin

    def more(seconds: float) -> str:
        if not platform.knob:
            return ""
        return f" or raise {platform.knob} and grace_termination_period to {math.ceil(seconds)}"

    source = f"; {_source(s, platform)}" if s.period_is_assumed else ""
    if lame_duck < s.shutdown_delay and not all_defaults:
        reserved = s.shutdown_delay + s.drain_reserve + s.exit_margin
        return True, (
            f"grace_shutdown_delay {s.shutdown_delay:g} + grace_drain_reserve "
            f"{s.drain_reserve:g} + grace_exit_margin {s.exit_margin:g} = {reserved:g} s > "
            f"grace_termination_period {s.termination_period:g} s: "
            f"the delay will be cut to {lame_duck:g} s; "
            f"lower it{more(max(needed, reserved))}{source}"
        )
    if graceful_timeout_given and s.graceful_timeout > left:
        return True, (
            f"grace_shutdown_delay {s.shutdown_delay:g} + graceful_timeout "
            f"{s.graceful_timeout:g} + grace_exit_margin {s.exit_margin:g} = {needed:g} s > "
            f"grace_termination_period {s.termination_period:g} s: "
            f"draining will be cut to {left:g} s; "
            f"lower the delay{more(needed)}{source}"
        )
    drain = min(s.graceful_timeout, left)
    return False, (
        f"lame duck {lame_duck:g} s, then up to {drain:g} s to drain, "
        f"gone by {lame_duck + drain:g} s "
        f"of {s.termination_period:g} s{source}"
    )


def _source(s: Settings, platform: Platform) -> str:
    """Where an assumed period comes from, and how to set it."""
    period = f"{s.termination_period:g} s"
    if not platform.name:
        return (
            f"{period} is assumed, because the environment shows no platform: "
            "set grace_termination_period to yours"
        )
    if not platform.knob:
        return f"{period} is the period of {platform.name}, which {platform.sign} shows"
    return (
        f"{period} is the default of {platform.name} ({platform.knob}), which {platform.sign} "
        "shows: set grace_termination_period if yours is another"
    )


def tell(arbiter: Any, settings: Settings) -> None:
    """Log what the timeline comes to. Runs in ``on_starting`` and ``on_reload``."""

    def given(name: str) -> bool:
        return bool(getattr(arbiter.cfg.settings[name], "given", False))

    platform = platforms.here()
    ours = ("termination_period", "shutdown_delay", "drain_reserve", "exit_margin")
    warn, line = budget_line(
        settings,
        graceful_timeout_given=given("graceful_timeout"),
        all_defaults=not any(given(f"grace_{name}") for name in ours),
        platform=platform,
    )
    (arbiter.log.warning if warn else arbiter.log.info)("gunicorn-grace: %s", line)
    if platform.signal:
        # Whoever has set the period has probably set the signal too.
        log = arbiter.log.warning if settings.period_is_assumed else arbiter.log.info
        log("gunicorn-grace: %s; at SIGINT gunicorn ends at once", platform.signal)
