"""How the kubelet ends a pod: the preStop hook, SIGTERM and, when the period is over, SIGKILL."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from ..errors import RehearsalError
from ..load.wire import fetch
from ..processes.instance import Instance
from .routing import EndpointState, EndpointTable

#: kubelet's minimumGracePeriodInSeconds (pkg/kubelet/kuberuntime/kuberuntime_container.go,
#: killContainer): what a container still gets between SIGTERM and SIGKILL when its preStop hook has
#: used up the period.
MINIMUM_GRACE = 2.0


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

    :param instance: which one.
    :param table: the routing that is to forget it. None: the container is ended but the pod is not
        deleted, as after a failed liveness probe, which goes the same way through killContainer.
    :param lag: seconds until the routing has; a sequence has one for each node.
    :param period: terminationGracePeriodSeconds.
    :param pre_stop: the hook; a sequence of strings is a command. A command runs with the
        instance's environment, with the folder of its Python first on the PATH, and in its working
        directory.

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
            self.table.change(self.instance.address, EndpointState.TERMINATING, self.lag)
        self._thread.start()
        return self

    def join(self, timeout: float | None = None) -> Deletion:
        """Wait until the process is gone and the routing knows it.

        :raises RehearsalError: not so within ``timeout`` seconds.
        :raises Exception: whatever went wrong in the thread.
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
            self.table.change(self.instance.address, EndpointState.GONE, self.lag)
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
