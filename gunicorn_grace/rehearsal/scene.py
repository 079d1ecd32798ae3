"""One scale-down from beginning to end: instances up, load on, some deleted, load off, all counted."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from .errors import InstanceFailed, PlanFailed
from .fleet import Fleet, Instance, MemoryWatch
from .load import Load
from .platform import Deletion, EndpointTable
from .series import Series, count
from .tally import Record, Tally
from .wire import IncompleteResponse, fetch, show_address

#: Words of the plugin's log that belong into a timeline.
_EVENT = re.compile(
    r"gunicorn-grace: (.*(?:shutdown_initiated|lame_duck_ended|sealed|drained|deadline_reached|stopped).*)"
)


@dataclass(frozen=True)
class Contender:
    """Who plays: a name, and what its gunicorn is given besides what the plan says.

    ``pre_stop`` is a preStop hook in place of the plan's, None for that one.
    """

    name: str
    args: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    pre_stop: Sequence[str] | None = None


#: gunicorn as it is.
PLAIN = Contender("plain gunicorn", ("-c", "python:gunicorn_grace.rehearsal.plain"))
#: gunicorn with the plugin.
GRACE = Contender("gunicorn-grace", ("-c", "python:gunicorn_grace.conf"))


@dataclass(frozen=True)
class Plan:
    """What is played. Times are seconds.

    Attributes:
        app: the application, as gunicorn takes it.
        instances: how many there are.
        to: how many remain; one fewer unless given. The others are deleted at the same moment, as a
            scale-down does.
        rate: requests per second, all instances together.
        lag: how long the routing goes on sending to a deleted instance.
        period: terminationGracePeriodSeconds.
        args: arguments for gunicorn, for every contender.
        env: environment for every contender.
        pre_stop: command of the preStop hook, see ``Deletion``; none if empty.
        paths, keepalive_share, slow_path, slow_share, timeout, clients, host, seed: see ``Load``.
        warm_up: requests that must have ended before the deletion; a second's worth, 20 at least, unless
            given.
        cool_down: requests that must have ended after it; as many.
        cwd, python: see ``Instance``.
        start_timeout: for one instance to listen, and again to answer.
    """

    app: str
    instances: int = 3
    to: int | None = None
    rate: float = 100.0
    lag: float = 3.0
    period: float = 30.0
    args: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    pre_stop: Sequence[str] = ()
    paths: Sequence[str] = ("/",)
    keepalive_share: float = 0.5
    slow_path: str | None = None
    slow_share: float = 0.0
    timeout: float = 10.0
    clients: int = 10
    host: str | None = None
    seed: int = 0
    warm_up: int | None = None
    cool_down: int | None = None
    cwd: str | None = None
    python: str = sys.executable
    start_timeout: float = 30.0

    @property
    def remaining(self) -> int:
        """How many instances are not deleted."""
        return self.instances - 1 if self.to is None else self.to

    def check(self) -> None:
        """See whether it can be played.

        Raises:
            PlanFailed: it cannot.
        """
        if not 1 <= self.remaining < self.instances:
            raise PlanFailed(
                f"{self.instances} instances cannot be scaled down to {self.remaining}: one must remain "
                "at least and one must go; see --instances (2 or more) and --to"
            )
        for name, seconds in (("lag", self.lag), ("period", self.period)):
            if seconds < 0:
                raise PlanFailed(f"{name} {seconds:g} s is negative: a time from 0 s on is needed")
        try:
            self._load(EndpointTable())
        except ValueError as error:
            raise PlanFailed(str(error)) from error

    def _load(self, table: EndpointTable) -> Load:
        return Load(
            table,
            rate=self.rate,
            paths=self.paths,
            keepalive_share=self.keepalive_share,
            slow_path=self.slow_path,
            slow_share=self.slow_share,
            timeout=self.timeout,
            clients=self.clients,
            host=self.host,
            seed=self.seed,
        )

    def _instance(self, contender: Contender, number: int) -> Instance:
        instance = Instance(
            self.app,
            env={**self.env, **contender.env},
            cwd=self.cwd,
            python=self.python,
            name=f"instance {number}",
        )
        # What a user's file may say, and several instances on one machine cannot share or a rehearsal cannot
        # do without. The command line has the last word in gunicorn.
        own = ("--pid", str(instance.runtime_dir / "pid"), "--log-level", "info", "--error-logfile", "-")
        instance.args = (*contender.args, *own, *self.args)
        return instance


@dataclass(frozen=True)
class Gone:
    """What became of one deleted instance. Times are seconds since the deletions began."""

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
    """One instance from its start to its end. Times are seconds since the deletions began, so that what came
    before them is negative; None is what it has not come to.

    Attributes:
        name: which one.
        endpoint: where it listens.
        started: its process was launched.
        listening: it listened.
        readiness: ``(time, ready)`` whenever the platform changed its mind, by the readiness probe and its
            thresholds; without a probe it is ready from ``listening`` on.
        restarts: ``(time, why)`` for each restart of the container, as by a failed liveness probe.
        deleted: its deletion began.
        t0: its shutdown began: the plugin said so, or the first SIGTERM came.
        unrouted: the last node stopped routing to it.
        ended: its process was gone.
        memory: the most that it was seen to hold, bytes; 0 if unknown.
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
class Memory:
    """What all processes of all instances held, bytes.

    Attributes:
        peak: the most at one look; 0 where it cannot be told.
        samples: ``(seconds since the deletions began, bytes)``.
    """

    peak: int = 0
    samples: tuple[tuple[float, int], ...] = ()


