"""The budget: how the delay and the drain fit into the platform's period. Arbiter."""

from __future__ import annotations

import math
from typing import Any

from ..shared.settings import Settings


def longest_delay(s: Settings) -> float:
    """How long LAME_DUCK lasts at the most, unless late requests extend it: the delay, or what the
    budget leaves it."""
    if not s.termination_period:
        return s.shutdown_delay
    return min(s.shutdown_delay, max(0.0, s.termination_period - s.exit_margin - s.drain_reserve))


def budget_line(s: Settings, *, graceful_timeout_given: bool) -> tuple[bool, str]:
    """The sum of the timeline in one line, and whether it is a warning.

    :param graceful_timeout_given: whether a person chose ``graceful_timeout``; a default that is
        cut is not worth a warning.
    """
    lame_duck = s.shutdown_delay
    if not s.termination_period:
        drain = s.graceful_timeout
        return (
            False,
            f"lame duck {lame_duck:g} s, then up to {drain:g} s to drain; "
            "the platform's period is not known",
        )
    gone_by = max(0.0, s.termination_period - s.exit_margin)
    left = gone_by - lame_duck
    needed = lame_duck + s.graceful_timeout + s.exit_margin
    formula = (
        f"grace_shutdown_delay {lame_duck:g} + graceful_timeout {s.graceful_timeout:g} + "
        f"grace_exit_margin {s.exit_margin:g} = {needed:g} s > "
        f"grace_termination_period {s.termination_period:g} s"
    )
    if left < s.drain_reserve:
        reserved = lame_duck + s.drain_reserve + s.exit_margin
        enough = math.ceil(max(needed, reserved))
        return True, (
            f"grace_shutdown_delay {lame_duck:g} + grace_drain_reserve {s.drain_reserve:g} + "
            f"grace_exit_margin {s.exit_margin:g} = {reserved:g} s > "
            f"grace_termination_period {s.termination_period:g} s: "
            f"the delay will be cut to {longest_delay(s):g} s; lower it or raise "
            f"terminationGracePeriodSeconds and grace_termination_period to {enough:g}"
        )
    if graceful_timeout_given and s.graceful_timeout > left:
        return True, (
            f"{formula}: draining will be cut to {left:g} s; lower the delay or raise "
            f"terminationGracePeriodSeconds and grace_termination_period to {math.ceil(needed):g}"
        )
    drain = min(s.graceful_timeout, left)
    return False, (
        f"lame duck {lame_duck:g} s, then up to {drain:g} s to drain, "
        f"gone by {lame_duck + drain:g} s "
        f"of {s.termination_period:g} s"
    )


def tell(arbiter: Any, settings: Settings) -> None:
    """Log what the timeline comes to. Runs in ``on_starting`` and ``on_reload``."""
    given = getattr(arbiter.cfg.settings["graceful_timeout"], "given", False)
    warn, line = budget_line(settings, graceful_timeout_given=given)
    (arbiter.log.warning if warn else arbiter.log.info)("gunicorn-grace: %s", line)
