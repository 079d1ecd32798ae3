"""Adds up the delay, the drain, the reserve and the margin, within a platform's limit.

All durations are seconds.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from decimal import Decimal

from ...errors import ConfigurationError
from ...shared.budget import (
    MARGIN_SHARE,
    drain_reserve,
    exceeds,
    exit_margin,
    longest_delay,
    whole_seconds,
)
from ...shared.settings import A_YEAR, Settings
from ..routers import Router
from .places import Place

SHORTEST = 2
"""The shortest period that is printed, which is the minimum of ECS (``stopTimeout``)."""

ROOM = 3
"""The shortest delay in which a readiness probe can turn red: a probe each second, which may take
two seconds."""


@dataclass(frozen=True)
class Sum:
    """The result of adding up the seconds.

    :ivar settings: the settings, with the delay and the period that are printed.
    :ivar told: the sum in words.
    :ivar warnings: the values that are printed but differ from those that were set, each with the
        fix.
    """

    settings: Settings
    told: str
    warnings: tuple[str, ...] = ()

    @property
    def period(self) -> int:
        """The platform's period, in seconds."""
        return int(self.settings.termination_period)

    @property
    def delay(self) -> float:
        """``grace_shutdown_delay``, in seconds."""
        return self.settings.shutdown_delay

    @property
    def drain(self) -> float:
        """The seconds that are left for the drain if the delay is not extended."""
        s = self.settings
        return min(s.graceful_timeout, s.termination_period - exit_margin(s) - s.shutdown_delay)


def add_up(s: Settings, given: Collection[str], place: Place, router: Router | None) -> Sum:
    """Find the delay and the period.

    The period has room for the whole delay, the whole ``graceful_timeout``, the reserve and the
    margin. So late requests may extend the delay by the reserve, and the requests that are then in
    flight still have their whole time.

    :param s: the settings as they are now.
    :param given: the names of the settings that a person chose.
    :param place: the platform.
    :param router: the router in front; None if it is not named.
    :raises ConfigurationError: the sum is larger than ``grace_termination_period`` may be.
    """
    warnings = []
    delay = s.shutdown_delay
    if router is not None:
        needed = router.needs(s.readiness_delay)
        if "shutdown_delay" in given and delay < needed:
            warnings.append(
                f"grace_shutdown_delay {number(delay)} s < {number(needed)} s, for which "
                f"{router.name} goes on sending: {number(needed)} is printed; set it to that"
            )
        if "shutdown_delay" not in given or delay < needed:
            delay = needed
    least = math.ceil(s.readiness_delay) + ROOM
    if place.is_kubernetes and delay < least:
        if "shutdown_delay" in given:
            warnings.append(
                f"grace_shutdown_delay {number(delay)} s < grace_readiness_delay "
                f"{number(s.readiness_delay)} + {ROOM} s, before which no readiness probe turns "
                f"red: {least} is printed; set it to that"
            )
        delay = least
    s = replace(s, shutdown_delay=delay)
    base = delay + s.graceful_timeout + s.drain_reserve
    # At most a share of the period is used as the margin, so a large margin does not make the
    # period longer without limit.
    wanted = max(SHORTEST, whole_seconds(min(base + s.exit_margin, base / (1 - MARGIN_SHARE))))
    chosen = s.termination_period if "termination_period" in given else 0
    period = max(wanted, math.ceil(chosen))
    if place.is_fixed and place.limit is not None:
        period = place.limit
    s = replace(s, termination_period=min(period, place.limit or period))
    told = (
        f"delay {number(delay)} + graceful_timeout {number(s.graceful_timeout)} + "
        f"grace_drain_reserve {number(s.drain_reserve)} + grace_exit_margin "
        f"{number(exit_margin(replace(s, termination_period=wanted)))} = {wanted} s"
    )
    if s.termination_period > A_YEAR:
        raise ConfigurationError(
            f"{told} > {A_YEAR} s, the most that grace_termination_period takes: lower one of them"
        )
    if 0 < chosen < wanted and not place.is_fixed and s.termination_period >= wanted:
        warnings.append(
            f"{told} > grace_termination_period {number(chosen)}: {wanted} is printed; set "
            "grace_termination_period to that"
        )
    if wanted > s.termination_period:
        s, warning = _cut(s, told, place)
        warnings.append(warning)
    return Sum(s, told, tuple(warnings))


def _cut(s: Settings, told: str, place: Place) -> tuple[Settings, str]:
    """Cut the delay so that the sum fits into the limit.

    :returns: the settings with that delay, and a warning about the parts that do not fit.
    """
    whole = s.shutdown_delay
    s = replace(s, shutdown_delay=longest_delay(s))
    left = s.termination_period - exit_margin(s) - s.shutdown_delay
    cuts = []
    if exceeds(whole, s.shutdown_delay):
        cuts.append(f"the delay is cut to {number(s.shutdown_delay)} s")
    if exceeds(s.graceful_timeout, left):
        cuts.append(f"requests that need more than {number(left)} s to drain are cut off")
    else:
        cuts.append(f"late requests extend the delay by {number(left - drain_reserve(s))} s only")
    most = f"{place.limit} s, " + (
        f"after which {place.title} sends SIGKILL"
        if place.is_fixed
        else f"the most of {place.knob}"
    )
    return s, f"{told} > {most}: {', and '.join(cuts)}; lower them, or {place.way_out}"


def number(seconds: float) -> str:
    """Return seconds as a setting takes them: with all digits and without an exponent."""
    if float(seconds).is_integer():
        return str(int(seconds))
    return format(Decimal(repr(float(seconds))), "f")