@dataclass(frozen=True, repr=False)
class Result:
    """One contender's run.

    Attributes:
        contender: who.
        plan: what was played.
        tally: what became of every request.
        origin: ``time.monotonic()`` when the deletions began; records count from the same clock.
        ended: the same for the end of the load.
        gone: the deleted instances.
        outputs: everything that each instance printed, by name.
        lives: every instance, those that stayed and those that a roll-out added among them.
        memory: what they held in memory.
        fell_behind: why the numbers cannot be trusted, in a sentence; empty if they can.
        complete: whether it was played to its end; Ctrl-C leaves what was counted until then.
    """

    contender: Contender
    plan: Plan
    tally: Tally
    origin: float
    ended: float
    gone: tuple[Gone, ...]
    outputs: Mapping[str, str]
    lives: tuple[Life, ...] = ()
    memory: Memory = Memory()
    fell_behind: str = ""
    complete: bool = True

    def __repr__(self) -> str:
        """Short: pytest shows it in a failing assertion, and the records are thousands."""
        return f"<Result {self.contender.name}: {self.tally.lost} of {self.tally.total} requests lost>"

    @property
    def trustworthy(self) -> bool:
        """Whether the load was what the plan asked for."""
        return not self.fell_behind

    def since_t0(self, record: Record) -> float | None:
        """When a request was started, in seconds since the shutdown of the instance that it went to began.

        None if it went to no instance, or to one whose shutdown never began.
        """
        at = record.started - self.origin
        for life in self.lives:
            if life.endpoint == record.endpoint and life.t0 is not None and (life.started or at) <= at:
                return at - life.t0
        return None

    @property
    def killed(self) -> int:
        """How many of the deleted instances had to be killed at the end of the period."""
        return sum(gone.killed for gone in self.gone)

    @property
    def flawless(self) -> bool:
        """Nothing was lost, and every instance was gone within its period."""
        return self.tally.lost == 0 and self.killed == 0

    @property
    def lost_elsewhere(self) -> int:
        """How many of the lost requests had gone to instances that stayed: those are too few for the rate."""
        deleted = {gone.endpoint for gone in self.gone}
        return sum(bool(record.endpoint) and record.endpoint not in deleted for record in self.tally.lost_records)

    @property
    def exit_after(self) -> float | None:
        """The longest time from SIGTERM to the end of an instance."""
        return max((gone.exit_after for gone in self.gone if gone.exit_after is not None), default=None)

    @property
    def gone_after(self) -> float | None:
        """The longest time from the deletion of an instance to its end, seconds: a preStop hook counts in."""
        deleted = {life.name: life.deleted or 0.0 for life in self.lives}
        return max(
            (gone.exited - deleted.get(gone.name, 0.0) for gone in self.gone if gone.exited is not None), default=None
        )

    @property
    def budget_used(self) -> float | None:
        """``gone_after`` as a share of the period; None where one of the two is missing."""
        return self.gone_after / self.plan.period if self.gone_after is not None and self.plan.period else None

    def last_request(self, gone: Gone) -> float | None:
        """When the last request was routed to a deleted instance, lost or not; seconds since the deletions began."""
        return max((r.started - self.origin for r in self.tally.records if r.endpoint == gone.endpoint), default=None)

    @cached_property
    def series(self) -> Series:
        """The records, counted in steps of time."""
        return count(self.tally.records, self.origin, self.ended, {gone.endpoint for gone in self.gone})

    @property
    def plugin_spoke(self) -> bool:
        """Whether a deleted instance logged that the plugin took over."""
        return any("shutdown_initiated" in text for gone in self.gone for _, text in gone.events)

    def as_dict(self) -> dict[str, Any]:
        """Everything but the outputs, ready for JSON: what ``schema.json`` calls a result."""
        return {
            "contender": self.contender.name,
            "complete": self.complete,
            "flawless": self.flawless,
            "trustworthy": self.trustworthy,
            "fell_behind": self.fell_behind,
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
                {"at": record.started - self.origin, "since_t0": self.since_t0(record), **asdict(record)}
                for record in self.tally.lost_records
            ],
        }


