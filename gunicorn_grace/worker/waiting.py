"""Counts requests that have reached this worker but are not being served yet. Runs in workers.

No hook runs for them, so the counter does not know them. There are four kinds:

- A connection was accepted, but no thread or greenlet has begun to serve it. A gthread worker
  accepts more connections than it has threads. Such a connection has unread bytes in the kernel.
- A request was read in part, and the rest has not come.
- A request waits behind one in flight, on the same connection.
- A connection waits in an accept queue of the worker's own (``reuse_port``).

Without the first kind, a shutdown would see no new requests while all threads are busy, and would
wrongly conclude that none come any more. Without the others, it would not know how many requests it
loses. Each worker looks while the shutdown is under way, in a thread of its own (in a gevent worker
it is a greenlet). If the worker gets SIGKILL, the arbiter finds the results of its last look. The
worker does not look before the shutdown, so that serving costs nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import struct
import termios
import time
from collections.abc import Iterable
from typing import Any

from ..shared import listener
from ..shared.cells import Record
from ..shared.memory import Memory
from . import threads
from .connections import accepted_at, bare, unread
from .counting import Counter

LOOK_EVERY = 0.1
"""Seconds between two looks while the shutdown is under way."""

LOOK_EVERY_WHILE_SERVING = 0.25
"""The same after a shutdown was taken back, because another one may begin."""

SHARE = 0.05
"""The largest share of the time that close looks may take. A close look takes 20 microseconds for
each connection, and a worker may have a thousand idle ones."""

PEEKED = 1 << 16
"""Bytes of a connection that are searched for requests."""

# struct tcp_info, <linux/tcp.h>: see connections.py. The states are those of <net/tcp_states.h>.
_STATE, _LAST_DATA_SENT, _LAST_DATA_RECEIVED = 0, 44, 52
_BYTES_RECEIVED, _DATA_SEGMENTS_SENT, _SIZE = 128, 156, 160
_ESTABLISHED, _CLOSE_WAIT = 1, 8

_LENGTH = re.compile(rb"^content-length:[ \t]*(\d{1,18})[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)
_ENCODING = re.compile(rb"^transfer-encoding:", re.IGNORECASE | re.MULTILINE)


class Waiting:
    """Looks at the connections of this worker.

    :ivar looks_early: whether to look from T0 on. A sync worker serves what it accepts at once, so
        it need not look before the drain.
    :ivar addresses: the listeners' addresses, as
        :func:`~gunicorn_grace.worker.connections.bare` returns them.

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
        self._is_watching = self._is_final = self._speaks_http2 = False
        self._look_closely_at = 0.0
        self.looks_early: bool = True
        self.addresses: frozenset[Any] = frozenset()
        self._own_listeners: list[Any] = []

    def booted(self, worker: Any, *, owns_listeners: bool) -> None:
        """Note the worker's listeners. Called just before it serves.

        :param worker: gunicorn's worker.
        :param owns_listeners: whether only this worker has the listeners (``reuse_port``). The
            arbiter then cannot see what waits in their accept queues, so the worker looks there
            too.
        """
        self.addresses = frozenset(bare(sock.getsockname()) for sock in worker.sockets)
        self._speaks_http2 = "h2" in getattr(worker.cfg, "http_protocols", ())
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
            threads.start(self._watch)

    def _watch(self) -> None:
        try:
            # gevent gives a forked child of the application a copy of this greenlet, and the record
            # belongs to the worker.
            while os.getpid() == self._pid and not self._is_final:
                if self._memory.is_terminating():
                    began = time.monotonic()
                    # A connection may end while it is looked at; the next look is soon.
                    with contextlib.suppress(OSError):
                        self.look(closely=began >= self._look_closely_at)
                    if began >= self._look_closely_at:
                        took = time.monotonic() - began
                        self._look_closely_at = began + took / SHARE
                    time.sleep(LOOK_EVERY)
                else:
                    self._forget()
                    time.sleep(LOOK_EVERY_WHILE_SERVING)
        except Exception:
            self._forget()
            self._log.exception(
                "gunicorn-grace: cannot count the requests that wait in this worker"
            )

    def _forget(self) -> None:
        record = self._record
        record.waiting = record.half_read = record.pipelined = record.queued = 0

    def look_last(self) -> None:
        """Store what would be lost now, and stop looking.

        This is called when the worker is told to end at once, because the connections that it
        closes from then on must not change the numbers. It is also called when the worker ends,
        because the last look may be older than the last answer.
        """
        is_ours = os.getpid() == self._pid and not (self._is_final or self._record.uncounted)
        if is_ours and self._memory.is_terminating():
            with contextlib.suppress(Exception):
                self.look(closely=True)
            self._is_final = True

    def look(self, *, closely: bool) -> None:
        """Store the numbers of requests that wait now.

        With HTTP/2, tornado, pywsgi and ASGI a request does not refer to its connection. So the
        number of such requests is subtracted from the number of connections.

        :param closely: whether to count half-read and pipelined requests too, which takes longer.
        :raises OSError: a connection ended during the look.
        """
        begun, requests = self._record.requests, list(self._counter.in_flight)
        busy, elsewhere = connections_of(requests)
        not_begun = half_read = pipelined = 0
        for conn, key in accepted_at(self.addresses, only=None if closely else _has_unread):
            if key[1] in busy:
                pipelined += requests_behind(busy[key[1]], conn) if closely else 0
            elif unread(conn):
                not_begun += _can_be_answered(conn)
            elif closely:
                half_read += _has_sent_a_part(conn)
        if self._is_final:
            return
        record = self._record
        record.requests_at_look = begun
        # The accept queue of a closed listener is gone, so the last number stays.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            record.queued = sum(map(listener.queue_length, self._own_listeners))
        if not closely:
            record.waiting = max(0, not_begun - elsewhere)
            return
        if self._speaks_http2:
            half_read = 0  # An HTTP/2 client also sends frames after it has got its response.
        record.waiting = max(0, not_begun - max(0, elsewhere - half_read))
        record.half_read = max(0, half_read - elsewhere)
        record.pipelined = pipelined


