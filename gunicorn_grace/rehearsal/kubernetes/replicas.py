"""Starts the pods of one rehearsal together, scales them down or replaces them, and ends all of
them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType

from ..errors import InstanceFailed, PlanFailed
from ..load.wire import fetch, show_address
from ..plan import PLAIN, Contender, Plan
from ..processes.fleet import Fleet
from ..processes.instance import Instance
from .deletion import Deletion
from .pod import Pod
from .probing import KubeletProbe, ProbeKind, Prober
from .rollout import Counts, Rollout, Step, next_step
from .routing import EndpointTable

#: The readiness probe that is sent if the plan has no probes. Its verdicts are only recorded, often
#: enough for the picture.
WATCHED = KubeletProbe("/readyz", period=1.0, failure_threshold=1)


class Replicas:
    """The pods of one run, from the first start until no process of theirs is left.

    :ivar table: the routing.
    :ivar pods: all pods, including the deleted ones.
    :ivar fleet: all instances that were made, except those of restarts.
    """

    def __init__(self, plan: Plan, contender: Contender) -> None:
        self.plan = plan
        self.contender = contender
        self.table: EndpointTable = EndpointTable()
        self.pods: list[Pod] = []
        self.fleet: Fleet = Fleet(
            [instance_of(plan, contender, f"instance {n + 1}") for n in range(plan.instances)]
        )
        self._lags = plan.lags()
        self._prober = Prober()
        self._observed = False
        self._probes: Mapping[ProbeKind, KubeletProbe] = plan.probes or {}

    def __enter__(self) -> Replicas:
        self._prober.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with ExitStack() as stack:  # each callback runs, even if another one fails
            stack.callback(self._prober.stop)
            stack.callback(self.fleet.stop)
            for pod in self.pods:
                stack.callback(pod.close)

    @property
    def _patience(self) -> float:
        """Seconds within which a pod must be ready: the time to start, plus the shortest time that
        its probes need."""
        probes = self._probes.values()
        return self.plan.start_timeout + sum(
            p.initial_delay + p.success_threshold * p.period for p in probes
        )

    def containers(self) -> list[Instance]:
        """Every instance that runs or has run."""
        started = {instance: None for pod in list(self.pods) for instance in pod.instances}
        return [*started, *(instance for instance in self.fleet if instance not in started)]

    def start(self, tell: Callable[[str], None]) -> None:
        """Start the instances, and wait until the platform considers each ready.

        :param tell: takes a line for the user.
        :raises InstanceFailed: an instance did not come up.
        :raises RehearsalError: an instance was not ready in time.
        :raises PlanFailed: a probe requests a path that answers 404. For plain gunicorn, such a
            probe is left out instead.
        """
        plan = self.plan
        self.fleet.start(plan.start_timeout, ready=plan.start_timeout)
        if plan.probes is None and 200 <= status_of(self.fleet[0], WATCHED) < 400:
            # The whole fleet gets at most ten probes a second, so that they do not become a load.
            watched = replace(WATCHED, period=max(WATCHED.period, plan.instances / 10))
            self._observed, self._probes = True, {ProbeKind.READINESS: watched}
        for kind, probe in (plan.probes or {}).items():
            if status_of(self.fleet[0], probe) == 404:
                said = f"{kind.value} probe GET {probe.path} answers 404"
                if PLAIN.args[-1] not in self.contender.args:
                    raise PlanFailed(
                        f"{said}, so no instance would ever pass it: name a path that exists"
                    )
                tell(f"{self.contender.name}: {said}, so it is left out")
                self._probes = {
                    other: asked for other, asked in self._probes.items() if other is not kind
                }
        for instance in self.fleet:
            self._pod(instance).begin()
        for pod in self.pods:
            pod.wait_ready(self._patience)

    def scale_down(self) -> None:
        """Delete the pods that do not remain, all at once, and wait until the routing has forgotten
        them."""
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
                            instance_of(self.plan, self.contender, f"instance {number}")
                        )
                        starting.append(pool.submit(self._start_one, self.fleet.instances[-1]))
                    # Pods that are not available go first, as with a ReplicaSet
                    # (pkg/controller/controller_utils.go, ActivePodsWithRanks).
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
                # This also runs after Ctrl-C. The pool waits for its threads, and they end when the
                # instances end.
                pool.shutdown(wait=False, cancel_futures=True)
                self.fleet.stop()
                raise
        for deletion in deletions:
            deletion.join()

    def check(self) -> None:
        """Raise the error of a thread, if there was one.

        :raises InstanceFailed: an instance that should have stayed has ended.
        """
        self._prober.check()
        for pod in self.pods:
            if pod.problem is not None:
                raise pod.problem
            if pod.deletion is None and not pod.restarting and pod.instance.exit_time is not None:
                raise InstanceFailed(
                    f"{pod.name} should have stayed but ended with exit code "
                    f"{pod.instance.exit_code}",
                    pod.instance.output,
                )

    def _pod(self, instance: Instance) -> Pod:
        plan = self.plan

        def again(before: Instance) -> Instance:
            name = f"{before.name.partition(',')[0]}, restart {len(pod.restarts)}"
            return instance_of(plan, self.contender, name, show_address(before.address))

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


def status_of(instance: Instance, probe: KubeletProbe) -> int:
    """Return the status of the answer to a probe; 0 if no answer came in time."""
    try:
        return fetch(
            instance.address, probe.path, headers=probe.headers, timeout=probe.timeout
        ).status
    except OSError:
        return 0


def instance_of(plan: Plan, contender: Contender, name: str, bind: str = "127.0.0.1:0") -> Instance:
    """Make an instance of a contender. It is not started."""
    instance = Instance(
        plan.app,
        env={**plan.env, **contender.env},
        cwd=plan.cwd,
        python=plan.python,
        name=name,
        bind=bind,
    )
    # These options override the user's file, because gunicorn's command line overrides everything
    # else. Instances on one machine cannot share a pid file, and a rehearsal reads the log.
    own = (
        "--pid",
        str(instance.runtime_dir / "pid"),
        "--log-level",
        "info",
        "--error-logfile",
        "-",
    )
    instance.args = (*contender.args, *own, *plan.args)
    return instance
