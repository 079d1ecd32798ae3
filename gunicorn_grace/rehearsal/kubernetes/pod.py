"""A pod: one instance, the verdicts of its probes, and the platform's reaction to them.

Readiness puts the pod's endpoint into the routing and takes it out. A failed liveness or start-up
probe ends the container and starts another one at the same address. A deletion ends the pod.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence

from ..errors import InstanceFailed, RehearsalError
from ..load.wire import Address
from ..processes.instance import Instance
from .deletion import Deletion, Hook
from .probing import KubeletProbe, ProbeKind, Prober
from .routing import EndpointState, EndpointTable

#: Seconds that the kubelet waits before the second restart. It doubles the time for each further
#: restart, up to five minutes. The first restart is immediate (pkg/kubelet/kubelet.go,
#: backOffPeriod and MaxContainerBackOff).
BACK_OFF, MAX_BACK_OFF = 10.0, 300.0


class Pod:
    """One pod whose instance already listens.

    It has more attributes than a class should, because readiness, deletion and restart change
    each other's state under one lock.

    :param instance: its container.
    :param table: the routing.
    :param prober: sends the probes.
    :param probes: the probes to send.
    :param observed: whether the verdicts of the readiness probe are only recorded. The routing then
        treats the pod as ready from the beginning until its deletion.
    :param lag: the lag of the routing, see ``EndpointTable``.
    :param period: terminationGracePeriodSeconds.
    :param pre_stop: its hook.
    :param again: gets the instance that has ended, and makes the next one, which listens at the
        same address. With None the container is not restarted.

    :ivar readiness: ``(time.monotonic(), ready)`` of each change.
    :ivar restarts: ``(time.monotonic(), why)`` of each restart of the container.
    :ivar instances: its containers, one after the other.
    :ivar deletion: the deletion; None before it has begun.
    :ivar problem: the error that ended a restart; None if there was none.
    """

    def __init__(
        self,
        instance: Instance,
        table: EndpointTable,
        prober: Prober,
        *,
        probes: Mapping[ProbeKind, KubeletProbe],
        observed: bool = False,
        lag: float | Sequence[float] = 3.0,
        period: float = 30.0,
        pre_stop: Sequence[str] | Hook | None = None,
        again: Callable[[Instance], Instance] | None = None,
    ) -> None:
        self.name: str = instance.name
        self.instances: list[Instance] = [instance]
        self.address: Address = instance.address
        self.probes = probes
        self.observed = observed
        self.readiness: list[tuple[float, bool]] = []
        self.restarts: list[tuple[float, str]] = []
        self.deletion: Deletion | None = None
        self.problem: BaseException | None = None
        self._table = table
        self._prober = prober
        self._lag = lag
        self._first_lag: float | Sequence[float] = 0.0
        self._period = period
        self._pre_stop = pre_stop
        self._again = again
        self._lock = threading.RLock()  # readiness, deletion and restart exclude each other
        self._changed = threading.Condition(self._lock)
        self._stop_asking: Callable[[], None] = lambda: None
        self._ending: Deletion | None = None
        self._restart: threading.Thread | None = None
        self._over = threading.Event()  # deleted or closed: nothing is started any more
        self._begun = 0.0

    @property
    def instance(self) -> Instance:
        """The container that is running, or was the last to run."""
        return self.instances[-1]

    @property
    def ready(self) -> bool:
        """Whether the platform considers it ready."""
        return bool(self.readiness) and self.readiness[-1][1]

    @property
    def restarting(self) -> bool:
        """Whether its container is being ended and started again."""
        return self._restart is not None

    def available(self, min_ready: float) -> bool:
        """Whether it has been ready for ``min_ready`` seconds, and is not being deleted."""
        with self._lock:
            since = self._begun if self.observed or not self.readiness else self.readiness[-1][0]
            return (
                self.deletion is None and self._routed() and time.monotonic() - since >= min_ready
            )

    def begin(self, lag: float | Sequence[float] = 0.0) -> None:
        """Begin to probe the pod. With neither a readiness nor a start-up probe it is ready at
        once.

        :param lag: seconds until a node learns that the pod is ready for the first time; 0 for a
            pod that exists from the beginning.
        """
        with self._lock:
            state = EndpointState.READY if self.observed else EndpointState.GONE
            self._table.change(self.address, state, lag if self.observed else 0.0, new=True)
            self._begun, self._first_lag = time.monotonic(), lag
            self._ask()

    def wait_ready(self, timeout: float) -> None:
        """Wait until the pod is ready.

        :raises RehearsalError: it was not ready within ``timeout`` seconds.
        :raises InstanceFailed: its container ended.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            while not self._routed():
                remaining = deadline - time.monotonic()
                if self.instance.exit_time is not None and self._restart is None:
                    raise InstanceFailed(
                        f"{self.name} ended before it was ready", self.instance.output
                    )
                if remaining <= 0:
                    asked = self.probes.get(ProbeKind.READINESS) or self.probes.get(
                        ProbeKind.STARTUP
                    )
                    raise RehearsalError(
                        f"{self.name} was not ready within {timeout:g} s: {asked} did not pass\n"
                        f"{self.instance.output}"
                    )
                self._changed.wait(min(remaining, 0.25))

    def wait_ready_by(self, timeout: float) -> None:
        """Raise as ``wait_ready`` does if ``timeout`` seconds have passed since ``begin``."""
        if time.monotonic() > self._begun + timeout:
            self.wait_ready(0.0)

    def delete(self) -> Deletion:
        """Begin to delete the pod. If a restart is under way, wait for its end first, because the
        kubelet also does one thing at a time with a pod (pkg/kubelet/pod_workers.go)."""
        self._over.set()
        if (restart := self._restart) is not None:
            restart.join()
        with self._lock:
            if self.deletion is None:
                self.deletion = Deletion(
                    self.instance,
                    self._table,
                    lag=self._lag,
                    period=self._period,
                    pre_stop=self._pre_stop,
                )
                self.deletion.start()
                if not self._routed():
                    self._table.change(self.address, EndpointState.GONE, self._lag)
            return self.deletion

    def close(self) -> None:
        """Cancel everything under way, and end every process of the pod."""
        with self._lock:
            self._over.set()
        self._stop_asking()
        for ending in (self.deletion, self._ending):
            if ending is not None:
                ending.cancel()
        for instance in self.instances:
            instance.stop()
        if (restart := self._restart) is not None:
            restart.join()

    # -- verdicts of the prober ----

    def _routed(self) -> bool:
        return self.observed or self.ready

    def _ask(self) -> None:
        if ProbeKind.READINESS not in self.probes and ProbeKind.STARTUP not in self.probes:
            self._set_ready(True)
        if self.probes:
            self._stop_asking = self._prober.watch(
                self.address,
                self.probes,
                self._tell,
                deleting=self._over.is_set,
                gone=lambda: self._over.is_set() and self.instance.exit_time is not None,
                started=self.instance.started,
            )

    def _tell(self, kind: ProbeKind, verdict: bool) -> None:
        with self._lock:
            if kind is ProbeKind.READINESS:
                self._set_ready(verdict)
            elif not verdict:
                self._begin_restart(kind)
            elif ProbeKind.READINESS not in self.probes:  # the start-up probe passed
                self._set_ready(True)

    def _set_ready(self, ready: bool) -> None:
        with self._changed:
            if self.readiness and self.readiness[-1][1] is ready:
                return
            self.readiness.append((time.monotonic(), ready))
            if not self.observed:
                passing = (
                    EndpointState.READY if self.deletion is None else EndpointState.TERMINATING
                )
                lag = self._first_lag if len(self.readiness) == 1 else self._lag
                self._table.change(self.address, passing if ready else EndpointState.GONE, lag)
            self._changed.notify_all()

    # -- restarting ----

    def _begin_restart(self, kind: ProbeKind) -> None:
        if self._over.is_set() or self._restart is not None or self._again is None:
            return
        probe = self.probes[kind]
        why = f"{kind.value} probe failed {probe.failure_threshold} times: GET {probe.path}"
        self.restarts.append((time.monotonic(), why))
        period = self._period if probe.grace is None else probe.grace
        self._ending = Deletion(self.instance, None, period=period, pre_stop=self._pre_stop).start()
        self._restart = threading.Thread(
            target=self._run_restart, name=f"restart of {self.name}", daemon=True
        )
        self._restart.start()

    def _run_restart(self) -> None:
        try:
            assert self._ending is not None
            assert self._again is not None
            self._ending.join()
            self._stop_asking()
            self._set_ready(False)
            earlier = len(self.restarts) - 1
            if self._over.wait(
                min(MAX_BACK_OFF, BACK_OFF * 2 ** (earlier - 1)) if earlier else 0.0
            ):
                return
            instance = self._again(self.instance)
            with self._lock:
                given_up = self._over.is_set()
                if not given_up:
                    before = self.instance
                    self.instances.append(instance)
            if given_up:
                instance.stop()
                return
            before.stop()
            instance.start()
            with self._lock:
                self._ending = self._restart = None
                if not self._over.is_set():
                    self._ask()
        except BaseException as error:
            if not self._over.is_set():
                self.problem = error