class Interrupted(KeyboardInterrupt):
    """Ctrl-C after the deletions began. ``result`` is what the run came to until then."""

    def __init__(self, result: Result) -> None:
        self.result = result
        super().__init__()


def play(
    plan: Plan,
    contender: Contender,
    tell: Callable[[str], None] = lambda line: None,
    watch_load: Callable[[Load], None] = lambda load: None,
) -> Result:
    """Play ``plan`` with ``contender``. However it ends, no process of it is left.

    Args:
        plan: what to play.
        contender: with whom.
        tell: told in a line what is going on.
        watch_load: given the load once it runs, to show how it fares.

    Raises:
        Interrupted: Ctrl-C after the deletions began; it carries what was counted until then.
        PlanFailed: the plan cannot be played, or a path does not answer 2xx before anything was deleted.
        InstanceFailed: an instance did not come up, or one that was to stay ended by itself.
        LoadFailed: the load generator failed.
    """
    if contender.pre_stop is not None:
        plan = replace(plan, pre_stop=contender.pre_stop)
    plan.check()
    fleet = Fleet([plan._instance(contender, number + 1) for number in range(plan.instances)])
    table = EndpointTable()
    deletions: list[Deletion] = []
    warm_up = max(20, round(plan.rate)) if plan.warm_up is None else plan.warm_up
    cool_down = max(20, round(plan.rate)) if plan.cool_down is None else plan.cool_down
    stack = ExitStack()
    load: Load | None = None
    origin: float | None = None

    def found(tally: Tally, origin: float, complete: bool = True) -> Result:
        """The result as far as it has come."""
        by_instance = {deletion.instance: deletion for deletion in deletions}
        return Result(
            contender,
            plan,
            tally,
            origin,
            time.monotonic(),
            tuple(_gone(deletion, origin) for deletion in deletions),
            {instance.name: instance.output for instance in fleet},
            tuple(_life(instance, by_instance.get(instance), origin, watch) for instance in fleet),
            Memory(watch.peak, tuple((at - origin, held) for at, held in watch.samples)),
            tally.fell_behind(origin, max((deletion.unrouted or origin for deletion in deletions), default=origin)),
            complete,
        )

    try:
        tell(f"{contender.name}: starting {plan.instances} instances")
        fleet.start(plan.start_timeout, ready=plan.start_timeout)
        _expect_success(plan, fleet)
        for instance in fleet:
            table.add(instance.address)
        watch = stack.enter_context(MemoryWatch(lambda: fleet.instances))
        with plan._load(table) as load:
            tell(f"{contender.name}: {plan.rate:g} requests per second, {warm_up} to warm up")
            watch_load(load)
            load.wait_completed(warm_up)
            if lost := load.snapshot().lost_records:
                raise PlanFailed(
                    f"{len(lost)} of {load.completed} requests were lost before anything was deleted "
                    f"(the first: {lost[0].outcome.value}, {lost[0].error}): lower --rate or add --workers"
                )
            origin = time.monotonic()
            tell(f"{contender.name}: deleting {plan.instances - plan.remaining} of {plan.instances}")
            for instance in fleet.instances[plan.remaining :]:
                deletions.append(Deletion(instance, table, lag=plan.lag, period=plan.period, pre_stop=plan.pre_stop))
            for deletion in deletions:
                deletion.start()
            for deletion in deletions:
                deletion.join()
            load.wait_completed(cool_down)
            tally = load.stop()
        for instance in fleet.instances[: plan.remaining]:
            if instance.exit_time is not None:
                raise InstanceFailed(
                    f"{instance.name} was to stay but ended with exit code {instance.exit_code}",
                    instance.output,
                )
        watch.look()
        return found(tally, origin)
    except KeyboardInterrupt as error:
        if load is None or origin is None:
            raise
        raise Interrupted(found(load.snapshot(), origin, complete=False)) from error
    finally:
        stack.close()
        for deletion in deletions:
            deletion.cancel()
        fleet.stop()


