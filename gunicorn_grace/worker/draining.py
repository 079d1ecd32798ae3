"""How a worker drains: idle connections are closed, its own listeners sealed and watched.

A thread does it beside whatever the worker is doing. Worker.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import socket
import time
from typing import Any

from ..shared import listener
from ..shared.agreed import LINGER
from ..shared.memory import NS, Memory, Record
from .connections import accepted_at, bare, is_sending, never_sent, unread
from .counting import Counter
from .unfinished import Unfinished

TICK = 0.05
IDLE_TICKS = 6
"""How many ticks in a row a connection must be idle before it is closed; two where it never sent a
byte."""


class Draining:
    """The connections and listeners of this worker.

    :ivar sees_all: whether the counter knows every request in flight. Where it does not, a
        connection on which nothing happens may be one whose request is being served: it is left
        alone.
    :ivar owns_listeners: whether this worker bound its listeners itself (``reuse_port``, gunicorn
        24.1 and later).

    :param memory: the shared memory.
    :param record: the worker's record.
    :param counter: the worker's counter.
    :param unfinished: logs what is in flight.
    :param log: gunicorn's logger.
    """

    def __init__(
        self, memory: Memory, record: Record, counter: Counter, unfinished: Unfinished, log: Any
    ) -> None:
        self._memory = memory
        self._record = record
        self._counter = counter
        self._unfinished = unfinished
        self._log = log
        self.sees_all = True
        self.owns_listeners = False
        self._is_watching = False
        self._speaks_http2 = False
        self._listeners: list[Any] = []
        self._own_listeners: list[Any] = []
        self._late_ones_wait = False
        """Whether a listener is sealed by hop limit, which connections accepted from it inherit."""
        self.addresses: frozenset[Any] = frozenset()

    def booted(self, worker: Any) -> None:
        """The worker has its sockets, and is about to serve."""
        self.addresses = frozenset(bare(sock.getsockname()) for sock in worker.sockets)
        self._listeners = list(worker.sockets)
        if self.owns_listeners:
            self._own_listeners = list(worker.sockets)
        self._speaks_http2 = "h2" in getattr(worker.cfg, "http_protocols", ())
        self.watch()

    def watch(self) -> None:
        """Begin, if the drain has begun: close idle connections and log what is late.

        Called from a signal handler: ``start_new_thread`` takes no lock of Python's, which
        ``Thread.start`` does (its interrupted twin would wait for itself). In a gevent worker the
        patched name starts a greenlet.
        """
        if not self._is_watching and self._memory.header.drain:
            self._is_watching = True
            _thread.start_new_thread(self._drain, ())

    def _drain(self) -> None:
        idle_since: dict[tuple[int, int], int] = {}
        header = self._memory.header
        try:
            self._seal_own()
            while True:
                now = time.monotonic_ns()
                self._watch_own(now)
                if now < header.drain + LINGER * NS:
                    self._admit_late_ones()
                else:
                    idle_since = self._close_idle(idle_since)
                self._unfinished.tell_before("the end of the drain", header.drain_limit, now)
                time.sleep(TICK)
        except Exception:
            # The connections then hold the exit up to the drain limit, as in plain gunicorn.
            self._log.exception("gunicorn-grace: closing idle connections failed")

    def _seal_own(self) -> None:
        for sock in filter(listener.can_seal, filter(_is_open, self._own_listeners)):
            try:
                listener.seal(sock)
            except OSError as error:
                self._log.warning(
                    "gunicorn-grace: cannot seal %s (%s): it closes with its queue, as in plain gunicorn",
                    sock,
                    error,
                )

    def _admit_late_ones(self) -> None:
        """Let the data in of connections whose handshake was under way when their listener was
        sealed."""
        tcp = filter(listener.can_seal, filter(_is_open, self._listeners))
        with contextlib.suppress(OSError, ValueError, AttributeError):  # One is just being closed.
            self._late_ones_wait |= any(map(listener.is_sealed_by_hop_limit, tcp))
        if self._late_ones_wait:
            for conn, _ in accepted_at(self.addresses):
                with contextlib.suppress(OSError):
                    listener.admit(conn)

    def _watch_own(self, now: int) -> None:
        """Tell the arbiter how long this worker's own accept queues are empty: the arbiter has no
        descriptor of them."""
        if not self._own_listeners:
            return
        with contextlib.suppress(OSError, ValueError, AttributeError):  # One is just being closed.
            if listener.are_waiting(filter(_is_open, self._own_listeners)):
                self._record.empty_since = 0
            elif not self._record.empty_since:
                self._record.empty_since = now

    def _close_idle(self, idle: dict[tuple[int, int], int]) -> dict[tuple[int, int], int]:
        """Let every connection on which nothing happens read an end of file.

        Only the reading side is shut: a request that was just read is still answered, and bytes
        that the client had sent before stay readable (tcp(7) and Linux' tcp_recvmsg look at the
        queue first).

        :param idle: for how many ticks each connection was idle before.
        :returns: the same now.
        """
        busy, all_known = self.busy_inodes()
        seen: dict[tuple[int, int], int] = {}
        for conn, key in accepted_at(self.addresses):
            if key[1] in busy or unread(conn):
                continue
            silent = never_sent(conn)
            # A client of HTTP/2 sends WINDOW_UPDATE and the like after it has got its response.
            if not silent and (not all_known or (is_sending(conn) and not self._speaks_http2)):
                continue
            seen[key] = idle.get(key, 0) + 1
            if seen[key] >= (2 if silent else IDLE_TICKS):
                with contextlib.suppress(OSError):
                    conn.shutdown(socket.SHUT_RD)
        return seen

    def busy_inodes(self) -> tuple[set[int], bool]:
        """The inodes of the connections that are being served, and whether these are all."""
        inodes, all_known = set(), self.sees_all
        for request in list(self._counter.in_flight):
            try:
                inodes.add(os.fstat(request.unreader.sock.fileno()).st_ino)
            except (AttributeError, OSError, ValueError):
                # HTTP/2, tornado, pywsgi, ASGI: requests that do not name their connection.
                all_known = False
        return inodes, all_known

    def hang_up_all_but_the_busy(self) -> None:
        """Close the connections on which no request is served."""
        busy, _ = self.busy_inodes()
        for conn, key in accepted_at(self.addresses):
            if key[1] not in busy:
                with contextlib.suppress(OSError):
                    conn.shutdown(socket.SHUT_RDWR)


def _is_open(sock: Any) -> bool:
    """Whether a listener is open. A worker that leaves closes its own, and gunicorn's wrapper then
    has no socket."""
    return getattr(sock, "sock", sock) is not None and sock.fileno() >= 0
