"""The parts of Kubernetes that cost requests: routing that learns late, and how the kubelet ends a pod."""

from __future__ import annotations

import os
import random
import shlex
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence

from .errors import RehearsalError
from .fleet import Instance
from .wire import Address

#: kubelet's minimumGracePeriodInSeconds (pkg/kubelet/kuberuntime/kuberuntime_container.go, killContainer):
#: what a container still gets between SIGTERM and SIGKILL when its preStop hook has used up the period.
MINIMUM_GRACE = 2.0


class NoEndpoint(LookupError):
    """The table is empty: kube-proxy rejects the connection."""


class EndpointTable:
    """Where a new connection goes, as kube-proxy's iptables mode decides it: any ready endpoint, at random.

    Decided once for a connection; an open one stays where it is. What is removed is still picked until the
    removal has travelled from the API server through the EndpointSlice to every node: the ``lag``.
    Safe to use from several threads.

    Args:
        clock: seconds, ``time.monotonic`` unless a test brings its own.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._until: dict[Address, float] = {}

    def add(self, address: Address) -> None:
        """Route to ``address`` from now on, whatever was said of it before."""
        with self._lock:
            self._until[address] = float("inf")

    def remove(self, address: Address, lag: float = 0.0) -> None:
        """Stop routing to ``address`` in ``lag`` seconds. A second removal moves the first one neither way.

        Raises:
            KeyError: it was never added.
        """
        with self._lock:
            self._until[address] = min(self._until[address], self._clock() + lag)

    def endpoints(self) -> list[Address]:
        """What is routed to at this moment."""
        with self._lock:
            now = self._clock()
            return [address for address, until in self._until.items() if now < until]

    def pick(self, rng: random.Random) -> Address:
        """The endpoint of one new connection.

        Raises:
            NoEndpoint: there is none.
        """
        endpoints = self.endpoints()
        if not endpoints:
            raise NoEndpoint("no endpoint is routed to")
        return rng.choice(endpoints)


class Deletion:
    """One pod being deleted. Its thread does what the platform does, and stamps when.

    At once the endpoint begins to leave the table and the preStop hook runs; when the hook has ended, or the
    period is over, SIGTERM; at the end of the period, which the hook counts in, SIGKILL. After a hook that
    took it all there are ``MINIMUM_GRACE`` seconds more. The process that got SIGTERM is the container's
    first: with its end, everything in the container ends.

    Args:
        instance: which one.
        table: the routing that is to forget it.
        lag: seconds until the routing has.
        period: terminationGracePeriodSeconds.
        pre_stop: the hook's command; ``{port}``, ``{pid}`` and ``{host}`` in it are filled in. It runs with
            the instance's environment, with the folder of its Python first on the PATH, and in its working
            directory.

    Attributes, all stamps in ``time.monotonic()`` seconds, None as long as it has not come to it:
        started: the deletion began.
        unrouted: the routing forgot the endpoint.
        pre_stop_done: the hook ended, or its time did.
        pre_stop_problem: what was wrong with the hook, empty if nothing; the kubelet goes on all the same.
        sigterm: SIGTERM was sent.
        exited: the process was gone.
        exit_code: as in ``Popen.returncode``.
        killed: SIGKILL was needed.
    """

    def __init__(
        self,
        instance: Instance,
        table: EndpointTable,
        *,
        lag: float = 3.0,
        period: float = 30.0,
        pre_stop: Sequence[str] | None = None,
    ) -> None:
        self.instance = instance
        self.table = table
        self.lag = lag
        self.period = period
        self.pre_stop = tuple(pre_stop or ())
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
        self._thread = threading.Thread(target=self._run, name=f"deletion of {instance.name}", daemon=True)

    @property
    def exit_after(self) -> float | None:
        """Seconds from SIGTERM to the end of the process."""
        return None if self.exited is None or self.sigterm is None else self.exited - self.sigterm

    def start(self) -> Deletion:
        """Begin. Returns at once."""
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
            raise RehearsalError(f"{self.instance.name} was still being deleted after {timeout:g} s")
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
        started = self.started = time.monotonic()
        self.table.remove(self.instance.address, self.lag)
        if self.pre_stop:
            self._run_pre_stop(started + self.period)
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
        self._cancelled.wait(max(0.0, started + self.lag - time.monotonic()))
        self.unrouted = started + self.lag

    def _run_pre_stop(self, deadline: float) -> None:
        address = self.instance.address
        host, port = ("", 0) if isinstance(address, str) else address
        values = {"{host}": host, "{port}": str(port), "{pid}": str(self.instance.arbiter_pid)}
        command = [_fill(part, values) for part in self.pre_stop]
        shown = shlex.join(command)
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
                if self._cancelled.is_set():  # cancel() may have looked for the hook a moment too early
                    self._hook.kill()
                code = self._hook.wait(max(0.0, deadline - time.monotonic()))
            except OSError as error:
                self.pre_stop_problem = f"preStop hook `{shown}` could not be run: {error.strerror or error}"
            except subprocess.TimeoutExpired:
                # It runs on, as in Kubernetes, until the container's end takes it along.
                self.pre_stop_problem = f"preStop hook `{shown}` took longer than the period of {self.period:g} s"
            else:
                if code:
                    output.seek(0)
                    said = output.read().decode("utf-8", "replace").strip().splitlines()[-1:]
                    self.pre_stop_problem = f"preStop hook `{shown}` ended with exit code {code}" + "".join(
                        f": {line}" for line in said
                    )


def delete(
    instance: Instance,
    table: EndpointTable,
    *,
    lag: float = 3.0,
    period: float = 30.0,
    pre_stop: Sequence[str] | None = None,
) -> Deletion:
    """Begin to delete ``instance``, as ``Deletion`` describes it. Returns at once."""
    return Deletion(instance, table, lag=lag, period=period, pre_stop=pre_stop).start()


def _fill(part: str, values: dict[str, str]) -> str:
    """Replace the place-holders; other braces, as in JSON for curl, stay what they are."""
    for name, value in values.items():
        part = part.replace(name, value)
    return part
