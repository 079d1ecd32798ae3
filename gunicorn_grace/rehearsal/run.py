"""Plays a plan: start the instances and the load, delete instances, stop the load, count."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

from .booting import boot_warnings
from .errors import PlanFailed, traceback_cause
from .kubernetes.deletion import Deletion
from .kubernetes.pod import Pod
from .kubernetes.replicas import Replicas
from .load.generator import Generator
from .load.held import try_out
from .load.running import RunningLoad
from .load.tally import HELD, Tally
from .load.wire import IncompleteResponse, fetch, show_address
from .plan import Contender, Plan
from .processes.balancer import Balancer, Setup
from .processes.balancers import PRODUCTS, in_front
from .processes.fleet import Fleet
from .processes.instance import Instance
from .processes.memory import MemoryWatch
from .result import Gone, Life, MemoryUse, Result

#: The events in the plugin's log that a timeline shows.
_EVENT = re.compile(
    r"gunicorn-grace: "
    r"(.*(?:shutdown_initiated|lame_duck_ended|sealed|drained|deadline_reached|stopped).*)"
)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C came after the deletions began.

    :ivar result: the result of the run until then.
    """

    def __init__(self, result: Result) -> None:
        self.result = result
        super().__init__()


def play(
    plan: Plan,
    contender: Contender,
    tell: Callable[[str], None] = lambda line: None,
    watch_load: Callable[[RunningLoad], None] = lambda load: None,
) -> Result:
    """Play ``plan`` with ``contender``. No process is left afterwards, even after an error.

    :param plan: the plan to play.
    :param contender: the contender that plays it.
    :param tell: called with a line for each step.
    :param watch_load: called with the load as soon as it runs, to show its progress.

    :raises Interrupted: Ctrl-C came after the deletions began; it has the result until then.
    :raises PlanFailed: the plan cannot be played, or a path does not answer 2xx before anything was
        deleted.
    :raises InstanceFailed: an instance did not come up, or one that was to stay ended by itself.
    :raises LoadFailed: the load generator failed.
    :raises RehearsalError: an instance was not ready in time, or too few requests had ended in
        time.
    """
    if contender.pre_stop is not None:
        plan = replace(plan, pre_stop=contender.pre_stop)
    plan.check()
    warm_up = max(20, round(plan.rate)) if plan.warm_up is None else plan.warm_up
    cool_down = max(20, round(plan.rate)) if plan.cool_down is None else plan.cool_down
    load: RunningLoad | None = None
    origin: float | None = None
    warned: list[str] = []
    with ExitStack() as stack:
        replicas = stack.enter_context(Replicas(plan, contender))
        balancer: Balancer | None = None
        watch = MemoryWatch(replicas.containers)

        def found(tally: Tally, origin: float, complete: bool = True) -> Result:
            """Return the result until now."""
            deletions = [pod.deletion for pod in replicas.pods if pod.deletion is not None]
            return Result(
                contender,
                plan,
                tally,
                origin,
                time.monotonic(),
                tuple(_gone(deletion, origin) for deletion in deletions),
                {
                    process.name: process.output
                    for process in (*replicas.containers(), *([balancer] if balancer else []))
                },
                tuple(_life(pod, origin, watch) for pod in replicas.pods),
                MemoryUse(watch.peak, tuple((at - origin, held) for at, held in watch.samples)),
                tally.fell_behind(
                    origin,
                    max((deletion.unrouted or origin for deletion in deletions), default=origin),
                ),
                complete,
                tuple(warned),
            )

        try:
            tell(f"{contender.name}: starting {plan.instances} instances")
            replicas.start(tell)
            warned += boot_warnings(
                (instance.lines for instance in replicas.containers()), time.monotonic()
            )
            _expect_success(plan, replicas.fleet)
            stack.enter_context(watch)
            balancer = _balancer(plan, replicas.fleet, tell)
            with (
                in_front(balancer, replicas.table, tell) as front,
                Generator(front, **plan.load_options()) as load,
            ):
                tell(f"{contender.name}: {plan.rate:g} requests per second, {warm_up} to warm up")
                watch_load(load)
                load.wait_completed(warm_up)
                if lost := load.snapshot().lost_records:
                    less = "--rate or --held" if lost[0].kind in HELD else "--rate"
                    raise PlanFailed(
                        f"{len(lost)} of {load.completed} requests were lost before anything was "
                        f"deleted (the first: {lost[0].outcome.value}, {lost[0].error}): "
                        f"lower {less}, or add --workers"
                    )
                origin = time.monotonic()
                if plan.rollout is None:
                    leaving = plan.instances - plan.remaining
                    tell(f"{contender.name}: deleting {leaving} of {plan.instances}")
                    replicas.scale_down()
                else:
                    tell(f"{contender.name}: replacing {plan.instances}")
                    replicas.roll_out(plan.rollout)
                load.wait_completed(cool_down)
                tally = load.stop()
            watch.look()
            replicas.check()
            return found(tally, origin)
        except KeyboardInterrupt as error:
            if load is None or origin is None:
                raise
            raise Interrupted(found(load.snapshot(), origin, complete=False)) from error


