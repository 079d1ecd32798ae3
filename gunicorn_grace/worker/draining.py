"""How a worker drains: it closes idle connections, and seals and watches its own listeners.

A separate thread does this while the worker serves. Runs in workers.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from typing import Any

from ..shared import listener
from ..shared.agreed import LINGER
from ..shared.cells import NS, Record
from ..shared.handshakes import Handshakes
from ..shared.memory import Memory
from . import threads
from .accepting import Accepting
from .connections import accepted_at, bare, is_sending, never_sent, unread, was_in_use
from .counting import Counter
from .lingering import Lingering
from .unfinished import END_OF_DRAIN, Unfinished

TICK = 0.05
IDLE_TICKS = 6
"""How many ticks in a row a connection must be idle before it is closed. Two are enough if it never
sent a byte."""


class Draining:
    """The connections and listeners of this worker.

    :ivar sees_all: whether the counter knows every request in flight. If it does not, an idle
        connection may have a request that is being served, so it is not closed.
    :ivar accepting: how the worker stops accepting.
    :ivar owns_listeners: whether this worker bound its listeners itself (``reuse_port``, gunicorn
        24.1 and later).
    :ivar lingering: the connections that are closed for writing but still read from.
    :ivar addresses: the listeners' addresses, as
        :func:`~gunicorn_grace.worker.connections.bare` returns them.

    :param memory: the shared memory.
    :param record: the worker's record.
    :param counter: the worker's counter.
    :param unfinished: logs what is in flight.
    :param lingering: closes the worker's connections.
    :param log: gunicorn's logger.
    """

    def __init__(
        self,
        memory: Memory,
        record: Record,
        counter: Counter,
        unfinished: Unfinished,
        lingering: Lingering,
        log: Any,
    ) -> None:
        self._memory = memory
        self._record = record
        self._counter = counter
        self._unfinished = unfinished
        self.lingering = lingering
        self._log = log
        self.sees_all = True
        self.owns_listeners = False
        self.accepting: Accepting = Accepting(memory, record)
        self._is_watching = False
        self._speaks_http2 = self._speaks_tls = False
        self._listeners: list[Any] = []
        self._own_listeners: list[Any] = []
        self._handshakes = Handshakes()
        self._late_ones_wait = False
        """Whether a listener is sealed by hop limit. Its accepted connections inherit that
        limit."""
        self.addresses: frozenset[Any] = frozenset()

    def booted(self, worker: Any) -> None:
        """Note the worker's sockets. Called just before it serves.

        :param worker: gunicorn's worker.
        """
        self.addresses = frozenset(bare(sock.getsockname()) for sock in worker.sockets)
        self._listeners = list(worker.sockets)
        if self.owns_listeners:
            self._own_listeners = list(worker.sockets)
        self.accepting.booted(worker, owns_listeners=self.owns_listeners)
        self._speaks_http2 = "h2" in getattr(worker.cfg, "http_protocols", ())
        self._speaks_tls = bool(worker.cfg.is_ssl)
        self.watch()

    def watch(self) -> None:
        """If draining has begun, start the thread that closes idle connections and logs unfinished
        requests. A signal handler calls this, so it takes no lock.

        :raises RuntimeError: the thread cannot be started.
        """
        if not self._is_watching and self._memory.header.drain:
            self._is_watching = True
            threads.start(self._drain)

    def _drain(self) -> None:
        idle_since: dict[tuple[int, int], int] = {}
        header = self._memory.header
        try:
            self._seal_own()
            while not self._memory.is_inherited:  # A greenlet goes on in a child (gevent).
                now = time.monotonic_ns()
                self._watch_own(now)
                self._admit_late_ones()
                if now >= header.drain + LINGER * NS:
                    idle_since = self._close_idle(idle_since)
                self._unfinished.tell_before(END_OF_DRAIN, header.drain_limit, now)
                time.sleep(TICK)
        except Exception:
            # Idle connections then delay the exit, at most up to the drain limit, as under plain
            # gunicorn.
            self._log.exception("gunicorn-grace: closing idle connections failed")

    def _seal_own(self) -> None:
        # A listener may just be closing.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            own = list(filter(_is_open, self._own_listeners))
            self._handshakes.look_whether_full(own, time.monotonic_ns())
        for sock in filter(listener.can_seal, filter(_is_open, self._own_listeners)):
            try:
                listener.seal(sock)
            except OSError as error:
                self._log.warning(
                    "gunicorn-grace: cannot seal %s (%s): closing it resets the connections in its "
                    "accept queue, as in plain gunicorn",
                    sock,
                    error,
                )

    def _admit_late_ones(self) -> None:
        """Let data through on connections whose handshake was under way when their listener was
        sealed."""
        tcp = filter(listener.can_seal, filter(_is_open, self._listeners))
        # A listener may just be closing.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            self._late_ones_wait |= any(map(listener.is_sealed_by_hop_limit, tcp))
        if self._late_ones_wait:
            for conn, _ in accepted_at(self.addresses):
                with contextlib.suppress(OSError):
                    listener.admit(conn)

    def _watch_own(self, now: int) -> None:
        """Store for the arbiter since when this worker's own accept queues have been empty. The
        arbiter has no descriptors of these listeners."""
        if not self._own_listeners:
            return
        # A listener may just be closing.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            own = list(filter(_is_open, self._own_listeners))
            if self._handshakes.are_under_way(own, now) or listener.are_waiting(own):
                self._record.empty_since = 0
            elif not self._record.empty_since:
                self._record.empty_since = now

    def _close_idle(self, idle: dict[tuple[int, int], int]) -> dict[tuple[int, int], int]:
        """Make the worker read an end of file on every connection that has been idle for
        :data:`IDLE_TICKS`.

        Only the reading side is shut. So a request that was just read is still answered, and bytes
        that the client sent before stay readable (tcp(7); Linux' tcp_recvmsg looks at the queue
        first).

        :param idle: how many ticks each connection had been idle at the last call.
        :returns: the same numbers now.
        """
        busy, all_known = self.busy_inodes()
        seen: dict[tuple[int, int], int] = {}
        for conn, key in accepted_at(self.addresses):
            if key[1] in busy or unread(conn):
                continue
            silent = never_sent(conn)
            if (silent or self._speaks_tls) and was_in_use(conn, LINGER):
                # The connection is new, or may be in the middle of a TLS handshake, in which the
                # server may have sent last.
                continue
            # An HTTP/2 client sends frames such as WINDOW_UPDATE after it has got its response.
            if not silent and (not all_known or (is_sending(conn) and not self._speaks_http2)):
                continue
            seen[key] = idle.get(key, 0) + 1
            if seen[key] >= (2 if silent else IDLE_TICKS):
                with contextlib.suppress(OSError):
                    conn.shutdown(socket.SHUT_RD)
        return seen

    def busy_inodes(self) -> tuple[set[int], bool]:
        """Return the inodes of the connections that have a request in flight or linger for the rest
        of a body, and whether these are all of them."""
        inodes, all_known = self.lingering.inodes(), self.sees_all
        for request in list(self._counter.in_flight):
            try:
                inodes.add(os.fstat(request.unreader.sock.fileno()).st_ino)
            except (AttributeError, OSError, ValueError):
                # HTTP/2, tornado, pywsgi and ASGI: these requests do not refer to their
                # connection.
                all_known = False
        return inodes, all_known

    def hang_up_all_but_the_busy(self) -> None:
        """Close the connections without a request in flight."""
        busy, _ = self.busy_inodes()
        for conn, key in accepted_at(self.addresses):
            if key[1] not in busy:
                with contextlib.suppress(OSError):
                    conn.shutdown(socket.SHUT_RDWR)


def _is_open(sock: Any) -> bool:
    """Whether a listener is open. A leaving worker closes its own, and gunicorn's wrapper then has
    no socket."""
    return getattr(sock, "sock", sock) is not None and sock.fileno() >= 0
