"""One scale-down from beginning to end: instances up, load on, some deleted, load off, all
counted."""

from __future__ import annotations

import os
import random
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from types import TracebackType
from typing import Any

from .errors import InstanceFailed, PlanFailed
from .kubernetes.platform import Deletion, EndpointTable, Hook, Lag
from .kubernetes.pod import Pod
from .kubernetes.probing import Kind, Probe, Prober
from .kubernetes.rollout import Counts, Rollout, Step, next_step
from .load.generator import Generator
from .load.load import Counting, Load
from .load.requests import Request
from .load.tally import Record, Tally
from .load.wire import IncompleteResponse, fetch, show_address
from .processes.balancers import PRODUCTS, Balancer, Setup, in_front
from .processes.fleet import Fleet, Instance, MemoryWatch
from .report.series import Series, count

#: Words of the plugin's log that belong into a timeline.
_EVENT = re.compile(
    r"gunicorn-grace: (.*(?:shutdown_initiated|lame_duck_ended|sealed|drained|deadline_reached|stopped).*)"
)


#: The readiness that is watched when nobody said what to ask: often enough to be drawn, and of no
#: effect.
WATCHED = Probe("/readyz", period=1.0, failure_threshold=1)


@dataclass(frozen=True)
class Contender:
    """Who plays: a name, and what its gunicorn is given besides what the plan says.

    ``pre_stop`` is a preStop hook in place of the plan's, None for that one.
    """

    name: str
    args: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    pre_stop: Sequence[str] | Hook | None = None


