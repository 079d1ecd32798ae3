"""Closes connections without losing the last response and without delaying other requests. Runs in
workers.

If a socket is closed while bytes of the client are unread, or if such bytes come later, the kernel
sends a reset, and the client loses the response that it was just sent (RFC 9112, section 9.6). This
happens to a client that is still sending a body which the application does not read: it answers
with 401 or 413, or the validation fails. While a connection is kept alive, gunicorn reads the rest
of the body before the next request. After a response that says ``Connection: close`` it closes
instead. So such requests would be served before T0 and lost after it. (Measured: 10 of 10 POST
requests of 300 kB, gevent 23 to 27, gthread 23 and 25. gthread 27 gives up after 64 kB.)

So only the writing side is shut at first. The client then knows that the response is complete. The
bytes that it still sends are read and discarded, until it closes too or nothing more is expected.

gunicorn 26.0 to 27.0 do something similar, but they wait in place, up to 2 s for each client: sync
in its only thread, gthread in the thread that runs its loop. (Measured on gthread 27: ten clients
that keep their end open delayed other requests by up to 15.6 s.) Here no serving thread waits for
long. The worker hands the connection over to a thread of this module, or in a gevent worker to a
greenlet.
"""

from __future__ import annotations

import _socket
import _thread
import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from .connections import unread

SILENCE = 5.0
"""Seconds without a byte after which the rest of a body is no longer expected (nginx:
``lingering_timeout``)."""

LONGEST = 30.0
"""Seconds after which a connection is closed in any case (nginx: ``lingering_time``)."""

MOST_BYTES = 256 * 1024 * 1024
"""Bytes after which a connection is closed in any case."""

PATIENCE = 2.0
"""Seconds that a connection is kept if nothing more is expected from the client (gunicorn 26.0 to
27.0 have the same limit)."""

AT_ONCE = 0.005
"""Seconds that the worker itself waits for a client to close if it expects nothing else from the
client. Most clients close within a fraction of this time, and handing the connection over would
cost more."""

EXIT_SILENCE = 1.0
"""Seconds without a byte after which a worker that leaves no longer waits for the rest of a body
whose length is unknown."""

MOST_CONNECTIONS = 200
"""How many connections of one worker linger at the same time. If there are more, one is closed,
because descriptors are limited: the oldest from which no body is expected, or else the oldest."""

_TICK, _SLOW_TICK = 0.01, 0.05
"""Seconds between two looks: while the rest of a body is expected from a client, and otherwise."""

_IDLE_TICKS = 20
_READ = 64 * 1024
_READS_PER_TICK = 16
_STEP = 8192
_STEPS = 32
"""How many steps of ``_STEP`` bytes of a body are read before the connection is handed over."""


class Lingering:
    """The connections that this worker has closed for writing but still reads from.

    Threads of the worker hand connections over. One thread looks at them, and it exists only while
    there are some. A child that the application forks has no such thread, so it closes its
    connections at once.

    :param log: gunicorn's logger.
    """

    def __init__(self, log: Any) -> None:
        self._log = log
        self._pid = os.getpid()
        # Under gevent a native lock is safe too, because no greenlet switches while it is held.
        self._lock = threading.Lock()
        self._lingering: list[_Connection] = []
        self._is_running = False

    def close(self, sock: Any, parser: Any, *, waits: bool) -> None:
        """Close a connection after its last response. Waits for :data:`AT_ONCE` at the most.

        :param sock: the connection. This socket is closed afterwards.
        :param parser: gunicorn's parser of its requests; ``None`` if it is unknown.
        :param waits: whether to wait for the client to close even if nothing else is expected.
        """
        try:
            if os.getpid() == self._pid and sock.fileno() >= 0:
                rest = rest_of(sock, parser)
                if rest != 0 or (not _ends_at_once(sock) if waits else unread(sock)):
                    self._hand_over(sock, rest)
        except Exception:
            # The connection is then closed as gunicorn 22.0 to 25.3 close it.
            self._log.debug("gunicorn-grace: a connection does not linger", exc_info=True)
        finally:
            try:  # Every connection comes here, and contextlib.suppress takes three times as long.
                sock.close()
            except OSError:
                pass

    def _hand_over(self, sock: Any, rest: int | None) -> None:
        taken = _socket.socket(fileno=os.dup(sock.fileno()))
        try:
            taken.setblocking(False)
            taken.shutdown(socket.SHUT_WR)
            connection = _Connection(taken, rest)
            if connection.is_over(time.monotonic()):
                taken.close()
                return
            with self._lock:
                if not self._is_running:
                    _thread.start_new_thread(self._run, ())
                    self._is_running = True
                self._lingering.append(connection)
                surplus = None
                if len(self._lingering) > MOST_CONNECTIONS:
                    surplus = min(self._lingering, key=_Connection.is_expecting)
                    self._lingering.remove(surplus)
        except Exception:  # The client is gone, or no thread can be started.
            taken.close()
            raise
        if surplus is not None:
            surplus.close()

    def _run(self) -> None:
        idle_ticks = 0
        try:
            # gevent gives a forked child of the application a copy of this greenlet.
            while os.getpid() == self._pid:
                with self._lock:
                    connections = list(self._lingering)
                    idle_ticks = 0 if connections else idle_ticks + 1
                    if idle_ticks > _IDLE_TICKS:
                        self._is_running = False
                        return
                now = time.monotonic()
                for connection in connections:
                    if connection.is_over(now):
                        self._drop(connection)
                time.sleep(_TICK if any(map(_Connection.is_expecting, connections)) else _SLOW_TICK)
        except BaseException:
            self._is_running = False
            raise

    def _drop(self, connection: _Connection) -> None:
        with self._lock, contextlib.suppress(ValueError):
            self._lingering.remove(connection)
        connection.close()

    def inodes(self) -> set[int]:
        """Return the inodes of the lingering connections."""
        with self._lock:
            return {connection.inode for connection in self._lingering}

    def expected(self) -> int:
        """Return the number of clients from which the rest of a body is still expected. The worker
        should not leave before."""
        now = time.monotonic()
        with self._lock:
            return sum(connection.is_worth_waiting(now) for connection in self._lingering)