def _expect_success(plan: Plan, fleet: Fleet) -> None:
    """Every path answers 2xx now, or the count of losses would mean nothing."""
    headers = [("Host", plan.host)] if plan.host else []
    for path in dict.fromkeys([*plan.paths, *([plan.slow_path] if plan.slow_path else [])]):
        try:
            response = fetch(fleet[0].address, path, headers=headers, timeout=plan.timeout)
        except (IncompleteResponse, OSError) as error:
            raise PlanFailed(f"GET {path} failed before anything was deleted: {error}\n{fleet[0].output}") from error
        if not 200 <= response.status < 300:
            raise PlanFailed(
                f"GET {path} answers {response.status}, not 2xx, before anything was deleted: "
                f"name a path that succeeds\n{fleet[0].output}"
            )


def _gone(deletion: Deletion, origin: float) -> Gone:
    def since(stamp: float | None) -> float | None:
        return None if stamp is None else stamp - origin

    events = tuple((at - origin, match[1]) for at, text in deletion.instance.lines if (match := _EVENT.search(text)))
    return Gone(
        deletion.instance.name,
        show_address(deletion.instance.address),
        since(deletion.sigterm),
        since(deletion.exited),
        deletion.exit_after,
        deletion.exit_code,
        deletion.killed,
        since(deletion.pre_stop_done),
        deletion.pre_stop_problem,
        events,
    )


def _life(instance: Instance, deletion: Deletion | None, origin: float, watch: MemoryWatch) -> Life:
    def since(stamp: float | None) -> float | None:
        return None if stamp is None else stamp - origin

    began = [at for at, text in instance.lines if "shutdown_initiated" in text]
    if deletion is not None and deletion.sigterm is not None:
        began.append(deletion.sigterm)
    return Life(
        instance.name,
        show_address(instance.address),
        since(instance.started),
        since(instance.listened),
        deleted=since(deletion.started if deletion else None),
        t0=since(min(began, default=None)),
        unrouted=since(deletion.unrouted if deletion else None),
        ended=since(instance.exit_time),
        memory=watch.each.get(str(instance.runtime_dir), 0),
    )