def connections_of(requests: Iterable[Any]) -> tuple[dict[int, Any], int]:
    """Return the requests by the inode of their connection, and the number of requests that do not
    refer to a connection."""
    inodes, elsewhere = {}, 0
    for request in requests:
        try:
            inodes[os.fstat(request.unreader.sock.fileno()).st_ino] = request
        except (AttributeError, OSError, ValueError):
            elsewhere += 1
    return inodes, elsewhere


def requests_behind(request: Any, conn: Any) -> int:
    """Return how many requests wait behind one in flight. gunicorn has read them ahead, or they are
    unread in the connection. Unread bytes under TLS count as one request.

    :param request: gunicorn's request, of HTTP/1.
    :param conn: its connection.
    """
    if not hasattr(request.unreader, "buf"):
        return 0
    ahead = request.unreader.buf.getvalue()
    reader = getattr(getattr(request, "body", None), "reader", None)
    # What is left of the request's own body (gunicorn 22.0 to 27.0): a LengthReader knows it, a
    # ChunkedReader drops its parser at the end.
    body_left = getattr(reader, "length", None if getattr(reader, "parser", True) else 0)
    if body_left is None:
        return 0
    if hasattr(request.unreader.sock, "pending"):  # TLS
        return requests_in(ahead[body_left:]) or int(not body_left and unread(conn) > 0)
    try:
        ahead += conn.recv(PEEKED, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except OSError:
        pass  # Nothing is unread, or the client has reset the connection.
    return requests_in(ahead[body_left:])


def requests_in(data: bytes) -> int:
    """Return how many requests of HTTP/1 begin in these bytes, up to a body of unknown length."""
    count = 0
    while data := data.lstrip(b"\r\n"):
        count += 1
        head, end, data = data.partition(b"\r\n\r\n")
        if not end or _ENCODING.search(head):
            break
        length = _LENGTH.search(head)
        data = data[int(length[1]) if length else 0 :]
    return count


def _has_unread(fd: int) -> bool:
    """Whether bytes wait to be read from a descriptor. The worker may have closed the descriptor
    and reused its number by now, but this call does not change what it belongs to."""
    try:
        return fcntl.ioctl(fd, termios.FIONREAD, b"\0\0\0\0") != b"\0\0\0\0"
    except OSError:  # A listener, or a descriptor that has just been closed.
        return False


def _can_be_answered(conn: Any) -> bool:
    """Whether this side can still write. If it cannot, it is closing the connection, and the unread
    bytes are the rest of a request that has been answered."""
    if conn.family == socket.AF_UNIX:
        return True
    state = conn.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _STATE + 1)[_STATE]
    return state in (_ESTABLISHED, _CLOSE_WAIT)


def _has_sent_a_part(conn: Any) -> bool:
    """Whether the peer has sent data since this side last did, and the connection is established in
    both directions. False if this is unknown (a UNIX socket, an old kernel)."""
    if conn.family == socket.AF_UNIX:
        return False
    info = conn.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SIZE)
    if len(info) < _SIZE or info[_STATE] != _ESTABLISHED:
        return False
    (came,) = struct.unpack_from("Q", info, _BYTES_RECEIVED)
    sent, received, segments = (
        struct.unpack_from("I", info, at)[0]
        for at in (_LAST_DATA_SENT, _LAST_DATA_RECEIVED, _DATA_SEGMENTS_SENT)
    )
    return bool(came and (not segments or received < sent))
