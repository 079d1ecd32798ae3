"""The result of a rehearsal: one contender's run, its deleted instances and the life of each
instance."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from .load.tally import RequestRecord, Tally
from .plan import Contender, Plan
from .report.series import Series, count

#: The termination period in the plugin's line about its budget.
_PERIOD = re.compile(
    r"gunicorn-grace: .*(?:gone by [\d.]+ s of|grace_termination_period) ([\d.]+) s"
)


@dataclass(frozen=True)
class Gone:
    """The end of one deleted instance. Times are seconds since the deletions began, and None for an
    event that has not happened.

    :ivar name: its name.
    :ivar endpoint: the address where it listened.
    :ivar sigterm: time at which SIGTERM was sent.
    :ivar exited: time at which its process was gone.
    :ivar exit_after: seconds from SIGTERM to the end of the process.
    :ivar exit_code: as in ``Popen.returncode``.
    :ivar killed: whether SIGKILL was needed.
    :ivar pre_stop_done: time at which the preStop hook ended or ran out of time; None without one.
    :ivar pre_stop_problem: the problem with the hook; empty if there was none.
    :ivar events: ``(time, text)`` of each event of the shutdown in the plugin's log.
    """

    name: str
    endpoint: str
    sigterm: float | None
    exited: float | None
    exit_after: float | None
    exit_code: int | None
    killed: bool
    pre_stop_done: float | None
    pre_stop_problem: str
    events: tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class Life:
    """One instance from its start to its end. Times are seconds since the deletions began, negative
    before that, and None for an event that has not happened.

    :ivar name: its name.
    :ivar endpoint: the address where it listens.
    :ivar started: time at which its process was launched.
    :ivar listening: time at which it listened.
    :ivar readiness: ``(time, ready)`` for each verdict of the readiness probe. Without a probe the
        instance is ready from ``listening`` on.
    :ivar restarts: ``(time, reason)`` for each restart of the container.
    :ivar deleted: time at which its deletion began.
    :ivar t0: time at which its shutdown began: the plugin logged it, or the first SIGTERM came.
    :ivar unrouted: time at which the last node stopped routing to it.
    :ivar ended: time at which its process was gone.
    :ivar memory: the highest memory measured, in bytes; 0 if unknown.
    """

    name: str
    endpoint: str
    started: float | None
    listening: float | None
    readiness: tuple[tuple[float, bool], ...] = ()
    restarts: tuple[tuple[float, str], ...] = ()
    deleted: float | None = None
    t0: float | None = None
    unrouted: float | None = None
    ended: float | None = None
    memory: int = 0


@dataclass(frozen=True)
class MemoryUse:
    """The memory of all processes of all instances, in bytes.

    :ivar peak: the highest measured sum; 0 if unknown.
    :ivar samples: ``(seconds since the deletions began, bytes)``.
    """

    peak: int = 0
    samples: tuple[tuple[float, int], ...] = ()


@dataclass(frozen=True, repr=False)
class Result:
    """One contender's run.

    :ivar contender: the contender.
    :ivar plan: the plan that was played.
    :ivar tally: the outcome of every request.
    :ivar origin: ``time.monotonic()`` when the deletions began. The records use the same clock.
    :ivar ended: the same for the end of the load.
    :ivar gone: the deleted instances.
    :ivar outputs: everything that each instance printed, by name.
    :ivar lives: every instance, also those that stayed and those that a roll-out added.
    :ivar memory: the memory of the instances.
    :ivar fell_behind: a sentence that says why the numbers cannot be trusted, empty if they can.
    :ivar boot_warnings: warnings and errors that the instances logged while they booted.
    :ivar complete: whether the run came to its end. After Ctrl-C it has the counts until then.
    """

    contender: Contender
    plan: Plan
    tally: Tally
    origin: float
    ended: float
    gone: tuple[Gone, ...]
    outputs: Mapping[str, str]
    lives: tuple[Life, ...] = ()
    memory: MemoryUse = MemoryUse()
    fell_behind: str = ""
    complete: bool = True
    boot_warnings: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """A short text, because pytest shows it in a failing assertion and there are many
        records."""
        return (
            f"<Result {self.contender.name}: {self.tally.lost} of {self.tally.total} requests lost>"
        )

    @property
    def trustworthy(self) -> bool:
        """Whether the load kept the schedule of the plan."""
        return not self.fell_behind

    def since_t0(self, record: RequestRecord) -> float | None:
        """The time from the beginning of an instance's shutdown to the start of a request to it.

        :returns: seconds, or None if the request went to no instance or the instance never shut
            down.
        """
        at = record.started - self.origin
        for life in self.lives:
            if (
                life.endpoint == record.endpoint
                and life.t0 is not None
                and (life.started or at) <= at
            ):
                return at - life.t0
        return None

    @property
    def killed(self) -> int:
        """The number of deleted instances that were ended by SIGKILL at the end of the period."""
        return sum(gone.killed for gone in self.gone)

    @property
    def period_counted_on(self) -> float | None:
        """The termination period that the plugin logged at boot, in seconds; None without the
        plugin."""
        found = [
            float(match[1])
            for gone in self.gone
            if (match := _PERIOD.search(self.outputs.get(gone.name, "")))
        ]
        return max(found, default=None)

    @property
    def flawless(self) -> bool:
        """Whether no request was lost and every instance was gone within its period."""
        return self.tally.lost == 0 and self.killed == 0

    @property
    def lost_elsewhere(self) -> int:
        """The number of lost requests that had gone to instances that stayed.

        If it is above 0, there are too few instances for the rate. With a balancer this is not
        known, and the number is 0.
        """
        if self.plan.through is not None:
            return 0
        deleted = {gone.endpoint for gone in self.gone}
        return sum(
            bool(record.endpoint) and record.endpoint not in deleted
            for record in self.tally.lost_records
        )

    @property
    def exit_after(self) -> float | None:
        """The longest time from SIGTERM to the end of an instance, in seconds; None if no instance
        has ended."""
        return max(
            (gone.exit_after for gone in self.gone if gone.exit_after is not None), default=None
        )

    @property
    def gone_after(self) -> float | None:
        """The longest time from the deletion of an instance to its end, in seconds, including the
        hook; None if no instance has ended."""
        deleted = {life.name: life.deleted or 0.0 for life in self.lives}
        return max(
            (
                gone.exited - deleted.get(gone.name, 0.0)
                for gone in self.gone
                if gone.exited is not None
            ),
            default=None,
        )

    @property
    def budget_used(self) -> float | None:
        """``gone_after`` as a share of the period; None if either is missing."""
        return (
            self.gone_after / self.plan.period
            if self.gone_after is not None and self.plan.period
            else None
        )

    def last_request(self, gone: Gone) -> float | None:
        """Return the time of the last request that was routed to a deleted instance, lost or not,
        in seconds since the deletions began; None if there was none."""
        return max(
            (r.started - self.origin for r in self.tally.records if r.endpoint == gone.endpoint),
            default=None,
        )

    @cached_property
    def series(self) -> Series:
        """The records, counted in steps of time."""
        return count(
            self.tally.records, self.origin, self.ended, {gone.endpoint for gone in self.gone}
        )

    @property
    def plugin_spoke(self) -> bool:
        """Whether a deleted instance logged that the plugin took over."""
        return any("shutdown_initiated" in text for gone in self.gone for _, text in gone.events)

    def as_dict(self) -> dict[str, Any]:
        """Return everything except the outputs as values for JSON, as ``schema.json`` describes a
        result."""
        return {
            "contender": self.contender.name,
            "complete": self.complete,
            "flawless": self.flawless,
            "trustworthy": self.trustworthy,
            "fell_behind": self.fell_behind,
            "boot_warnings": list(self.boot_warnings),
            "killed": self.killed,
            "exit_after": self.exit_after,
            "gone_after": self.gone_after,
            "budget_used": self.budget_used,
            **self.tally.summary(),
            "seconds": [
                min((r.started for r in self.tally.records), default=0) - self.origin,
                self.ended - self.origin,
            ],
            "gone": [asdict(gone) for gone in self.gone],
            "lives": [asdict(life) for life in self.lives],
            "memory": asdict(self.memory),
            "timeline": self.series.as_dict(),
            "lost_requests": [
                {
                    "at": record.started - self.origin,
                    "since_t0": self.since_t0(record),
                    **asdict(record),
                }
                for record in self.tally.lost_records
            ],
        }
