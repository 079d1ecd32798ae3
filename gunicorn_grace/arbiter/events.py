"""The log lines of a shutdown's events, in the past tense. Other programs search the log for them.

Runs in the arbiter's main thread. The summary line is in :mod:`gunicorn_grace.arbiter.telling`.
"""

from __future__ import annotations

from typing import Any

from ..shared.cells import NS
from ..shared.phase import Origin
from .lifecycle import Observation, Reason
from .progress import Progress


def shutdown_initiated(
    log: Any, progress: Progress, seen: Observation, in_flight: int | None
) -> None:
    """Log that LAME_DUCK begins.

    :param log: gunicorn's logger.
    :param progress: the progress of the shutdown.
    :param seen: the observation on which the phase was entered.
    :param in_flight: the requests in flight at this moment; ``None`` if they cannot be counted.
    """
    by_signal = seen.origin is Origin.SIGTERM
    until = f"for {progress.delay / NS:g} s"
    log.info(
        "gunicorn-grace: shutdown_initiated by %s: not ready %s, %s",
        "SIGTERM" if by_signal else f"trigger ({seen.origin.name.lower()})",
        "until undrain" if seen.origin is Origin.DRAIN else until,
        "requests are not counted"
        if in_flight is None
        else f"{in_flight} in flight, {seen.rate:.1f} requests/s before",
    )


def trigger_expired(log: Any, trigger: Origin, seen: Observation, then: str) -> None:
    """Log that no SIGTERM followed a platform's trigger.

    :param log: gunicorn's logger.
    :param trigger: the trigger that has expired.
    :param seen: the observation in which it had expired.
    :param then: what the instance does now.
    """
    log.error(
        "gunicorn-grace: trigger_expired: %s was not followed by SIGTERM within %.0f s; %s%s",
        trigger.name.lower(),
        seen.now - (seen.clock or seen.now),
        then,
        ", and ?down=true is disabled until restart" if trigger is Origin.HTTP else "",
    )


def lame_duck_ended(log: Any, seen: Observation, reason: Reason) -> None:
    """Log that DRAINING begins."""
    log.info(
        "gunicorn-grace: lame_duck_ended after %.1f s: %s", seen.now - (seen.t0 or seen.now), reason
    )


def draining_ended(log: Any, seen: Observation, reason: Reason, cut_off: int | None) -> None:
    """Log that STOPPED begins, if the workers have finished or the deadline has come.

    :param log: gunicorn's logger.
    :param seen: the observation on which the phase was entered.
    :param reason: why it was entered.
    :param cut_off: the requests that are lost now; ``None`` if they cannot be counted.
    """
    drained_for = seen.now - (seen.drain_started or seen.now)
    if reason is Reason.DRAINED:
        log.info("gunicorn-grace: drained in %.1f s", drained_for)
    elif reason is Reason.DEADLINE:
        log.error(
            "gunicorn-grace: deadline_reached after %.1f s of draining: requests cut off: %s, "
            "workers left: %d",
            drained_for,
            "not counted" if cut_off is None else cut_off,
            seen.workers,
        )
