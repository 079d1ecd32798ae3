"""One scale-down from beginning to end: instances up, load on, some deleted, load off, all counted."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .balancers import PRODUCTS, Balancer, Setup, in_front
from .errors import InstanceFailed, PlanFailed
from .fleet import Fleet, Instance
from .load import Load
from .platform import Deletion, EndpointTable
from .tally import Tally
from .wire import IncompleteResponse, fetch, show_address

#: Words of the plugin's log that belong into a timeline.
_EVENT = re.compile(
    r"gunicorn-grace: (.*(?:shutdown_initiated|lame_duck_ended|sealed|drained|deadline_reached|stopped).*)"
)


@dataclass(frozen=True)
class Contender:
    """Who plays: a name, and what its gunicorn is given besides what the plan says."""

    name: str
    args: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)


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
    through: str | None = None
    setup: Setup = Setup()
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
        if self.through is not None:
            if self.through not in PRODUCTS:
                raise PlanFailed(f"through {self.through!r}: choose one of {', '.join(PRODUCTS)}")
            PRODUCTS[self.through].require()
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

    def _balancer(self, fleet: Fleet, tell: Callable[[str], None]) -> Balancer | None:
        """What stands in front of ``fleet``. Where readiness is no path of the application, as in the plain contender,
        it asks for the first of ``paths``: with checks that never pass there would be nothing to compare."""
        if self.through is None:
            return None
        path = self.env.get("GRACE_READINESS_PATH", Setup.path)
        host = [("Host", self.host)] if self.host else []
        if (status := fetch(fleet[0].address, path, headers=host, timeout=self.timeout).status) != 200:
            tell(
                f"GET {path} answers {status}: {self.through} asks for {self.paths[0]} instead "
                "(GRACE_READINESS_PATH names another path)"
            )
            path = self.paths[0]
        setup = replace(self.setup, path=path, timeout=self.timeout)
        return PRODUCTS[self.through]([instance.address for instance in fleet], setup)

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
    """

    contender: Contender
    plan: Plan
    tally: Tally
    origin: float
    ended: float
    gone: tuple[Gone, ...]
    outputs: Mapping[str, str]

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
        """How many of the lost requests had gone to instances that stayed: those are too few for the rate.

        Through a balancer nobody can tell, and it is 0.
        """
        if self.plan.through is not None:
            return 0
        deleted = {gone.endpoint for gone in self.gone}
        return sum(bool(record.endpoint) and record.endpoint not in deleted for record in self.tally.lost_records)

    @property
    def exit_after(self) -> float | None:
        """The longest time from SIGTERM to the end of an instance."""
        return max((gone.exit_after for gone in self.gone if gone.exit_after is not None), default=None)

    @property
    def plugin_spoke(self) -> bool:
        """Whether a deleted instance logged that the plugin took over."""
        return any("shutdown_initiated" in text for gone in self.gone for _, text in gone.events)

    def as_dict(self) -> dict[str, Any]:
        """Everything but the outputs, ready for JSON; times of lost requests count from the deletion."""
        return {
            "contender": self.contender.name,
            "flawless": self.flawless,
            **self.tally.summary(),
            "seconds": [
                min((r.started for r in self.tally.records), default=0) - self.origin,
                self.ended - self.origin,
            ],
            "gone": [asdict(gone) for gone in self.gone],
            "lost_requests": [
                {"at": record.started - self.origin, **asdict(record)} for record in self.tally.lost_records
            ],
        }


def play(plan: Plan, contender: Contender, tell: Callable[[str], None] = lambda line: None) -> Result:
    """Play ``plan`` with ``contender``. However it ends, no process of it is left.

    Args:
        plan: what to play.
        contender: with whom.
        tell: told in a line what is going on.

    Raises:
        PlanFailed: the plan cannot be played, or a path does not answer 2xx before anything was deleted.
        InstanceFailed: an instance did not come up, or one that was to stay ended by itself.
        LoadFailed: the load generator failed.
    """
    plan.check()
    fleet = Fleet([plan._instance(contender, number + 1) for number in range(plan.instances)])
    table = EndpointTable()
    deletions: list[Deletion] = []
    warm_up = max(20, round(plan.rate)) if plan.warm_up is None else plan.warm_up
    cool_down = max(20, round(plan.rate)) if plan.cool_down is None else plan.cool_down
    try:
        tell(f"{contender.name}: starting {plan.instances} instances")
        fleet.start(plan.start_timeout, ready=plan.start_timeout)
        _expect_success(plan, fleet)
        for instance in fleet:
            table.add(instance.address)
        balancer = plan._balancer(fleet, tell)
        with in_front(balancer, table, tell) as front, plan._load(front) as load:
            tell(f"{contender.name}: {plan.rate:g} requests per second, {warm_up} to warm up")
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
        return Result(
            contender,
            plan,
            tally,
            origin,
            time.monotonic(),
            tuple(_gone(deletion, origin) for deletion in deletions),
            {process.name: process.output for process in (*fleet, *([balancer] if balancer else []))},
        )
    finally:
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