#: gunicorn as it is.
PLAIN = Contender("plain gunicorn", ("-c", "python:gunicorn_grace.rehearsal.command.plain"))
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
        lag: how long the routing goes on sending to a deleted instance; at the longest, with ``routing``.
        routing: the same for each node by itself.
        period: terminationGracePeriodSeconds.
        args: arguments for gunicorn, for every contender.
        env: environment for every contender.
        pre_stop: the preStop hook, or its command, see ``Deletion``; none if empty.
        probes: what the platform asks each instance. None: nothing that has an effect; readiness is watched all
            the same, for the record, where ``WATCHED`` is answered.
        rollout: replace every instance, in place of a scale-down.
        paths, requests, think, keepalive_share, slow_path, slow_share, timeout, clients, host, seed: see ``Load``.
        warm_up: requests that must have ended before the deletion; a second's worth, 20 at least, unless
            given.
        cool_down: requests that must have ended after it; as many.
        through: the balancer between load and instances, a name of ``balancers.PRODUCTS``; none unless given.
        setup: how that is set up; its ``path`` and ``timeout`` follow from the rest of the plan.
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
    pre_stop: Sequence[str] | Hook = ()
    probes: Mapping[Kind, Probe] | None = None
    rollout: Rollout | None = None
    routing: Lag | None = None
    requests: Sequence[Request] = ()
    think: float = 0.0
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
    through: str | None = None
    setup: Setup = Setup()
    cwd: str | None = None
    python: str = sys.executable
    start_timeout: float = 30.0

    @property
    def remaining(self) -> int:
        """How many instances are not deleted; after a roll-out, as many as before."""
        if self.rollout is not None:
            return self.instances
        return self.instances - 1 if self.to is None else self.to

    def check(self) -> None:
        """See whether it can be played.

        Raises:
            PlanFailed: it cannot.
        """
        if self.rollout is not None and (self.instances < 1 or self.to is not None):
            raise PlanFailed(
                f"a roll-out replaces every instance: {self.instances} are too few"
                if self.instances < 1
                else f"a roll-out replaces every instance: it cannot scale to {self.to} as well; leave out --to"
            )
        if self.rollout is None and not 1 <= self.remaining < self.instances:
            raise PlanFailed(
                f"{self.instances} instances cannot be scaled down to {self.remaining}: one must remain "
                "at least and one must go; see --instances (2 or more) and --to"
            )
        for name, seconds in (("lag", self.lag), ("period", self.period)):
            if seconds < 0:
                raise PlanFailed(f"{name} {seconds:g} s is negative: a time from 0 s on is needed")
        if self.through is not None:
            if self.through not in PRODUCTS:
                raise PlanFailed(f"through {self.through!r}: choose one of {', '.join(PRODUCTS)}")
            PRODUCTS[self.through].require()
        try:
            Load(EndpointTable(), **self._options())
        except ValueError as error:
            raise PlanFailed(str(error)) from error

    def _load(self, table: EndpointTable) -> Generator:
        return Generator(table, **self._options())

    def _options(self) -> dict[str, Any]:
        """What a load is given."""
        return {
            "rate": self.rate,
            "paths": self.paths,
            "keepalive_share": self.keepalive_share,
            "slow_path": self.slow_path,
            "slow_share": self.slow_share,
            "timeout": self.timeout,
            "clients": self.clients,
            "host": self.host,
            "seed": self.seed,
            "requests": self.requests,
            "think": self.think,
            "slow_node_share": self.routing.slow_share if self.routing else 0.0,
        }

    def _lags(self) -> float | tuple[float, ...]:
        """The lag of all nodes, or one for each client of the load, drawn anew from the same
        seed."""
        return (
            self.routing.draw(self.clients, random.Random(self.seed)) if self.routing else self.lag
        )

    def _sent(self) -> tuple[Request, ...]:
        """All that the load sends."""
        load = Load(EndpointTable(), **self._options())
        return (*load.requests, *([load.slow] if load.slow else []))

    def _balancer(self, fleet: Fleet, tell: Callable[[str], None]) -> Balancer | None:
        """What stands in front of ``fleet``. Where readiness is no path of the application, as in
        the plain contender, it asks for the first of ``paths``: with checks that never pass there
        would be nothing to compare."""
        if self.through is None:
            return None
        path = self.env.get("GRACE_READINESS_PATH", Setup.path)
        host = [("Host", self.host)] if self.host else []
        if (
            status := fetch(fleet[0].address, path, headers=host, timeout=self.timeout).status
        ) != 200:
            tell(
                f"GET {path} answers {status}: {self.through} asks for {self.paths[0]} instead "
                "(GRACE_READINESS_PATH names another path)"
            )
            path = self.paths[0]
        setup = replace(self.setup, path=path, timeout=self.timeout)
        return PRODUCTS[self.through]([instance.address for instance in fleet], setup)

    def _instance(self, contender: Contender, name: str, bind: str = "127.0.0.1:0") -> Instance:
        instance = Instance(
            self.app,
            env={**self.env, **contender.env},
            cwd=self.cwd,
            python=self.python,
            name=name,
            bind=bind,
        )
        # What a user's file may say, and several instances on one machine cannot share or a
        # rehearsal cannot do without. The command line has the last word in gunicorn.
        own = (
            "--pid",
            str(instance.runtime_dir / "pid"),
            "--log-level",
            "info",
            "--error-logfile",
            "-",
        )
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
    """One instance from its start to its end. Times are seconds since the deletions began, so that
    what came before them is negative; None is what it has not come to.

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
        return (
            f"<Result {self.contender.name}: {self.tally.lost} of {self.tally.total} requests lost>"
        )

    @property
    def trustworthy(self) -> bool:
        """Whether the load was what the plan asked for."""
        return not self.fell_behind

    def since_t0(self, record: Record) -> float | None:
        """When a request was started, in seconds since the shutdown of the instance that it went to
        began.

        None if it went to no instance, or to one whose shutdown never began.
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
        """How many of the deleted instances had to be killed at the end of the period."""
        return sum(gone.killed for gone in self.gone)

    @property
    def flawless(self) -> bool:
        """Nothing was lost, and every instance was gone within its period."""
        return self.tally.lost == 0 and self.killed == 0

    @property
    def lost_elsewhere(self) -> int:
        """How many of the lost requests had gone to instances that stayed: those are too few for
        the rate.

        Through a balancer nobody can tell, and it is 0.
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
        """The longest time from SIGTERM to the end of an instance."""
        return max(
            (gone.exit_after for gone in self.gone if gone.exit_after is not None), default=None
        )

    @property
    def gone_after(self) -> float | None:
        """The longest time from the deletion of an instance to its end, seconds: a preStop hook
        counts in."""
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
        """``gone_after`` as a share of the period; None where one of the two is missing."""
        return (
            self.gone_after / self.plan.period
            if self.gone_after is not None and self.plan.period
            else None
        )

    def last_request(self, gone: Gone) -> float | None:
        """When the last request was routed to a deleted instance, lost or not; seconds since the
        deletions began."""
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
                {
                    "at": record.started - self.origin,
                    "since_t0": self.since_t0(record),
                    **asdict(record),
                }
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
    watch_load: Callable[[Counting], None] = lambda load: None,
) -> Result:
    """Play ``plan`` with ``contender``. However it ends, no process of it is left.

    Args:
        plan: what to play.
        contender: with whom.
        tell: told in a line what is going on.
        watch_load: given the load once it runs, to show how it fares.

    Raises: Interrupted: Ctrl-C after the deletions began; it carries what was counted until then.
        PlanFailed: the plan cannot be played, or a path does not answer 2xx before anything was
        deleted. InstanceFailed: an instance did not come up, or one that was to stay ended by
        itself. LoadFailed: the load generator failed.
    """
    if contender.pre_stop is not None:
        plan = replace(plan, pre_stop=contender.pre_stop)
    plan.check()
    warm_up = max(20, round(plan.rate)) if plan.warm_up is None else plan.warm_up
    cool_down = max(20, round(plan.rate)) if plan.cool_down is None else plan.cool_down
    load: Counting | None = None
    origin: float | None = None
    with ExitStack() as stack:
        stage = stack.enter_context(_Stage(plan, contender))
        balancer: Balancer | None = None
        watch = MemoryWatch(stage.containers)

        def found(tally: Tally, origin: float, complete: bool = True) -> Result:
            """The result as far as it has come."""
            deletions = [pod.deletion for pod in stage.pods if pod.deletion is not None]
            return Result(
                contender,
                plan,
                tally,
                origin,
                time.monotonic(),
                tuple(_gone(deletion, origin) for deletion in deletions),
                {
                    process.name: process.output
                    for process in (*stage.containers(), *([balancer] if balancer else []))
                },
                tuple(_life(pod, origin, watch) for pod in stage.pods),
                Memory(watch.peak, tuple((at - origin, held) for at, held in watch.samples)),
                tally.fell_behind(
                    origin,
                    max((deletion.unrouted or origin for deletion in deletions), default=origin),
                ),
                complete,
            )

        try:
            tell(f"{contender.name}: starting {plan.instances} instances")
            stage.start(tell)
            _expect_success(plan, stage.fleet)
            stack.enter_context(watch)
            balancer = plan._balancer(stage.fleet, tell)
            with in_front(balancer, stage.table, tell) as front, plan._load(front) as load:
                tell(f"{contender.name}: {plan.rate:g} requests per second, {warm_up} to warm up")
                watch_load(load)
                load.wait_completed(warm_up)
                if lost := load.snapshot().lost_records:
                    raise PlanFailed(
                        f"{len(lost)} of {load.completed} requests were lost before anything was deleted "
                        f"(the first: {lost[0].outcome.value}, {lost[0].error}): lower --rate or add --workers"
                    )
                origin = time.monotonic()
                if plan.rollout is None:
                    tell(
                        f"{contender.name}: deleting {plan.instances - plan.remaining} of {plan.instances}"
                    )
                    stage.scale_down()
                else:
                    tell(f"{contender.name}: replacing {plan.instances}")
                    stage.roll_out(plan.rollout)
                load.wait_completed(cool_down)
                tally = load.stop()
            watch.look()
            stage.check()
            return found(tally, origin)
        except KeyboardInterrupt as error:
            if load is None or origin is None:
                raise
            raise Interrupted(found(load.snapshot(), origin, complete=False)) from error


class _Stage:
    """The pods of one run, from the first start to the certainty that nothing of them is left."""

    def __init__(self, plan: Plan, contender: Contender) -> None:
        self.plan = plan
        self.contender = contender
        self.table = EndpointTable()
        self.pods: list[Pod] = []
        self.fleet = Fleet(
            [plan._instance(contender, f"instance {n + 1}") for n in range(plan.instances)]
        )
        self._lags = plan._lags()
        self._prober = Prober()
        self._observed = False
        self._probes: Mapping[Kind, Probe] = plan.probes or {}

    def __enter__(self) -> _Stage:
        self._prober.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with ExitStack() as stack:  # each of them, also when another one fails
            stack.callback(self._prober.stop)
            stack.callback(self.fleet.stop)
            for pod in self.pods:
                stack.callback(pod.close)

    @property
    def _patience(self) -> float:
        """Seconds until a pod must be ready: a start's time, and what its probes take even if all
        goes well."""
        probes = self._probes.values()
        return self.plan.start_timeout + sum(
            p.initial_delay + p.success_threshold * p.period for p in probes
        )

    def containers(self) -> list[Instance]:
        """Every instance that there is or was."""
        started = {instance: None for pod in list(self.pods) for instance in pod.instances}
        return [*started, *(instance for instance in self.fleet if instance not in started)]

    def start(self, tell: Callable[[str], None]) -> None:
        """Start the instances, and wait until the platform takes each for ready.

        Raises:
            InstanceFailed: one did not come up.
            RehearsalError: one was not ready in time.
            PlanFailed: a probe asks for a path that is not there.
        """
        plan = self.plan
        self.fleet.start(plan.start_timeout, ready=plan.start_timeout)
        if plan.probes is None and 200 <= _status(self.fleet[0], WATCHED) < 400:
            # Ten a second at most for the whole fleet: watching is not to be a load of its own.
            watched = replace(WATCHED, period=max(WATCHED.period, plan.instances / 10))
            self._observed, self._probes = True, {Kind.READINESS: watched}
        for kind, probe in (plan.probes or {}).items():
            if _status(self.fleet[0], probe) == 404:
                said = f"{kind.value} probe GET {probe.path} answers 404"
                if PLAIN.args[-1] not in self.contender.args:
                    raise PlanFailed(
                        f"{said}, so that no instance would ever pass it: name a path that is there"
                    )
                tell(f"{self.contender.name}: {said}: left out")
                self._probes = {
                    other: asked for other, asked in self._probes.items() if other is not kind
                }
        for instance in self.fleet:
            self._pod(instance).begin()
        for pod in self.pods:
            pod.wait_ready(self._patience)

    def scale_down(self) -> None:
        """Delete what does not remain, all at the same moment, and wait until it is gone and
        forgotten."""
        for deletion in [pod.delete() for pod in self.pods[self.plan.remaining :]]:
            deletion.join()

    def roll_out(self, rollout: Rollout) -> None:
        """Replace every instance, as the Deployment controller does, and wait until the old ones
        are gone."""
        wanted = self.plan.instances
        old, new = list(self.pods), []
        starting: list[Future[Pod]] = []
        deletions: list[Deletion] = []
        with ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="roll-out") as pool:
            try:
                while True:
                    self.check()
                    new += [future.result() for future in starting if future.done()]
                    starting = [future for future in starting if not future.done()]
                    available = [pod for pod in new if pod.available(rollout.min_ready)]
                    leaving = sum(deletion.exited is None for deletion in deletions)
                    if not old and len(available) == wanted and not leaving:
                        break
                    passing = [pod for pod in old if pod.available(rollout.min_ready)]
                    counts = Counts(
                        len(old), len(passing), len(new) + len(starting), len(available), leaving
                    )
                    step = next_step(wanted, rollout, counts)
                    for _ in range(step.create):
                        number = len(self.fleet) + 1
                        self.fleet.instances.append(
                            self.plan._instance(self.contender, f"instance {number}")
                        )
                        starting.append(pool.submit(self._start_one, self.fleet.instances[-1]))
                    # Those that are not available go first; then the youngest, as a ReplicaSet has
                    # it (pkg/controller/controller_utils.go, ActivePodsWithRanks).
                    old.sort(key=lambda pod: pod in passing)
                    for pod in old[: step.delete]:
                        deletions.append(pod.delete())
                    old = old[step.delete :]
                    for pod in new:
                        if not pod.ready and not self._observed:
                            pod.wait_ready_by(self._patience)
                    if step == Step():
                        time.sleep(0.05)
            except BaseException:
                # Also on Ctrl-C: stopping them lets the threads of the pool end, which it waits
                # for.
                pool.shutdown(wait=False, cancel_futures=True)
                self.fleet.stop()
                raise
        for deletion in deletions:
            deletion.join()

    def check(self) -> None:
        """Raise what went wrong behind the scene's back."""
        self._prober.check()
        for pod in self.pods:
            if pod.problem is not None:
                raise pod.problem
            if pod.deletion is None and not pod.restarting and pod.instance.exit_time is not None:
                raise InstanceFailed(
                    f"{pod.name} was to stay but ended with exit code {pod.instance.exit_code}",
                    pod.instance.output,
                )

    def _pod(self, instance: Instance) -> Pod:
        plan = self.plan

        def again(before: Instance) -> Instance:
            name = f"{before.name.partition(',')[0]}, restart {len(pod.restarts)}"
            return plan._instance(self.contender, name, show_address(before.address))

        pod = Pod(
            instance,
            self.table,
            self._prober,
            probes=self._probes,
            observed=self._observed,
            lag=self._lags,
            period=plan.period,
            pre_stop=plan.pre_stop,
            again=again,
        )
        self.pods.append(pod)
        return pod

    def _start_one(self, instance: Instance) -> Pod:
        instance.start(self.plan.start_timeout)
        pod = self._pod(instance)
        pod.begin(self._lags)
        return pod