class _Connection:
    """A connection whose writing side is shut.

    :param sock: the connection, which does not block.
    :param rest: how many bytes of a body are still to come; ``None`` if this is unknown.
    """

    def __init__(self, sock: _socket.socket, rest: int | None) -> None:
        self.inode = os.fstat(sock.fileno()).st_ino
        self._sock = sock
        self._rest = rest
        self._read = 0
        self._since = self._last = time.monotonic()

    def is_expecting(self) -> bool:
        """Whether the rest of a body is expected from the client."""
        return self._rest is None or self._read < self._rest

    def is_worth_waiting(self, now: float) -> bool:
        """Whether a leaving worker is to wait for the rest of the body."""
        silence = EXIT_SILENCE if self._rest is None else SILENCE
        return self.is_expecting() and now - self._last < silence

    def is_over(self, now: float) -> bool:
        """Read what has come, and return whether the connection can be closed."""
        try:
            for _ in range(_READS_PER_TICK):
                count = len(self._sock.recv(_READ))
                if not count:
                    return True
                self._read += count
                self._last = now
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            return True
        if now - self._since > LONGEST or self._read > MOST_BYTES:
            return True
        return now - self._last > (SILENCE if self.is_expecting() else PATIENCE)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.close()


def rest_of(sock: Any, parser: Any) -> int | None:
    """Return how many bytes of the last request have not arrived in this process; ``None`` if this
    is unknown. It may read a part of the body that has already arrived.

    For gunicorn 22.0 to 27.0, whose parsers and readers have these names.

    :param sock: the connection.
    :param parser: the parser of its requests. Without one, or with one for HTTP/2, the result is 0.
    """
    if not hasattr(parser, "mesg"):
        return 0
    request = parser.mesg
    if request is None or request.req_number != parser.req_count:
        return None  # The last request could not be parsed, so its end is unknown.
    body = request.body
    reader: Any = getattr(body, "reader", None)
    kind = type(reader).__name__
    if kind == "LengthReader":
        if reader.length and not is_encrypted(sock):
            return int(max(0, reader.length - len(request.unreader.buf.getvalue())))
        is_unread = reader.length > 0
    else:
        is_unread = kind == "ChunkedReader" and reader.parser is not None
    return None if is_unread and not _finish(sock, body.read) else 0


def _ends_at_once(sock: Any) -> bool:
    """Shut the writing side, and return whether the client closes within :data:`AT_ONCE`, without
    another byte."""
    if is_encrypted(sock):
        return False
    try:
        sock.shutdown(socket.SHUT_WR)
        sock.settimeout(AT_ONCE)
        return not sock.recv(1)
    except TimeoutError:
        return False
    except OSError:  # The client is gone.
        return True


def is_encrypted(sock: Any) -> bool:
    """Whether a socket, of the standard library or of gevent, speaks TLS."""
    return hasattr(sock, "pending")


def _finish(sock: Any, read: Callable[[int], bytes]) -> bool:
    """Read the part of a body that has already arrived, and return whether the body ended there."""
    sock.settimeout(0.0)
    try:
        return any(not read(_STEP) for _ in range(_STEPS))
    except Exception:
        # It would block, or the body is malformed.
        return False