def _expect_success(plan: Plan, fleet: Fleet) -> None:
    """Check that every request is answered with 2xx, and that every stream and WebSocket opens.
    Otherwise the number of lost ones would mean nothing."""
    instance = fleet[0]
    for request in dict.fromkeys(plan.sent()):
        headers = [*([("Host", plan.host)] if plan.host else []), *request.headers]
        what = f"{request.method} {request.path}"
        before = len(instance.lines)
        try:
            response = fetch(
                instance.address,
                request.path,
                method=request.method,
                headers=headers,
                body=request.body,
                timeout=plan.timeout,
            )
        except TimeoutError as error:
            raise PlanFailed(
                f"{what} has no complete answer within {plan.timeout:g} s, before anything was "
                "deleted: raise --timeout"
            ) from error
        except (IncompleteResponse, OSError) as error:
            remedy = _remedy(None, plan, instance, before, "succeeds with --path")
            raise PlanFailed(
                f"{what} failed before anything was deleted: {error}: {remedy}\n{instance.output}"
            ) from error
        if not 200 <= response.status < 300:
            remedy = _remedy(response.status, plan, instance, before, "succeeds with --path")
            raise PlanFailed(
                f"{what} answers {response.status}, not 2xx, before anything was deleted: "
                f"{remedy}\n{instance.output}"
            )
    before = len(instance.lines)
    failure = try_out(
        instance.address,
        **plan.held_options(),
        clients=plan.clients,
        timeout=plan.timeout,
        host=plan.host,
        seed=plan.seed,
    )
    if failure is not None:
        remedy = _remedy(failure.status, plan, instance, before, failure.remedy)
        raise PlanFailed(
            f"{failure.what} failed before anything was deleted: {failure.error}: "
            f"{remedy}\n{instance.output}"
        )


def _cause(instance: Instance, before: int) -> str:
    """Return the cause that a traceback names which has come since a request; empty if none comes
    within 2 s.

    A response can overtake the lines that explain it, because a thread reads the output. A
    traceback is complete when no line has come for 0.2 s.

    :param before: the number of the instance's lines before the request.
    """
    deadline = time.monotonic() + 2.0
    while True:
        count = len(instance.lines)
        time.sleep(0.2)
        cause = traceback_cause("\n".join(text for _, text in instance.lines[before:]))
        if time.monotonic() > deadline or (cause and len(instance.lines) == count):
            return cause


def _remedy(status: int | None, plan: Plan, instance: Instance, before: int, other: str) -> str:
    """Return the remedy for a path that does not succeed.

    :param status: the status of its response; None without a response.
    :param plan: the plan.
    :param instance: the instance that answered.
    :param before: the number of its lines before the request.
    :param other: what another path has to do instead, and the option that names it.
    """
    # Django, Flask's TRUSTED_HOSTS and Starlette's TrustedHostMiddleware answer 400 if they do not
    # know the host; RFC 9110, section 15.5.20, defines 421 for this.
    if status in (400, 421) and plan.host is None:
        return (
            "the Host header is the instance's address; if the application refuses it (Django's "
            "ALLOWED_HOSTS), name one that it accepts with --host"
        )
    if status in (400, 421):
        return (
            f"if the application refuses the Host header {plan.host} (Django's ALLOWED_HOSTS), "
            "name another one with --host"
        )
    # With 300 to 499 the application answers on purpose. Otherwise it may have raised.
    raised = status is None or not 300 <= status < 500
    return (raised and _cause(instance, before)) or f"name a path that {other}"


def _balancer(plan: Plan, fleet: Fleet, tell: Callable[[str], None]) -> Balancer | None:
    """Make the balancer in front of ``fleet``; None if the plan has none.

    Plain gunicorn does not answer the readiness path, so the balancer then checks the first of
    ``paths``. With checks that never pass, there would be nothing to compare.
    """
    if plan.through is None:
        return None
    path = plan.env.get("GRACE_READINESS_PATH", Setup.path)
    host = [("Host", plan.host)] if plan.host else []
    if (status := fetch(fleet[0].address, path, headers=host, timeout=plan.timeout).status) != 200:
        tell(
            f"GET {path} answers {status}: {plan.through} asks for {plan.paths[0]} instead "
            "(GRACE_READINESS_PATH names another path)"
        )
        path = plan.paths[0]
    setup = replace(plan.setup, path=path, timeout=plan.timeout, stream_path=plan.stream_path)
    return PRODUCTS[plan.through]([instance.address for instance in fleet], setup)


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