def _status(instance: Instance, probe: Probe) -> int:
    """What it answers to a probe; 0 if nothing in time."""
    try:
        return fetch(
            instance.address, probe.path, headers=probe.headers, timeout=probe.timeout
        ).status
    except OSError:
        return 0


def _expect_success(plan: Plan, fleet: Fleet) -> None:
    """Every request is answered with 2xx now, or the count of losses would mean nothing."""
    for request in dict.fromkeys(plan._sent()):
        headers = [*([("Host", plan.host)] if plan.host else []), *request.headers]
        what = f"{request.method} {request.path}"
        try:
            response = fetch(
                fleet[0].address,
                request.path,
                method=request.method,
                headers=headers,
                body=request.body,
                timeout=plan.timeout,
            )
        except TimeoutError as error:
            raise PlanFailed(
                f"{what} has no complete answer within {plan.timeout:g} s, before anything was deleted: raise --timeout"
            ) from error
        except (IncompleteResponse, OSError) as error:
            raise PlanFailed(
                f"{what} failed before anything was deleted: {error}\n{fleet[0].output}"
            ) from error
        if not 200 <= response.status < 300:
            raise PlanFailed(
                f"{what} answers {response.status}, not 2xx, before anything was deleted: "
                f"name a path that succeeds\n{fleet[0].output}"
            )


