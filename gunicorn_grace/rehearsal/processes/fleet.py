"""Real gunicorn processes under test, and the certainty that none of them outlives it.

An instance is started as a container would start it: a command line and an environment. Its log is
read while it runs, so that a test waits for what gunicorn *says* and never for time to pass.
"""

from __future__ import annotations

import atexit
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from ..errors import InstanceFailed, LineMissing, RehearsalError
from ..load.wire import Address, fetch, parse_address
from . import procfs

#: Marks every process of an instance; the value is the instance's own runtime folder. See
#: ``procfs``.
MARK = "REHEARSAL_INSTANCE"

# gunicorn/arbiter.py, start(): one URL for each listener; none at all with reuse_port, where
# workers bind.
_LISTENING = re.compile(r"Listening at: (?P<listeners>.*?) \((?P<pid>\d+)\)$")
_BOOTING = re.compile(r"Booting worker with pid: (\d+)")

_running: weakref.WeakSet[Instance] = weakref.WeakSet()


class Instance:
    """One gunicorn under test: arbiter, workers and whatever they start.

    Use it in a ``with`` statement, which starts it, or call ``start`` and ``stop``. However it is
    left, no process of it remains. Methods may be called from any thread.

    Args:
        app: the application, as gunicorn takes it (``module:name``).
        args: further arguments for gunicorn.
        env: added to this process's environment.
        cwd: working directory; gunicorn also imports from it.
        python: the interpreter that runs ``-m gunicorn``.
        bind: address for ``-b``; port 0 takes a free one.
        name: how messages call it.
        start_new_session: give it a session and process group of its own, so that ``signal_group`` reaches it
            alone.
        executable_prefix: a command in front, such as ``("dumb-init", "--")``. ``pid`` is then that command.

    Attributes:
        lines: ``(time.monotonic(), text)`` for each line of standard output and error, in the order written.
        exit_time: ``time.monotonic()`` of the end of ``pid``, None while it runs.
        exit_code: as in ``Popen.returncode``: negative for a signal; None while it runs.
        started: ``time.monotonic()`` at which the process was launched, None before.
        listened: the same for when it was seen to listen.
        addresses: where it listens, the first one is ``address``.
        runtime_dir: a folder of its own, deleted by ``stop``. It is the instance's ``XDG_RUNTIME_DIR``,
            because gunicorn 25.1+ puts a control socket there: several instances would take it from each
            other, and from a gunicorn that this machine runs in earnest.
    """

    def __init__(
        self,
        app: str,
        *,
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        python: str = sys.executable,
        bind: str = "127.0.0.1:0",
        name: str = "instance",
        start_new_session: bool = True,
        executable_prefix: Sequence[str] = (),
    ) -> None:
        self.app = app
        self.args = tuple(args)
        self.cwd = cwd
        self.python = python
        self.bind = bind
        self.name = name
        self.lines: list[tuple[float, str]] = []
        self.addresses: tuple[Address, ...] = ()
        self.started: float | None = None
        self.listened: float | None = None
        self.exit_time: float | None = None
        self.exit_code: int | None = None
        #: Descriptors that it inherits, under the same numbers.
        self.pass_fds: tuple[int, ...] = ()
        self._own_session = start_new_session
        self._prefix = tuple(executable_prefix)
        self._folder = tempfile.TemporaryDirectory(prefix="rehearsal-")
        self.runtime_dir = Path(self._folder.name)
        self.env = {
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            "SPT_NOENV": "1",  # or setproctitle overwrites /proc/<pid>/environ, and the mark with it
            "XDG_RUNTIME_DIR": self._folder.name,
            **(env or {}),
            MARK: self._folder.name,
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._threads: list[threading.Thread] = []
        self._changed = threading.Condition()  # a line came, the output ended or the process did
        self._life = threading.RLock()  # starting, killing and reaping exclude each other
        self._stopped = False
        self._output_ended = False
        self._seen: tuple[Address, ...] = ()

    # -- life ----

    @property
    def command(self) -> list[str]:
        """The command line."""
        return [*self._prefix, self.python, "-m", "gunicorn", "-b", self.bind, *self.args, self.app]

    def start(self, timeout: float = 20.0) -> Instance:
        """Launch it and wait, up to ``timeout`` seconds, until it listens. Workers may still be
        loading then.

        Raises:
            InstanceFailed: it ended, or did not listen in time; it is stopped then.
        """
        try:
            self._launch()
            deadline = time.monotonic() + timeout
            while not (addresses := self._addresses_logged() or self._addresses_open()):
                if self.exit_time is not None:
                    self._join_output()
                    hint = " (daemon must be off)" if self.exit_code == 0 else ""
                    raise InstanceFailed(
                        f"{self.name} ended with exit code {self.exit_code}{hint} before it listened",
                        self.output,
                    )
                if (remaining := deadline - time.monotonic()) <= 0:
                    raise InstanceFailed(
                        f"{self.name} did not listen within {timeout:g} s", self.output
                    )
                with self._changed:
                    self._changed.wait(min(remaining, 0.25))
            self.addresses, self.listened = addresses, time.monotonic()
        except BaseException:
            self.stop()
            raise
        return self

    def _launch(self) -> None:
        with self._life:
            if self._process is not None or self._stopped:
                raise RehearsalError(
                    f"{self.name} was started before: an instance runs once, make a new one"
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
        """End every process of it with SIGKILL, and reap. Does nothing the second time."""
        with self._life:
            self._stopped = True
            process = self._process
            if process is not None and process.returncode is None:
                self.kill()
                for thread in self._threads:
                    thread.join(5.0)
                process.wait()
                if (
                    process.stdout is not None and self._output_ended
                ):  # else closing it waits for the reading thread
                    process.stdout.close()
                _running.discard(self)
            self._folder.cleanup()

    def kill(self) -> None:
        """SIGKILL every process of it, as the end of a container does, and wait until they are
        gone."""
        with self._life:
            process = self._process
            if (
                process is None or process.returncode is not None
            ):  # reaped: the pid may be someone else's
                return
            os.kill(
                process.pid, signal.SIGKILL
            )  # the parent first: it forks no more. Popen.kill() would reap
            procfs.end_marked(MARK, self._folder.name)
            if self._own_session and not Path("/proc/self").exists():
                with suppress(
                    ProcessLookupError, PermissionError
                ):  # macOS: EPERM for a group of zombies
                    os.killpg(process.pid, signal.SIGKILL)

    def __enter__(self) -> Instance:
        return self if self._process is not None else self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = "not started" if self._process is None else f"pid {self.pid}"
        return f"<{type(self).__name__} {self.name!r} {state}, exit code {self.exit_code}>"

    # -- what it is ----

    @property
    def pid(self) -> int:
        """The process that was started: the arbiter, or the prefix command. The platform signals
        this one."""
        if self._process is None:
            raise RehearsalError(f"{self.name} has no pid: it was not started")
        return self._process.pid

    @property
    def arbiter_pid(self) -> int:
        """The arbiter, also behind a prefix command and in a PID namespace of its own."""
        if not self._prefix:
            return self.pid
        match = self._find(_LISTENING.search)
        if match is None:
            return self.pid
        said = int(match["pid"])
        marked = procfs.marked(MARK, self._folder.name)
        return next((pid for pid in marked if pid == said or procfs.inner_pid(pid) == said), said)

    @property
    def address(self) -> Address:
        """Where it listens: ``(host, port)`` or the path of a UNIX socket. The first of its
        listeners."""
        if not self.addresses:
            raise RehearsalError(f"{self.name} has no address: it does not listen")
        return self.addresses[0]

    @property
    def port(self) -> int:
        """The TCP port of ``address``."""
        if isinstance(self.address, str):
            raise RehearsalError(f"{self.name} has no port: it listens at unix:{self.address}")
        return self.address[1]

    @property
    def output(self) -> str:
        """All that it has printed so far."""
        return "".join(f"{text}\n" for _, text in list(self.lines))

    def worker_pids(self) -> list[int]:
        """The pids of its living workers: the arbiter's children that logged "Booting worker".

        Without ``/proc``: every worker that ever logged it. With a log level above info: all
        children.
        """
        booted = [int(match[1]) for _, text in list(self.lines) if (match := _BOOTING.search(text))]
        alive = procfs.children(self.arbiter_pid)
        if not booted or not alive:
            return alive or (booted if not Path("/proc/self").exists() else [])
        return [pid for pid in alive if pid in booted or procfs.inner_pid(pid) in booted]

    # -- waiting ----

    def mark(self) -> int:
        """How many lines it has printed: ``wait_line(..., after=mark)`` then looks at newer ones
        only."""
        return len(self.lines)

    def wait_line(
        self, pattern: str | re.Pattern[str], timeout: float = 10.0, after: int = 0
    ) -> str:
        """The first line, among those from index ``after`` on, in which the regular expression is
        found.

        Args:
            pattern: searched for in each line; a string is a regular expression too.
            timeout: seconds.
            after: skip so many lines, usually from ``mark``.

        Raises:
            LineMissing: the time was over, or the output ended. The message shows the whole output.
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

    def wait_ready(self, timeout: float = 20.0, path: str = "/") -> None:
        """Return when a fresh connection got a complete response, of whatever status, to ``GET
        path``.

        Raises:
            InstanceFailed: it ended, or did not answer within ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        problem: Exception | None = None
        while True:
            remaining = deadline - time.monotonic()
            if self.exit_time is not None:
                self._join_output()
                raise InstanceFailed(
                    f"{self.name} ended with exit code {self.exit_code} before it was ready",
                    self.output,
                )
            if remaining <= 0:
                raise InstanceFailed(
                    f"{self.name} did not answer within {timeout:g} s (last: {problem})",
                    self.output,
                )
            try:
                fetch(self.address, path, timeout=remaining)
                return
            except (
                OSError
            ) as error:  # a worker that fails to boot resets what waits in the accept queue
                problem = error
            with self._changed:
                self._changed.wait_for(lambda: self.exit_time is not None, 0.05)

    def wait_workers(self, count: int, timeout: float = 20.0) -> list[int]:
        """Wait until exactly ``count`` workers live; their pids.

        Raises:
            InstanceFailed: not so within ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        while len(pids := self.worker_pids()) != count:
            if (remaining := deadline - time.monotonic()) <= 0 or self.exit_time is not None:
                raise InstanceFailed(
                    f"{self.name} has workers {pids}, {count} were waited for", self.output
                )
            with self._changed:
                self._changed.wait(min(remaining, 0.05))  # a worker's end is not always logged
        return pids

    def wait_exit(self, timeout: float) -> bool:
        """Whether ``pid`` ended within ``timeout`` seconds. Its children may live on."""
        with self._changed:
            return self._changed.wait_for(lambda: self.exit_time is not None, max(0.0, timeout))

    def wait(self, timeout: float = 30.0) -> int:
        """The exit code of ``pid``, negative for a signal, once it ended. It stays a zombie until
        ``stop``.

        Raises:
            InstanceFailed: it still ran after ``timeout`` seconds.
        """
        if not self.wait_exit(timeout) or self.exit_code is None:
            raise InstanceFailed(f"{self.name} still ran after {timeout:g} s", self.output)
        self._join_output()
        return self.exit_code

    # -- signals ----

    def signal(self, number: int) -> None:
        """Send a signal to ``pid``. One that has ended (and not been stopped) takes it without a
        word."""
        os.kill(self.pid, number)

    def signal_group(self, number: int) -> None:
        """Send a signal to the whole process group, as dumb-init and a terminal's Ctrl-C do.

        Raises:
            RehearsalError: it was started with ``start_new_session=False``: the group is ours too.
        """
        if not self._own_session:
            raise RehearsalError(
                f"{self.name} shares our process group: start it with start_new_session=True"
            )
        os.killpg(self.pid, number)

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
            # Not reaped yet: as long as the zombie is there, neither its pid nor its group can be
            # someone else's.
            result = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
            assert result is not None  # None only with WNOHANG
            code = result.si_status if result.si_code == os.CLD_EXITED else -result.si_status
        else:
            code = self._process.wait()
        with self._changed:
            self.exit_time, self.exit_code = time.monotonic(), code
            self._changed.notify_all()

    def _join_output(self) -> None:
        """Wait a moment for the last lines; a child that outlives the arbiter may hold the pipe
        open."""
        with self._changed:
            self._changed.wait_for(lambda: self._output_ended, 0.5)

    # -- finding ----

    def _find(self, search: Callable[[str], re.Match[str] | None]) -> re.Match[str] | None:
        return next((match for _, text in list(self.lines) if (match := search(text))), None)

    def _addresses_logged(self) -> tuple[Address, ...]:
        match = self._find(_LISTENING.search)
        if match is not None and match["listeners"]:
            return tuple(parse_address(url) for url in match["listeners"].split(","))
        if match is not None and not self.bind.endswith(":0"):  # reuse_port
            return (parse_address(self.bind),)
        return ()

    def _addresses_open(self) -> tuple[Address, ...]:
        """For a log that goes elsewhere: what the arbiter listens on, the same at two looks in a
        row."""
        if self.lines or self._prefix:
            return ()
        before, self._seen = (
            self._seen,
            tuple(parse_address(text) for text in procfs.listening(self.pid)),
        )
        return self._seen if self._seen == before else ()


class Fleet:
    """Several instances that start together and end together.

    A ``with`` statement starts them. Starting takes a core for each, so no more of them load at
    once than there are cores to do it.
    """

    def __init__(self, instances: Sequence[Instance]) -> None:
        self.instances = list(instances)

    def start(self, timeout: float = 20.0, ready: float | None = None) -> Fleet:
        """Start all; each has ``timeout`` seconds to listen and, if given, ``ready`` seconds more
        to answer.

        Raises:
            InstanceFailed: one of them failed; all are stopped then.
        """

        def start(instance: Instance) -> None:
            instance.start(timeout)
            if ready is not None:
                instance.wait_ready(ready)

        with ThreadPoolExecutor(
            max_workers=os.cpu_count() or 1, thread_name_prefix="fleet"
        ) as pool:
            try:
                for future in as_completed(
                    [pool.submit(start, instance) for instance in self.instances]
                ):
                    future.result()
            except BaseException:
                # Also on Ctrl-C: stopping them lets the threads of the pool end, which it waits
                # for.
                pool.shutdown(wait=False, cancel_futures=True)
                self.stop()
                raise
        return self

    def stop(self) -> None:
        """Stop every instance, also when stopping one of them fails."""
        _stop_all(self.instances)

    def __enter__(self) -> Fleet:
        return self if any(instance.addresses for instance in self.instances) else self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def __iter__(self) -> Iterator[Instance]:
        return iter(self.instances)

    def __len__(self) -> int:
        return len(self.instances)

    def __getitem__(self, index: int) -> Instance:
        return self.instances[index]


class MemoryWatch:
    """Looks from time to time at what the processes of a fleet hold in memory, from a thread of its
    own.

    Reading the memory of one process takes the kernel up to a millisecond, of a hundred instances a
    third of a second: so it rests fifty times as long as a look took, or it would be a load of its
    own.

    Args:
        instances: asked for at every look, for instances come and go.

    Attributes:
        samples: ``(time.monotonic(), bytes)`` for each look.
        each: the most that was seen of each instance, by its ``runtime_dir``.
    """

    def __init__(self, instances: Callable[[], Sequence[Instance]]) -> None:
        self.samples: list[tuple[float, int]] = []
        self.each: dict[str, int] = {}
        self._instances = instances
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory", daemon=True)

    @property
    def peak(self) -> int:
        """The most that all instances held together at one look, bytes; 0 where there is no
        ``/proc``."""
        return max((held for _, held in self.samples), default=0)

    def look(self) -> int:
        """One look, now; bytes."""
        wanted = {str(instance.runtime_dir) for instance in self._instances()}
        total = 0
        for value, pids in procfs.marked_by_value(MARK).items():
            if value in wanted:
                held = sum(map(procfs.memory, pids))
                self.each[value] = max(self.each.get(value, 0), held)
                total += held
        self.samples.append((time.monotonic(), total))
        return total

    def _run(self) -> None:
        while True:
            began = time.monotonic()
            self.look()
            if self._end.wait(max(1.0, 50 * (time.monotonic() - began))):
                return

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end.set()
        self._thread.join()


def _stop_all(instances: Sequence[Instance]) -> None:
    problem: BaseException | None = None
    for instance in instances:
        try:
            instance.stop()
        except BaseException as error:  # a second Ctrl-C must not leave the rest running
            problem = error
            instance.kill()
    if problem is not None:
        raise problem


@atexit.register
def _stop_forgotten() -> None:
    _stop_all(list(_running))
