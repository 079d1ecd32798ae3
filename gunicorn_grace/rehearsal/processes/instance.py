"""A real gunicorn under test: arbiter, workers and everything that they start."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..errors import InstanceFailed, RehearsalError
from ..load.wire import Address, fetch, parse_address
from . import procfs
from .process import MARK, SupervisedProcess

# gunicorn/arbiter.py, start(): the line has one URL for each listener. With reuse_port it has none,
# because the workers bind.
_LISTENING = re.compile(r"Listening at: (?P<listeners>.*?) \((?P<pid>\d+)\)$")
_BOOTING = re.compile(r"Booting worker with pid: (\d+)")


class Instance(SupervisedProcess):
    """One gunicorn under test: arbiter, workers and everything that they start.

    This project's own tests drive their servers with it. ``wait_workers``, ``wait`` and
    ``signal_group`` are for them.

    :param app: the application, as gunicorn takes it (``module:name``).
    :param args: further arguments for gunicorn.
    :param env: variables that are added to this process's environment.
    :param cwd: working directory, from which gunicorn also imports.
    :param python: the interpreter that runs ``-m gunicorn``.
    :param bind: address for ``-b``. Port 0 stands for any free port.
    :param name: its name in messages.
    :param start_new_session: see ``SupervisedProcess``.
    :param executable_prefix: see ``SupervisedProcess``.

    :ivar listened: ``time.monotonic()`` when it was first seen to listen; None before.
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
        super().__init__(
            name,
            env=env,
            cwd=cwd,
            start_new_session=start_new_session,
            executable_prefix=executable_prefix,
        )
        self.app = app
        self.args: tuple[str, ...] = tuple(args)
        self.python = python
        self.bind = bind
        self.listened: float | None = None
        self._seen: tuple[Address, ...] = ()

    @property
    def command(self) -> list[str]:
        """The command line."""
        return [*self._prefix, self.python, "-m", "gunicorn", "-b", self.bind, *self.args, self.app]

    def start(self, timeout: float = 20.0) -> Instance:
        """Launch the instance and wait until it listens, up to ``timeout`` seconds. Its workers may
        then still be loading.

        :raises InstanceFailed: it ended, or did not listen in time. It is then stopped.
        """
        try:
            self._launch()
            deadline = time.monotonic() + timeout
            while not (addresses := self._addresses_logged() or self._addresses_open()):
                if self.exit_time is not None:
                    self._join_output()
                    hint = " (daemon must be off)" if self.exit_code == 0 else ""
                    raise InstanceFailed(
                        f"{self.name} ended with exit code {self.exit_code}{hint} "
                        "before it listened",
                        self.output,
                    )
                if (remaining := deadline - time.monotonic()) <= 0:
                    raise InstanceFailed(
                        f"{self.name} did not listen within {timeout:g} s", self.output
                    )
                with self._changed:
                    self._changed.wait(min(remaining, 0.25))
            self.addresses: tuple[Address, ...] = addresses
            self.listened = time.monotonic()
        except BaseException:
            self.stop()
            raise
        return self

    @property
    def port(self) -> int:
        """The TCP port of ``address``.

        :raises RehearsalError: it listens at a UNIX socket, or does not listen.
        """
        if isinstance(self.address, str):
            raise RehearsalError(f"{self.name} has no port: it listens at unix:{self.address}")
        return self.address[1]

    @property
    def arbiter_pid(self) -> int:
        """The pid of the arbiter as this process sees it, even if the arbiter runs behind a prefix
        command or in its own PID namespace."""
        if not self._prefix:
            return self.pid
        match = self._find(_LISTENING.search)
        if match is None:
            return self.pid
        said = int(match["pid"])
        marked = procfs.marked(MARK, self._folder.name)
        return next((pid for pid in marked if pid == said or procfs.inner_pid(pid) == said), said)

    def worker_pids(self) -> list[int]:
        """Return the pids of its living workers: the arbiter's children that logged "Booting
        worker".

        Without ``/proc`` these are all workers that ever logged it. If the log level is above info,
        they are all children.
        """
        booted = [int(match[1]) for _, text in list(self.lines) if (match := _BOOTING.search(text))]
        alive = procfs.children(self.arbiter_pid)
        if not booted or not alive:
            return alive or (booted if not Path("/proc/self").exists() else [])
        return [pid for pid in alive if pid in booted or procfs.inner_pid(pid) in booted]

    # -- waiting ----

    def wait_ready(self, timeout: float = 20.0, path: str = "/") -> None:
        """Wait until a new connection gets a complete response to ``GET path``, with any status.

        :raises InstanceFailed: it ended, or did not answer within ``timeout`` seconds.
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
            # A worker that fails to boot resets the connections in the accept queue.
            except OSError as error:
                problem = error
            with self._changed:
                self._changed.wait_for(lambda: self.exit_time is not None, 0.05)

    def wait(self, timeout: float = 30.0) -> int:
        """Wait until the process ``pid`` has ended. It stays a zombie until ``stop``.

        :returns: its exit code; negative for a signal.

        :raises InstanceFailed: it still ran after ``timeout`` seconds.
        """
        if not self.wait_exit(timeout) or self.exit_code is None:
            raise InstanceFailed(f"{self.name} still ran after {timeout:g} s", self.output)
        self._join_output()
        return self.exit_code

    def wait_workers(self, count: int, timeout: float = 20.0) -> list[int]:
        """Wait until there are exactly ``count`` living workers.

        :returns: their pids.

        :raises InstanceFailed: after ``timeout`` seconds the number is another one, or the instance
            has ended.
        """
        deadline = time.monotonic() + timeout
        while len(pids := self.worker_pids()) != count:
            if (remaining := deadline - time.monotonic()) <= 0 or self.exit_time is not None:
                raise InstanceFailed(
                    f"{self.name} has workers {pids}, but {count} were expected", self.output
                )
            with self._changed:
                self._changed.wait(min(remaining, 0.05))  # a worker's end is not always logged
        return pids

    def signal_group(self, number: int) -> None:
        """Send a signal to the whole process group, as dumb-init and a terminal's Ctrl-C do.

        :raises RehearsalError: it was started with ``start_new_session=False``, so this process is
            in its group.
        """
        if not self._own_session:
            raise RehearsalError(
                f"{self.name} shares this process's group: start it with start_new_session=True"
            )
        os.killpg(self.pid, number)

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
        """Return the arbiter's listeners if two looks in a row agree. This is for an instance whose
        log goes elsewhere."""
        if self.lines or self._prefix:
            return ()
        before, self._seen = (
            self._seen,
            tuple(parse_address(text) for text in procfs.listening(self.pid)),
        )
        return self._seen if self._seen == before else ()