def _gone(deletion: Deletion, origin: float) -> Gone:
    def since(stamp: float | None) -> float | None:
        return None if stamp is None else stamp - origin

    events = tuple(
        (at - origin, match[1])
        for at, text in deletion.instance.lines
        if (match := _EVENT.search(text))
    )
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


def _life(pod: Pod, origin: float, watch: MemoryWatch) -> Life:
    def since(stamp: float | None) -> float | None:
        return None if stamp is None else stamp - origin

    deletion = pod.deletion
    began = []
    if deletion is not None:
        began = [at for at, text in pod.instance.lines if "shutdown_initiated" in text]
        if deletion.sigterm is not None:
            began.append(deletion.sigterm)
    return Life(
        pod.name,
        show_address(pod.address),
        since(pod.instances[0].started),
        since(pod.instances[0].listened),
        readiness=tuple((at - origin, ready) for at, ready in pod.readiness),
        restarts=tuple((at - origin, why) for at, why in pod.restarts),
        deleted=since(deletion.started if deletion else None),
        t0=since(min(began, default=None)),
        unrouted=since(deletion.unrouted if deletion else None),
        ended=since(deletion.exited if deletion else None),
        memory=max(watch.each.get(str(instance.runtime_dir), 0) for instance in pod.instances),
    )
