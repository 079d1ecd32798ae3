"""The log line about the budget: how the delay and the drain fit into the platform's period.

Runs in the arbiter. All durations are seconds.
"""

from __future__ import annotations

from typing import Any

from ..shared import platforms
from ..shared.budget import budget, exceeds, longest_delay, whole_seconds
from ..shared.platforms import UNKNOWN, Platform
from ..shared.settings import Settings


def budget_line(
    s: Settings,
    *,
    graceful_timeout_given: bool,
    all_defaults: bool = False,
    platform: Platform = UNKNOWN,
) -> tuple[bool, str]:
    """Return whether the line is a warning, and the line: the sum of the timeline.

    :param s: the settings.
    :param graceful_timeout_given: whether a person chose ``graceful_timeout``. A default that is
        cut is not worth a warning.
    :param all_defaults: whether the period, the delay, the reserve and the margin are all defaults.
        Defaults that are cut to fit a platform are not worth a warning either.
    :param platform: the platform. The line names the setting of the platform that a person would
        have to raise.
    """
    if not s.termination_period:
        return (
            False,
            f"lame duck {s.shutdown_delay:g} s, then up to {s.graceful_timeout:g} s to drain; "
            "the platform's period is not known",
        )
    lame_duck = longest_delay(s)
    left = budget(s) - lame_duck
    # The sums use the values as they were set. A period with room for these values has room enough,
    # because the values in use are never larger.
    needed = s.shutdown_delay + s.graceful_timeout + s.exit_margin

    def more(seconds: float) -> str:
        if not platform.knob:
            return ""
        period = whole_seconds(seconds)
        return f" or raise {platform.knob} and grace_termination_period to {period}"

    source = f"; {_source(s, platform)}" if s.period_is_assumed else ""
    if exceeds(s.shutdown_delay, lame_duck) and not all_defaults:
        reserved = s.shutdown_delay + s.drain_reserve + s.exit_margin
        return True, (
            f"grace_shutdown_delay {s.shutdown_delay:g} + grace_drain_reserve "
            f"{s.drain_reserve:g} + grace_exit_margin {s.exit_margin:g} = {reserved:g} s > "
            f"grace_termination_period {s.termination_period:g} s: "
            f"the delay will be cut to {lame_duck:g} s; "
            f"lower it{more(max(needed, reserved))}{source}"
        )
    if graceful_timeout_given and exceeds(s.graceful_timeout, left):
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
    """Return where an assumed period comes from, and how to set it."""
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


def line_of(cfg: Any, settings: Settings) -> tuple[bool, str]:
    """Return :func:`budget_line` for a loaded gunicorn ``Config`` and its settings."""

    def given(name: str) -> bool:
        return bool(getattr(cfg.settings[name], "given", False))

    ours = ("termination_period", "shutdown_delay", "drain_reserve", "exit_margin")
    return budget_line(
        settings,
        graceful_timeout_given=given("graceful_timeout"),
        all_defaults=not any(given(f"grace_{name}") for name in ours),
        platform=platforms.here(),
    )


def tell(arbiter: Any, settings: Settings) -> None:
    """Log the sum of the timeline, and a hint about the platform's signal. Runs in the arbiter, in
    ``on_starting`` and ``on_reload``."""
    warn, line = line_of(arbiter.cfg, settings)
    (arbiter.log.warning if warn else arbiter.log.info)("gunicorn-grace: %s", line)
    platform = platforms.here()
    if platform.signal:
        # A user who has set the period has probably set the signal too.
        log = arbiter.log.warning if settings.period_is_assumed else arbiter.log.info
        log("gunicorn-grace: %s; at SIGINT gunicorn ends at once", platform.signal)
