"""The parts of Kubernetes that cost requests: routing that learns late, and how the kubelet ends a
pod."""

from __future__ import annotations

import enum
import math
import os
import random
import shlex
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from ..errors import RehearsalError
from ..load.wire import Address, fetch
from ..processes.fleet import Instance

#: kubelet's minimumGracePeriodInSeconds (pkg/kubelet/kuberuntime/kuberuntime_container.go,
#: killContainer): what a container still gets between SIGTERM and SIGKILL when its preStop hook has
#: used up the period.
MINIMUM_GRACE = 2.0


@dataclass(frozen=True)
class Lag:
    """How long a change of the endpoints takes until a node routes by it, seconds.

    The change travels from the pod's status over the EndpointSlice controller and the API server's
    watch to the kube-proxy of every node, which rewrites its rules at most once in
    ``minSyncPeriod`` (pkg/proxy/iptables/proxier.go, ``syncRunner``). No node waits for another, so
    each has a lag of its own, and one that is overloaded or cut off from the API server routes by
    what it knew long after the others.

    Attributes:
        low: the quickest node's.
        high: the slowest node's; each node between draws its own, evenly.
        slow: the lag of one more node; None: there is no such node.
        slow_share: its share of the traffic, above 0, below 1.
    """

    low: float = 3.0
    high: float = 3.0
    slow: float | None = None
    slow_share: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high < math.inf:
            raise ValueError(
                f"lag {self.low:g}..{self.high:g} s: from 0 s on is needed, the smaller number first"
            )
        if self.slow is not None and not 0 <= self.slow < math.inf:
            raise ValueError(f"slow node's lag {self.slow:g} s: a time from 0 s on is needed")
        if self.slow is not None and not 0 < self.slow_share < 1:
            raise ValueError(
                f"slow node's share {self.slow_share:g} is not between 0 and 1: 0.05 is one of twenty"
            )

    @classmethod
    def parse(cls, lag: str, slow_node: str | None = None) -> Lag:
        """Read ``3`` or ``1..8``, and ``SHARE:SECONDS`` of the slow node.

        Raises:
            ValueError: neither, or a number out of its range.
        """
        low, dots, high = lag.partition("..")
        try:
            first = float(low)
            numbers = (first, float(high) if dots else first)
        except ValueError:
            raise ValueError(
                f"lag {lag!r} is neither seconds (3) nor a range of seconds (1..8)"
            ) from None
        if slow_node is None:
            return cls(*numbers)
        share, _, seconds = slow_node.partition(":")
        try:
            slow = (float(seconds), float(share))
        except ValueError:
            raise ValueError(
                f"slow node {slow_node!r} is not SHARE:SECONDS, as in 0.05:20"
            ) from None
        return cls(*numbers, *slow)

    @property
    def longest(self) -> float:
        """Until the last node has learned of a change."""
        return max(self.high, self.slow or 0.0)

    def draw(self, nodes: int, rng: random.Random) -> tuple[float, ...]:
        """The lag of each of so many nodes; the slow node comes last, as one more."""
        lags = tuple(rng.uniform(self.low, self.high) for _ in range(nodes))
        return lags if self.slow is None else (*lags, self.slow)

    def __str__(self) -> str:
        text = f"{self.low:g}" if self.low == self.high else f"{self.low:g} to {self.high:g}"
        return f"{text} s" + (
            "" if self.slow is None else f" ({self.slow_share:.0%} of the traffic {self.slow:g} s)"
        )


class NoEndpoint(LookupError):
    """The table is empty: kube-proxy rejects the connection."""


class State(enum.Enum):
    """What an endpoint is in the EndpointSlice (staging/src/k8s.io/endpointslice/utils.go,
    podToEndpoint)."""

    READY = "ready"
    """Passes its readiness probe and is not being deleted."""
    TERMINATING = "terminating"
    """Being deleted, and still passing its readiness probe: "serving". Never "ready", whatever its
    probe says."""
    GONE = "gone"
    """Does not pass its readiness probe, or is no more."""


#: When a change was made (``time.monotonic()``), of which endpoint, what it became, and the lag.
Change: TypeAlias = tuple[float, Address, State, "float | Sequence[float]"]


