"""Ends a pod as the kubelet does: the preStop hook, SIGTERM and, when the period is over,
SIGKILL."""

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

#: Seconds that a container still gets between SIGTERM and SIGKILL when its preStop hook has used up
#: the period. The kubelet calls it minimumGracePeriodInSeconds
#: (pkg/kubelet/kuberuntime/kuberuntime_container.go, killContainer).
MINIMUM_GRACE = 2.0


@dataclass(frozen=True)
class Exec:
    """A preStop hook that runs a command in the container. ``{host}``, ``{port}`` and ``{pid}`` are
    replaced by those of the instance."""

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
    """The deletion of one pod. Its thread does what the platform does, and records the times.

    Two things begin at once, and neither waits for the other. The endpoint starts to leave the
    table, because the EndpointSlice controller takes "ready" from it as soon as the pod has a
    deletion timestamp. The preStop hook starts to run. SIGTERM follows when the hook has ended or
    the period is over. SIGKILL follows at the end of the period, which includes the hook. If the
    hook used up the period, the container gets ``MINIMUM_GRACE`` more seconds. SIGTERM goes to the
    container's first process; when that ends, everything in the container ends. The order is that
    of killContainer in pkg/kubelet/kuberuntime/kuberuntime_container.go.

    :param instance: the instance to delete.
    :param table: the routing that has to forget it. With None the container is ended but the pod is
        not deleted. The kubelet does that after a failed liveness probe, also by killContainer.
    :param lag: seconds until the routing has forgotten it; a sequence has one value for each node.
    :param period: terminationGracePeriodSeconds.
    :param pre_stop: the hook; a sequence of strings is a command. A command runs with the
        instance's environment, with the folder of its Python first on the PATH, and in its working
        directory.

    Times are ``time.monotonic()`` seconds, and None until the event has happened.

    :ivar started: time at which the deletion began.
    :ivar unrouted: time at which the last node forgot the endpoint.
    :ivar pre_stop_done: time at which the hook ended or ran out of time.
    :ivar pre_stop_problem: the problem with the hook; empty if there was none. The deletion goes on
        in any case, as in the kubelet.
    :ivar sigterm: time at which SIGTERM was sent.
    :ivar exited: time at which the process was gone.
    :ivar exit_code: as in ``Popen.returncode``.
    :ivar killed: whether SIGKILL was needed.
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
        self.pre_stop: Hook | None = (
            pre_stop if isinstance(pre_stop, (Exec, HttpGet, Sleep)) else as_hook(pre_stop or ())
        )
        self.started: float | None = None
        self.unrouted: float | None = None
        self.pre_stop_done: float | None = None
        self.pre_stop_problem: str = ""
        self.sigterm: float | None = None
        self.exited: float | None = None
        self.exit_code: int | None = None
        self.killed: bool = False
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
        """Begin the deletion. Returns at once."""
        self.started = time.monotonic()
        if self.table is not None:
            self.table.change(self.instance.address, EndpointState.TERMINATING, self.lag)
        self._thread.start()
        return self

    def join(self, timeout: float | None = None) -> Deletion:
        """Wait until the process is gone and the routing knows it.

        :raises RehearsalError: the deletion took longer than ``timeout`` seconds.
        :raises Exception: the deletion failed in its thread.
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
        """Give up: end the hook and the instance. The thread then ends by itself."""
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
                        f"{shown} got {response.status}; the kubelet ignores that, but you may not"
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
                if self._cancelled.is_set():  # cancel() may have run before the hook existed
                    self._hook.kill()
                code = self._hook.wait(max(0.0, deadline - time.monotonic()))
            except OSError as error:
                self.pre_stop_problem = f"{shown} could not be run: {error.strerror or error}"
            except subprocess.TimeoutExpired:
                # As in Kubernetes, the hook runs on until the container ends.
                self.pre_stop_problem = too_long
            else:
                if code:
                    output.seek(0)
                    said = output.read().decode("utf-8", "replace").strip().splitlines()[-1:]
                    self.pre_stop_problem = f"{shown} ended with exit code {code}" + "".join(
                        f": {line}" for line in said
                    )


def as_hook(command: Sequence[str]) -> Hook | None:
    """Read a hook from a command line: ``GET /path`` is a request, and anything else is a command.

    :returns: None for an empty command line.
    """
    if not command:
        return None
    if len(command) == 2 and command[0] == "GET":
        return HttpGet(command[1])
    return Exec(tuple(command))


def _fill(part: str, values: dict[str, str]) -> str:
    """Replace the placeholders. Other braces stay, such as the braces of JSON for curl."""
    for name, value in values.items():
        part = part.replace(name, value)
    return part
