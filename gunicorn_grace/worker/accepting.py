"""How a worker stops accepting, so that its listening sockets can be shut. Runs in workers.

When nothing waits in the accept queues and the workers are dismissed, the listening sockets are
shut for all processes. From then on the kernel refuses a connection at once. If the sockets stayed
open, a connection would get no answer until the last process has exited.

A worker that still asks such a socket for a connection gets EINVAL (Linux, inet_csk_accept), and
gunicorn's workers raise on it (22.0 to 27.0). So each worker notes in its record when it can handle
that. A worker class that is not known here never does, so its listeners stay open while it runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import sys
from collections.abc import Callable, Iterable
from typing import Any

from ..shared.cells import Record
from ..shared.memory import Memory


class Accepting:
    """The listeners of this worker.

    :param memory: the shared memory.
    :param record: the worker's record.
    """

    def __init__(self, memory: Memory, record: Record) -> None:
        self._memory = memory
        self._record = record
        self._servers: list[Any] = []
        self._stop: Callable[[Any], None] = lambda worker: None
        self._own: list[Any] = []

    def booted(self, worker: Any, *, owns_listeners: bool) -> None:
        """Find out how this worker accepts connections. Called just before it serves.

        :param worker: gunicorn's worker.
        :param owns_listeners: whether only this worker has the listeners (``reuse_port``). The
            worker then shuts them itself.
        """
        self._own = list(worker.sockets) if owns_listeners else []
        names = {cls.__name__ for cls in type(worker).__mro__}
        if names & {"SyncWorker", "ThreadWorker", "TornadoWorker"}:
            for sock in worker.sockets:
                self._take_shut_for_empty(sock)
            # They handle EINVAL from now on, even while a request delays their signal handlers.
            self._record.may_shut = 1
        if names & {"SyncWorker", "ThreadWorker"}:
            self._stop = lambda worker: self._done()
        elif "GeventWorker" in names:
            self._remember_gevent_servers(_inodes(worker.sockets))
            self._stop = self._stop_gevent
        elif names & {"ASGIWorker", "UvicornWorker", "TornadoWorker"}:
            self._stop = self._stop_asyncio

    def stop(self, worker: Any) -> None:
        """Stop accepting if the accept queues are empty. Called in the signal handler that
        dismisses the worker.

        :param worker: gunicorn's worker.
        """
        if self._memory.header.emptied:
            self._stop(worker)

    def _done(self) -> None:
        self._record.may_shut = 1
        for sock in self._own:
            # It may be closed already.
            with contextlib.suppress(OSError, ValueError, AttributeError):
                sock.shutdown(socket.SHUT_RD)

    def _remember_gevent_servers(self, listeners: set[int]) -> None:
        """Record the servers that the worker is about to start, because only local variables of its
        ``run`` refer to them.

        :param listeners: the inodes of the worker's sockets. They tell the worker's servers from
            those of the application.
        """
        server: Any = sys.modules["gevent.baseserver"].BaseServer
        start = server.start_accepting

        def start_accepting(server: Any) -> None:
            if not _inodes([server.socket]) & listeners:
                start(server)
                return
            # A server with a full pool stops accepting, and starts again when the pool has room.
            if self._memory.header.emptied and self._record.may_shut:
                return
            if server not in self._servers:
                self._servers.append(server)
            start(server)

        server.start_accepting = start_accepting

    def _stop_gevent(self, worker: Any) -> None:
        from gevent import get_hub

        def stop() -> None:
            self._done()
            for server in self._servers:
                server.stop_accepting()

        # The handler may have interrupted the hub in the middle of an accept.
        get_hub().loop.run_callback_threadsafe(stop)

    def _stop_asyncio(self, worker: Any) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return  # The worker is not serving yet, or has stopped serving.
        if isinstance(loop, asyncio.SelectorEventLoop):
            loop.call_soon_threadsafe(self._stop_reading, loop, _inodes(worker.sockets))

    def _stop_reading(self, loop: Any, inodes: set[int]) -> None:
        # uvicorn serves a duplicate of the socket.
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                if os.fstat(int(name)).st_ino in inodes:
                    loop.remove_reader(int(name))
        self._done()

    def _take_shut_for_empty(self, sock: Any) -> None:
        """Make ``accept`` on a socket that the drain has shut behave as if nothing waited there.

        :param sock: gunicorn's wrapper of a listening socket.
        """
        accept, header = sock.sock.accept, self._memory.header

        def accept_unless_shut() -> Any:
            try:
                return accept()
            except OSError as error:
                if error.errno != errno.EINVAL or not header.emptied:
                    raise
                raise BlockingIOError(errno.EAGAIN, "the listener is shut") from None

        sock.accept = accept_unless_shut


def _inodes(socks: Iterable[Any]) -> set[int]:
    found = set()
    for sock in socks:
        with contextlib.suppress(OSError, AttributeError):  # It is closed.
            found.add(os.fstat(sock.fileno()).st_ino)
    return found