class EndpointTable:
    """Where a new connection goes, as kube-proxy's iptables mode decides it: any ready endpoint, at
    random.

    Decided once for a connection; an open one stays where it is. Where no endpoint is ready, those
    that are terminating and serve are picked (pkg/proxy/topology.go, CategorizeEndpoints). What has
    changed is routed by only when the change has travelled from the API server through the
    EndpointSlice to the node: the ``lag``, one for all nodes or one for each. Safe to use from
    several threads.

    Args:
        clock: seconds, ``time.monotonic`` unless a test brings its own.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._listeners: list[Callable[[Change], None]] = []
        self._changes: dict[Address, list[tuple[float, float | Sequence[float], State]]] = {}
        self._known: dict[
            int, tuple[float, list[Address], list[Address]]
        ] = {}  # node: until when, ready, others

    def add(self, address: Address, lag: float | Sequence[float] = 0.0) -> None:
        """Route to ``address`` in ``lag`` seconds, whatever was said of it before."""
        self.change(address, State.READY, lag, new=True)

    def remove(self, address: Address, lag: float | Sequence[float] = 0.0) -> None:
        """Stop routing to ``address`` in ``lag`` seconds. A second removal moves the first one
        neither way.

        Raises:
            KeyError: it was never added.
        """
        self.change(address, State.GONE, lag)

    def change(
        self,
        address: Address,
        state: State,
        lag: float | Sequence[float] = 0.0,
        *,
        new: bool = False,
    ) -> None:
        """Make an endpoint what ``state`` says, as each node sees it ``lag`` seconds from now.

        A change that reaches a node before an older one makes the older one void.

        Args:
            address: of the endpoint.
            state: what it is from then on.
            lag: seconds; a sequence has one for each node.
            new: it may be one that was never added.

        Raises:
            KeyError: it was never added.
        """
        with self._lock:
            if not new and address not in self._changes:
                raise KeyError(address)
            self._take((self._clock(), address, state, lag))
            for listener in self._listeners:
                listener((self._changes[address][-1][0], address, state, lag))

    def follow(self, listener: Callable[[Change], None]) -> None:
        """Tell ``listener`` every change: those so far at once, later ones as they are made, in
        their order.

        It is called by whoever makes the change, and must neither block nor ask the table.
        """
        with self._lock:
            told = [
                (made, address, state, lag)
                for address, changes in self._changes.items()
                for made, lag, state in changes
            ]
            for change in sorted(told, key=lambda change: change[0]):
                listener(change)
            self._listeners.append(listener)

    def replay(self, change: Change) -> None:
        """Take over a change of another table, which counts from when it was made there."""
        with self._lock:
            self._take(change)

    def _take(self, change: Change) -> None:
        made, address, state, lag = change
        self._changes.setdefault(address, []).append((made, lag, state))
        self._known.clear()

    def endpoints(self, node: int = 0) -> list[Address]:
        """The ready endpoints, as ``node`` knows them at this moment."""
        with self._lock:
            return list(self._look(node)[0])

    def pick(self, rng: random.Random, node: int = 0) -> Address:
        """The endpoint of one new connection from ``node``.

        Raises:
            NoEndpoint: there is none.
        """
        with self._lock:
            ready, terminating = self._look(node)
            endpoints = ready or terminating
            if not endpoints:
                raise NoEndpoint("no endpoint is routed to")
            return rng.choice(endpoints)

    def _look(self, node: int) -> tuple[list[Address], list[Address]]:
        """What a node knows, kept until it learns of something: each of a thousand requests a
        second asks."""
        now = self._clock()
        if node in self._known and now < self._known[node][0]:
            return self._known[node][1:]
        until = math.inf
        found: dict[State, list[Address]] = {state: [] for state in State}
        for address, changes in self._changes.items():
            arrivals: list[tuple[float, State]] = []
            for made, lag, state in changes:
                arrival = made + (lag if isinstance(lag, (int, float)) else lag[node])
                arrivals = [earlier for earlier in arrivals if earlier[0] <= arrival]
                arrivals.append((arrival, state))
            current = [state for arrival, state in arrivals if arrival <= now]
            found[current[-1] if current else State.GONE].append(address)
            until = min([until, *(arrival for arrival, _ in arrivals if arrival > now)])
        self._known[node] = (until, found[State.READY], found[State.TERMINATING])
        return self._known[node][1:]


@dataclass(frozen=True)
class Exec:
    """A preStop hook that runs a command in the container; ``{host}``, ``{port}`` and ``{pid}`` are
    filled in."""

    command: tuple[str, ...]

    def __str__(self) -> str:
        return shlex.join(self.command)


@dataclass(frozen=True)
class HttpGet:
    """A preStop hook that sends a GET request to the container, from the node.

    The kubelet does not look at the response's status (pkg/kubelet/lifecycle/handlers.go,
    runHTTPHandler).
    """

    path: str
    headers: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return f"GET {self.path}"


@dataclass(frozen=True)
class Sleep:
    """A preStop hook that waits, in the kubelet itself (pkg/kubelet/lifecycle/handlers.go,
    runSleepHandler)."""

    seconds: float

    def __str__(self) -> str:
        return f"sleep {self.seconds:g}"


Hook: TypeAlias = Exec | HttpGet | Sleep


class Deletion:
    """One pod being deleted. Its thread does what the platform does, and stamps when.

    At once the endpoint begins to leave the table (the EndpointSlice controller takes "ready" from
    it as soon as the pod has a deletion timestamp) and the preStop hook runs, neither waiting for
    the other; when the hook has ended, or the period is over, SIGTERM; at the end of the period,
    which the hook counts in, SIGKILL. After a hook that took it all there are ``MINIMUM_GRACE``
    seconds more. The process that got SIGTERM is the container's first: with its end, everything in
    the container ends. The order is that of killContainer in
    pkg/kubelet/kuberuntime/kuberuntime_container.go.

    Args:
        instance: which one.
        table: the routing that is to forget it. None: the container is ended but the pod is not deleted, as
            after a failed liveness probe, which goes the same way through killContainer.
        lag: seconds until the routing has; a sequence has one for each node.
        period: terminationGracePeriodSeconds.
        pre_stop: the hook; a sequence of strings is a command. A command runs with the instance's environment,
            with the folder of its Python first on the PATH, and in its working directory.

    Attributes, all stamps in ``time.monotonic()`` seconds, None as long as it has not come to it:
        started: the deletion began. unrouted: the last node forgot the endpoint. pre_stop_done: the
        hook ended, or its time did. pre_stop_problem: what was wrong with the hook, empty if
        nothing; the kubelet goes on all the same. sigterm: SIGTERM was sent. exited: the process
        was gone. exit_code: as in ``Popen.returncode``. killed: SIGKILL was needed.
    """

    def __init__(
        self,
        instance: Instance,
        table: EndpointTable | None,
        *,
        lag: float | Sequence[float] = 3.0,
        period: float = 30.0,
        pre_stop: Sequence[str] | Hook | None = None,
    ) -> None:
        self.instance = instance
        self.table = table
        self.lag = lag
        self.period = period
        self.pre_stop = (
            pre_stop if isinstance(pre_stop, (Exec, HttpGet, Sleep)) else as_hook(pre_stop or ())
        )
        self.started: float | None = None
        self.unrouted: float | None = None
        self.pre_stop_done: float | None = None
        self.pre_stop_problem = ""
        self.sigterm: float | None = None
        self.exited: float | None = None
        self.exit_code: int | None = None
        self.killed = False
        self._cancelled = threading.Event()
        self._hook: subprocess.Popen[bytes] | None = None
        self._problem: BaseException | None = None
        self._thread = threading.Thread(
            target=self._run, name=f"deletion of {instance.name}", daemon=True
        )

    @property
    def exit_after(self) -> float | None:
        """Seconds from SIGTERM to the end of the process."""
        return None if self.exited is None or self.sigterm is None else self.exited - self.sigterm

    def start(self) -> Deletion:
        """Begin. Returns at once."""
        self.started = time.monotonic()
        if self.table is not None:
            self.table.change(self.instance.address, State.TERMINATING, self.lag)
        self._thread.start()
        return self

    def join(self, timeout: float | None = None) -> Deletion:
        """Wait until the process is gone and the routing knows it.

        Raises:
            RehearsalError: not so within ``timeout`` seconds.
            Exception: whatever went wrong in the thread.
        """
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise RehearsalError(
                f"{self.instance.name} was still being deleted after {timeout:g} s"
            )
        if self._problem is not None:
            raise self._problem
        return self

    def cancel(self) -> None:
        """Give up: end the hook and the instance, and let the thread run out."""
        self._cancelled.set()
        if self._hook is not None:
            self._hook.kill()
        self.instance.kill()

    def _run(self) -> None:
        try:
            self._delete()
        except BaseException as error:
            self._problem = error

    def _delete(self) -> None:
        started = self.started
        assert started is not None
        if self.pre_stop is not None:
            self._run_pre_stop(self.pre_stop, started + self.period)
            self.pre_stop_done = time.monotonic()
        if not self._cancelled.is_set():
            self.sigterm = time.monotonic()
            self.instance.signal(signal.SIGTERM)
            deadline = max(started + self.period, self.sigterm + MINIMUM_GRACE)
            self.killed = not self.instance.wait_exit(deadline - time.monotonic())
            self.instance.kill()
            self.instance.wait_exit(5.0)
            self.exited, self.exit_code = self.instance.exit_time, self.instance.exit_code
        if self._hook is not None:
            self._hook.wait()
        if self.table is not None:
            self.table.change(self.instance.address, State.GONE, self.lag)
            lag = self.lag if isinstance(self.lag, (int, float)) else max(self.lag)
            self._cancelled.wait(max(0.0, started + lag - time.monotonic()))
            self.unrouted = started + lag

    def _run_pre_stop(self, hook: Hook, deadline: float) -> None:
        shown = f"preStop hook `{hook}`"
        too_long = f"{shown} took longer than the period of {self.period:g} s"
        if isinstance(hook, Exec):
            self._run_command(hook, deadline, too_long)
        elif isinstance(hook, Sleep):
            remaining = deadline - time.monotonic()
            self._cancelled.wait(max(0.0, min(hook.seconds, remaining)))
            if hook.seconds > remaining:
                self.pre_stop_problem = too_long
        else:
            remaining = max(0.01, deadline - time.monotonic())
            try:
                response = fetch(
                    self.instance.address, hook.path, headers=hook.headers, timeout=remaining
                )
            except TimeoutError:
                self.pre_stop_problem = too_long
            except OSError as error:
                self.pre_stop_problem = f"{shown} failed: {error}"
            else:
                if 400 <= response.status < 500:
                    self.pre_stop_problem = (
                        f"{shown} got {response.status}; the kubelet does not mind, but you may"
                    )

    def _run_command(self, hook: Exec, deadline: float, too_long: str) -> None:
        address = self.instance.address
        host, port = ("", 0) if isinstance(address, str) else address
        values = {"{host}": host, "{port}": str(port), "{pid}": str(self.instance.arbiter_pid)}
        command = [_fill(part, values) for part in hook.command]
        shown = f"preStop hook `{shlex.join(command)}`"
        env = dict(self.instance.env)
        folder = os.path.dirname(os.path.abspath(self.instance.python))
        env["PATH"] = folder + os.pathsep + env.get("PATH", os.defpath)
        with tempfile.TemporaryFile() as output:
            try:
                self._hook = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=env,
                    cwd=self.instance.cwd,
                    start_new_session=True,
                )
                if (
                    self._cancelled.is_set()
                ):  # cancel() may have looked for the hook a moment too early
                    self._hook.kill()
                code = self._hook.wait(max(0.0, deadline - time.monotonic()))
            except OSError as error:
                self.pre_stop_problem = f"{shown} could not be run: {error.strerror or error}"
            except subprocess.TimeoutExpired:
                # It runs on, as in Kubernetes, until the container's end takes it along.
                self.pre_stop_problem = too_long
            else:
                if code:
                    output.seek(0)
                    said = output.read().decode("utf-8", "replace").strip().splitlines()[-1:]
                    self.pre_stop_problem = f"{shown} ended with exit code {code}" + "".join(
                        f": {line}" for line in said
                    )


def delete(
    instance: Instance,
    table: EndpointTable,
    *,
    lag: float | Sequence[float] = 3.0,
    period: float = 30.0,
    pre_stop: Sequence[str] | Hook | None = None,
) -> Deletion:
    """Begin to delete ``instance``, as ``Deletion`` describes it. Returns at once."""
    return Deletion(instance, table, lag=lag, period=period, pre_stop=pre_stop).start()


def as_hook(command: Sequence[str]) -> Hook | None:
    """The hook that a command line means: ``GET /path`` is a request, all else a command; nothing
    is no hook."""
    if not command:
        return None
    if len(command) == 2 and command[0] == "GET":
        return HttpGet(command[1])
    return Exec(tuple(command))


def _fill(part: str, values: dict[str, str]) -> str:
    """Replace the place-holders; other braces, as in JSON for curl, stay what they are."""
    for name, value in values.items():
        part = part.replace(name, value)
    return part
