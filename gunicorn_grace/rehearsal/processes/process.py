"""A process under test, of which no child is left behind.

It is started as a container would start it, with a command line and an environment. Its output is
read while it runs, so a test can wait for a line in the log instead of waiting for some time.
"""

from __future__ import annotations

import atexit
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from ..errors import InstanceFailed, LineMissing, RehearsalError
from ..load.wire import Address
from . import procfs

#: The environment variable that marks every process of an instance. Its value is the instance's own
#: runtime folder. See ``procfs``.
MARK = "REHEARSAL_INSTANCE"


_running: weakref.WeakSet[SupervisedProcess] = weakref.WeakSet()


_Process = TypeVar("_Process", bound="SupervisedProcess")


class SupervisedProcess(ABC):
    """A process under test, with its descendants and its output.

    ``mark`` and ``wait_line`` are for this project's own tests.

    Use it in a ``with`` statement, which starts it, or call ``start`` and ``stop``. No process of
    it remains afterwards. Methods may be called from any thread.

    :param name: its name in messages.
    :param env: variables that are added to this process's environment.
    :param cwd: working directory.
    :param start_new_session: whether it gets a session and process group of its own, so that
        ``signal_group`` reaches only its processes.
    :param executable_prefix: a command in front, such as ``("dumb-init", "--")``. ``pid`` is then
        the pid of that command.

    :ivar lines: ``(time.monotonic(), text)`` for each line of standard output and error, in the
        order in which they were written.
    :ivar addresses: the addresses where it listens; the first one is ``address``.
    :ivar started: ``time.monotonic()`` when the process was launched; None before.
    :ivar exit_time: ``time.monotonic()`` when ``pid`` ended; None while it runs.
    :ivar exit_code: as in ``Popen.returncode``: negative for a signal; None while it runs.
    :ivar pass_fds: descriptors that it inherits, under the same numbers.
    :ivar runtime_dir: a folder of its own, deleted by ``stop``. It is also ``XDG_RUNTIME_DIR``,
        because gunicorn 25.1+ puts a control socket there. Instances would otherwise take it from
        each other, and from a gunicorn that really serves on this machine.
    """

    def __init__(
        self,
        name: str,
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        start_new_session: bool = True,
        executable_prefix: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.cwd = cwd
        self.lines: list[tuple[float, str]] = []
        self.addresses: tuple[Address, ...] = ()
        self.started: float | None = None
        self.exit_time: float | None = None
        self.exit_code: int | None = None
        self.pass_fds: tuple[int, ...] = ()
        self._own_session = start_new_session
        self._prefix = tuple(executable_prefix)
        self._folder = tempfile.TemporaryDirectory(prefix="rehearsal-")
        self.runtime_dir: Path = Path(self._folder.name)
        self.env: dict[str, str] = {
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            # Otherwise setproctitle overwrites /proc/<pid>/environ, and the mark with it.
            "SPT_NOENV": "1",
            "XDG_RUNTIME_DIR": self._folder.name,
            **(env or {}),
            MARK: self._folder.name,
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._threads: list[threading.Thread] = []
        self._changed = threading.Condition()  # a line came, or the output or the process ended
        self._life = threading.RLock()  # starting, killing and reaping exclude each other
        self._stopped = False
        self._output_ended = False

    # -- life ----

    @property
    @abstractmethod
    def command(self) -> list[str]:
        """The command line."""

    @abstractmethod
    def start(self, timeout: float = 20.0) -> SupervisedProcess:
        """Launch the process and wait, up to ``timeout`` seconds, until it listens."""

    def _launch(self) -> None:
        with self._life:
            if self._process is not None or self._stopped:
                raise RehearsalError(
                    f"{self.name} was started before: an instance runs only once; make a new one"
                )
            try:
                self.started = time.monotonic()
                self._process = subprocess.Popen(
                    self.command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    env=self.env,
                    cwd=self.cwd,
                    start_new_session=self._own_session,
                    pass_fds=self.pass_fds,
                )
            except OSError as error:
                raise InstanceFailed(f"{self.name} could not be run: {error}", "") from error
            _running.add(self)
            for target in (self._read_output, self._await_exit):
                thread = threading.Thread(
                    target=target, name=f"{self.name} {target.__name__}", daemon=True
                )
                thread.start()
                self._threads.append(thread)

    def stop(self) -> None:
        """End all its processes with SIGKILL, and reap the process. A second call does nothing."""
        with self._life:
            self._stopped = True
            process = self._process
            if process is not None and process.returncode is None:
                self.kill()
                for thread in self._threads:
                    thread.join(5.0)
                process.wait()
                # If the output has not ended, closing it would wait for the reading thread.
                if process.stdout is not None and self._output_ended:
                    process.stdout.close()
                _running.discard(self)
            self._folder.cleanup()

    def kill(self) -> None:
        """Send SIGKILL to all its processes, as the end of a container does, and wait."""
        with self._life:
            process = self._process
            # Once the process is reaped, the pid may belong to another one.
            if process is None or process.returncode is not None:
                return
            # The parent is ended first, so that it cannot fork. Popen.kill() would reap it.
            os.kill(process.pid, signal.SIGKILL)
            procfs.end_marked(MARK, self._folder.name)
            if self._own_session and not Path("/proc/self").exists():
                # macOS gives EPERM for a group of zombies.
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)

    def __enter__(self: _Process) -> _Process:
        if self._process is None:
            self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = "not started" if self._process is None else f"pid {self.pid}"
        return f"<{type(self).__name__} {self.name!r} {state}, exit code {self.exit_code}>"

    @property
    def pid(self) -> int:
        """The pid of the process that was started: the arbiter, or the prefix command. Signals go
        to it.

        :raises RehearsalError: it was not started.
        """
        if self._process is None:
            raise RehearsalError(f"{self.name} has no pid: it was not started")
        return self._process.pid

    @property
    def address(self) -> Address:
        """The address of its first listener: ``(host, port)`` or the path of a UNIX socket.

        :raises RehearsalError: it does not listen.
        """
        if not self.addresses:
            raise RehearsalError(f"{self.name} has no address: it does not listen")
        return self.addresses[0]

    @property
    def output(self) -> str:
        """Everything that it has printed so far."""
        return "".join(f"{text}\n" for _, text in list(self.lines))

    # -- waiting ----

    def mark(self) -> int:
        """Return the number of lines so far. ``wait_line(..., after=mark)`` then skips them."""
        return len(self.lines)

    def wait_line(
        self, pattern: str | re.Pattern[str], timeout: float = 10.0, after: int = 0
    ) -> str:
        """Wait for a line in which a regular expression is found, and return that line.

        :param pattern: the regular expression, as a string or compiled.
        :param timeout: the longest wait, in seconds.
        :param after: the number of lines to skip, usually from ``mark``.

        :raises LineMissing: the time was over, or the output ended. The message has the output.
        """
        search = re.compile(pattern).search
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                for index in range(after, len(self.lines)):
                    if search(self.lines[index][1]):
                        return self.lines[index][1]
                after = max(after, len(self.lines))
                remaining = deadline - time.monotonic()
                if self._output_ended or remaining <= 0:
                    how = "its output ended" if self._output_ended else f"{timeout:g} s were over"
                    expression = pattern if isinstance(pattern, str) else pattern.pattern
                    raise LineMissing(
                        f"{self.name}: no line with {expression!r} when {how}\n{self.output}"
                    )
                self._changed.wait(remaining)

    def wait_exit(self, timeout: float) -> bool:
        """Wait up to ``timeout`` seconds for the end of ``pid``, whose children may live on. Return
        whether it ended."""
        with self._changed:
            return self._changed.wait_for(lambda: self.exit_time is not None, max(0.0, timeout))

    def signal(self, number: int) -> None:
        """Send a signal to ``pid``. A zombie ignores it, so there is no error before ``stop``."""
        os.kill(self.pid, number)

    # -- threads ----

    def _read_output(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        for raw in self._process.stdout:
            text = raw.decode("utf-8", "replace").rstrip("\r\n")
            with self._changed:
                self.lines.append((time.monotonic(), text))
                self._changed.notify_all()
        with self._changed:
            self._output_ended = True
            self._changed.notify_all()

    def _await_exit(self) -> None:
        assert self._process is not None
        if hasattr(os, "waitid"):
            # WNOWAIT does not reap it. While the zombie exists, its pid and group cannot be reused.
            result = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
            assert result is not None  # None only with WNOHANG
            code = result.si_status if result.si_code == os.CLD_EXITED else -result.si_status
        else:
            code = self._process.wait()
        with self._changed:
            self.exit_time, self.exit_code = time.monotonic(), code
            self._changed.notify_all()

    def _join_output(self) -> None:
        """Wait for the last lines, but only briefly, because a child that lives on may hold the
        pipe open."""
        with self._changed:
            self._changed.wait_for(lambda: self._output_ended, 0.5)


def stop_all(processes: Sequence[SupervisedProcess]) -> None:
    problem: BaseException | None = None
    for process in processes:
        try:
            process.stop()
        except BaseException as error:  # a second Ctrl-C must not leave the rest running
            problem = error
            process.kill()
    if problem is not None:
        raise problem


@atexit.register
def _stop_forgotten() -> None:
    stop_all(list(_running))
