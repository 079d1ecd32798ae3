"""The load in a process of its own.

In the same process, the load would share the interpreter with the threads that read a hundred logs,
end a hundred instances and send probes. On a busy machine, the thread that holds the interpreter
may wait for a processor, and the load waits with it. When 99 of 100 instances were deleted at once,
the load was late by a second.

The parent sends the changes of its table and receives the records over a pair of sockets. Both
processes use the machine's monotonic clock, so times need no translation. If the parent dies, the
socket is closed, and the process ends.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from ..errors import LoadFailed
from ..kubernetes.routing import EndpointChange, EndpointTable
from .load import Load
from .running import RunningLoad
from .tally import Tally

#: The generator's nice value, if the system permits it. The measurement must not wait for the
#: processes that it measures.
PRIORITY = -10
#: Seconds from one report of the process to the next.
EVERY = 0.1


class Generator(RunningLoad):
    """A ``Load`` that runs in a process of its own.

    :param table: chooses the instance for each new connection. Its changes are passed on to the
        process.
    :param options: the other parameters of ``Load``.

    :raises ValueError: a number is out of its range.
    """

    def __init__(self, table: EndpointTable, **options: Any) -> None:
        load = Load(EndpointTable(), **options)  # this checks the options before the process starts
        super().__init__(Tally(rate=load.rate), load.timeout)
        self._table = table
        self._options = options
        self._sending = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._receive, name="generator", daemon=True)

    @property
    def pid(self) -> int:
        """The pid of its process.

        :raises LoadFailed: it was not started.
        """
        if self._process is None:
            raise LoadFailed("the load generator was not started")
        return self._process.pid

    def start(self) -> Generator:
        """Begin to send requests. Returns once the process has begun.

        :raises LoadFailed: it could not be started.
        """
        try:
            self._launch()
            self._send(self._options)
            self._table.follow(self._send)
            self._send(None)
            self._started.wait()
            if self._problem is not None:
                raise self._failed() from self._problem
        except BaseException:  # also Ctrl-C, because nothing else would end it
            self.stop(abandon=True)
            raise
        return self

    def _launch(self) -> None:
        ours, theirs = socket.socketpair()
        self._connection = Connection(ours.detach())
        with theirs:
            descriptor = theirs.fileno()
            # The other process imports from the same places, so that a source tree need not be
            # installed.
            code = (
                f"import sys; sys.path[:] = {sys.path!r}; "
                f"from {__name__} import main; main({descriptor})"
            )
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", code],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    pass_fds=[descriptor],
                    start_new_session=True,  # the parent handles Ctrl-C
                )
            except OSError as error:
                raise LoadFailed(f"the load generator could not be started: {error}") from error
        self._thread.start()

    def stop(self, abandon: bool = False) -> Tally:
        """Start no more requests, wait for those under way up to ``timeout`` seconds, then end the
        process.

        :param abandon: whether not to wait for requests under way, and not to count them.

        :raises LoadFailed: the generator failed, so the counts mean nothing. With ``abandon`` this
            is not raised.
        """
        if self._process is not None:
            if abandon:
                self._process.kill()
            self._send("stop")
            if self._thread.ident is not None:
                self._thread.join()
            self._process.wait()
            assert self._process.stderr is not None
            self._process.stderr.close()
        with self._sending:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
        if self._problem is not None and not abandon:
            raise self._failed() from self._problem
        return self._tally

    def __enter__(self) -> Generator:
        return self if self._process is not None else self.start()

    def _send(self, message: EndpointChange | Mapping[str, Any] | str | None) -> None:
        with self._sending:
            if self._connection is not None:
                with suppress(OSError):  # it has ended, and the thread reports why
                    self._connection.send(message)

    def _receive(self) -> None:
        assert self._connection is not None
        assert self._process is not None
        try:
            while True:
                began, records, lags, skipped, problem = self._connection.recv()
                self._tally.began, self._tally.skipped = began, skipped
                self._tally.lags += lags
                self._tally.records += records
                self._started.set()
                if problem is not None:
                    if problem:
                        self._problem = LoadFailed(problem)
                    break
                with self._progress:
                    self._progress.notify_all()
        except (EOFError, OSError):
            _, said = self._process.communicate()
            last = said.decode("utf-8", "replace").strip().splitlines()[-1:]
            self._problem = LoadFailed(
                "".join(
                    [
                        f"its process ended with exit code {self._process.returncode}",
                        *(f": {line}" for line in last),
                    ]
                )
            )
        finally:
            with self._progress:
                self._ended = True
                self._progress.notify_all()
            self._started.set()


def main(descriptor: int) -> None:
    """Run a ``Load`` that is controlled over a socket and reports over it. Runs in the generator's
    process, and ends it.

    :param descriptor: the descriptor of the socket.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(OSError):  # this needs a privilege
        os.setpriority(os.PRIO_PROCESS, 0, PRIORITY)
        # With autogroup on (sched(7)), a nice value counts only within a session, and each instance
        # has its own session. Among a hundred busy sessions, the generator would get a hundredth.
        with open("/proc/self/autogroup", "w") as file:
            file.write(str(PRIORITY))
    connection = Connection(descriptor)
    table = EndpointTable()
    options = connection.recv()
    while (change := connection.recv()) is not None:
        table.replay(change)
    load = Load(table, **options)
    over = threading.Event()
    stopped: list[str] = []

    def obey() -> None:
        try:
            while (message := connection.recv()) != "stop":
                table.replay(message)
        except (EOFError, OSError):
            os._exit(0)  # the parent is gone
        try:
            load.stop()
            stopped.append("")
        except LoadFailed as error:
            stopped.append(str(error.__cause__ or error))
        over.set()

    load.start()
    threading.Thread(target=obey, daemon=True).start()
    while True:
        ended = over.wait(EVERY)
        failed = load.problem
        problem = stopped[0] if ended else failed
        tally = load.take()
        connection.send((tally.began, tally.records, tally.lags, tally.skipped, problem))
        if problem is not None:
            os._exit(0)
