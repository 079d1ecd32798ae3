"""Requests that this worker has accepted and not begun. Runs in workers.

A gthread worker accepts more connections than it has threads, and a gevent worker may accept some
before it gets to serve them. No hook runs for such a request, so the counter does not know it. The
kernel does: its bytes lie unread in the connection. Without this look, a shutdown would take the
time in which all threads are busy for silence, and would not know that it loses these requests.

Each worker looks while the shutdown is under way, in a thread of its own (in a gevent worker it is
a greenlet). It does not look before, so that serving costs nothing.
"""

from __future__ import annotations

import _thread
import contextlib
import fcntl
import os
import socket
import termios
import time
from collections.abc import Iterable
from typing import Any

from ..shared import listener
from ..shared.cells import Record
from ..shared.memory import Memory
from .connections import accepted_at, bare
from .counting import Counter

LOOK_EVERY = 0.1
"""Seconds between two looks while the shutdown is under way."""

LOOK_EVERY_WHILE_SERVING = 0.25
"""The same after a shutdown was taken back, because another one may begin."""

# struct tcp_info, <linux/tcp.h>; the states are those of <net/tcp_states.h>.
_STATE = 0
_ESTABLISHED, _CLOSE_WAIT = 1, 8


class Waiting:
    """Looks at the connections of this worker.

    :ivar looks_early: whether to look from T0 on. A sync worker begins what it accepts, so it has
        nothing to look for before the drain.

    :param memory: the shared memory.
    :param record: the worker's record.
    :param counter: the worker's counter.
    :param log: gunicorn's logger.
    """

    def __init__(self, memory: Memory, record: Record, counter: Counter, log: Any) -> None:
        self._memory = memory
        self._record = record
        self._counter = counter
        self._log = log
        self._pid = os.getpid()
        self._is_watching = False
        self.looks_early = True
        self.addresses: frozenset[Any] = frozenset()
        self._own_listeners: list[Any] = []

    def booted(self, worker: Any, *, owns_listeners: bool) -> None:
        """Note the worker's listeners. Called just before it serves.

        :param worker: gunicorn's worker.
        :param owns_listeners: whether no other process has them (``reuse_port``). The arbiter then
            cannot see what waits in their accept queues, so the worker looks there too.
        """
        self.addresses = frozenset(bare(sock.getsockname()) for sock in worker.sockets)
        if owns_listeners:
            self.looks_early = True
            self._own_listeners = list(worker.sockets)
        self.watch()

    def watch(self) -> None:
        """If the shutdown has begun, start the thread that looks. A signal handler calls this, so
        it takes no lock."""
        if self._record.uncounted:
            return
        is_time = self._memory.is_terminating() if self.looks_early else self._memory.header.drain
        if is_time and not self._is_watching:
            self._is_watching = True
            _thread.start_new_thread(self._watch, ())

    def _watch(self) -> None:
        try:
            # gevent gives a forked child of the application a copy of this greenlet. The record is
            # its parent's.
            while os.getpid() == self._pid:
                if self._memory.is_terminating():
                    self.look()
                    time.sleep(LOOK_EVERY)
                else:
                    self._record.waiting = 0
                    time.sleep(LOOK_EVERY_WHILE_SERVING)
        except Exception:
            self._record.waiting = 0
            self._log.exception(
                "gunicorn-grace: cannot count the requests that wait in this worker"
            )

    def look(self) -> None:
        """Store how many requests wait now.

        With HTTP/2, tornado, pywsgi and ASGI a request does not refer to its connection. Unread
        bytes may then belong to a request in flight, so as many are taken off.
        """
        busy, elsewhere = connections_of(list(self._counter.in_flight))
        unread = sum(
            key[1] not in busy and _expects_an_answer(conn)
            for conn, key in accepted_at(self.addresses, only=_has_unread)
        )
        self._record.waiting = max(0, unread - elsewhere) + self._are_in_own_queues()

    def _are_in_own_queues(self) -> bool:
        # A listener may just be closing.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            return listener.are_waiting(self._own_listeners)
        return False


def connections_of(requests: Iterable[Any]) -> tuple[set[int], int]:
    """Return the inodes of the connections of these requests, and how many requests do not refer to
    their connection."""
    inodes, elsewhere = set(), 0
    for request in requests:
        try:
            inodes.add(os.fstat(request.unreader.sock.fileno()).st_ino)
        except (AttributeError, OSError, ValueError):
            elsewhere += 1
    return inodes, elsewhere


def _has_unread(fd: int) -> bool:
    """Whether bytes wait to be read from a descriptor. Whatever the number belongs to by now, to
    ask changes nothing."""
    try:
        return fcntl.ioctl(fd, termios.FIONREAD, b"\0\0\0\0") != b"\0\0\0\0"
    except OSError:  # A listener, or a descriptor that has just been closed.
        return False


def _expects_an_answer(conn: Any) -> bool:
    """Whether this side can still write. It cannot on a connection that it is closing: what comes
    there is the rest of a request that has been answered."""
    if conn.family == socket.AF_UNIX:
        return True
    state = conn.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[_STATE]
    return state in (_ESTABLISHED, _CLOSE_WAIT)
