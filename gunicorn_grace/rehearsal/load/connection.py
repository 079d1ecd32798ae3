"""One connection of a client of the load, and the outcome of each exchange on it."""

from __future__ import annotations

import asyncio
import errno
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import h11

from ..errors import RehearsalError
from .requests import PIECES, PlannedRequest
from .tally import ConnectionKind, RequestOutcome, RequestRecord
from .wire import Address, family_of

#: Headers that the plugin sends with its answers to probes. They are repeated here because the load
#: does not import the plugin.
_OUR_HEADERS = {(b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff")}


#: Errors of connecting that mean that the client's machine lacks a resource.
_OURS = {errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM}
#: On Linux, a RST in answer to a SYN gives ECONNREFUSED (tcp_reset()). These two errors mean that
#: the handshake was complete and that the reset came before the client looked.
_AFTER_CONNECTING = {errno.ECONNRESET, errno.EPIPE}

_Protocol = TypeVar("_Protocol", bound=asyncio.Protocol)


class Ending(NamedTuple):
    """The end of an exchange.

    :ivar outcome: its outcome.
    :ivar status: the status of the response; None if it is not known.
    :ivar error: the error; empty if there was none.
    :ivar close_code: the code of the server's close frame on a WebSocket; None without one.
    """

    outcome: RequestOutcome
    status: int | None
    error: str
    close_code: int | None = None


def classify(status: int, ours: bool) -> RequestOutcome:
    """Return the outcome of a complete response.

    :param status: its status code.
    :param ours: whether it has the headers of the plugin's answers to probes.
    """
    if 200 <= status < 300:
        return RequestOutcome.OK
    if status == 503 and ours:
        return RequestOutcome.NOT_READY
    return RequestOutcome.SERVER_ERROR if status >= 500 else RequestOutcome.STATUS


class ClientConnection(asyncio.Protocol):
    """One connection of a client, for one exchange at a time. Runs in the load's event loop. h11
    decides when a response is complete and whether the connection can be used again.

    :param address: the address of the instance.
    :param registry: holds the connection while it is open.
    """

    def __init__(self, address: Address, registry: set[ClientConnection]) -> None:
        self.address = address
        self.http: h11.Connection = h11.Connection(h11.CLIENT)
        self._registry = registry
        self._transport: asyncio.Transport | None = None
        self._poll = select.poll()
        self._answer: asyncio.Future[Ending] | None = None
        # The status of the first response, as soon as it begins.
        self.begun: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._received = False
        self._status: int | None = None
        self._ours = False
        self._to_rest = 0.0  # seconds for which the client still reads slowly
        self._pause = 0.0  # seconds to wait before each piece
        self.rested: float = 0.0  # time.monotonic() from which it has been idle

    @property
    def idle(self) -> bool:
        """Whether it can carry another request."""
        return (
            self._answer is None
            and self._transport is not None
            and not self._transport.is_closing()
            and self.http.our_state is h11.IDLE
        )

    def fresh_as_seen(self) -> bool:
        """Whether the connection is idle and nothing has come since the loop last looked. urllib3
        makes the same check before it reuses a connection."""
        return self.idle and not self._poll.poll(0)

    async def exchange(self, request: PlannedRequest, *, close: bool, host: str | None) -> Ending:
        """Send a request, and wait until its exchange has ended.

        :param request: the request.
        :param close: whether to send ``Connection: close``.
        :param host: the ``Host`` header; None for the endpoint's address.
        """
        assert self._transport is not None
        answer: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self._answer = answer
        self._received, self._status, self._ours = False, None, False
        self._to_rest, self._pause = request.read, request.read / PIECES
        data = request.head(self.http, self.address, close=close, host=host)
        for number, piece in enumerate(request.pieces()):
            if request.upload:
                if number == 0:
                    self._transport.write(data)
                    data = b""
                await asyncio.wait({answer}, timeout=request.upload / PIECES)
            if answer.done():  # the server did not wait for the rest of it
                return answer.result()
            sent = self.http.send(h11.Data(data=piece)) or b""
            if request.upload:
                self._transport.write(sent)
            else:
                data += sent
        self._transport.write(data + (self.http.send(h11.EndOfMessage()) or b""))
        if self._transport.is_closing():  # lost between connecting and writing
            self._lost("closed by the peer")
        return await answer

    def abort(self) -> None:
        """Close the connection at once, even during an exchange."""
        self._answer = None
        if self._transport is not None:
            self._transport.abort()

    # -- called by the event loop ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
        self._registry.add(self)

    def data_received(self, data: bytes) -> None:
        if self._answer is None:  # nothing was asked
            self._close()
            return
        self._received = True
        self.http.receive_data(data)
        self._advance()
        if self._to_rest > 0 and self._answer is not None and self._transport is not None:
            pause = self._pause
            self._to_rest -= pause
            self._transport.pause_reading()
            asyncio.get_running_loop().call_later(pause, self._resume)

    def _resume(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def eof_received(self) -> bool:
        if self._answer is not None:
            self.http.receive_data(b"")
            self._advance()
        self._lost("closed by the peer")
        return False  # close at once: gunicorn 26+ waits for that, up to 2 s, before it exits

    def connection_lost(self, exc: Exception | None) -> None:
        self._registry.discard(self)
        self._lost(str(exc or "closed by the peer"))

    def _advance(self) -> None:
        try:
            while self._answer is not None:
                event = self.http.next_event()
                if event is h11.NEED_DATA:
                    return
                if isinstance(event, h11.Response):
                    self._status = event.status_code
                    if not self.begun.done():
                        self.begun.set_result(event.status_code)
                    self._ours = _OUR_HEADERS.issubset(
                        (name, value.lower()) for name, value in event.headers
                    )
                elif isinstance(event, h11.EndOfMessage):
                    self._complete()
                elif isinstance(event, h11.ConnectionClosed):
                    self._lost("closed by the peer")
        except h11.RemoteProtocolError as error:
            self._lost(str(error))
            self._close()

    def _complete(self) -> None:
        assert self._status is not None
        if (
            self.http.our_state is h11.DONE
            and self.http.their_state is h11.DONE
            and not self.http.trailing_data[0]
        ):
            self.http.start_next_cycle()
        else:
            self._close()
        outcome = classify(self._status, self._ours)
        error = "" if outcome is RequestOutcome.OK else f"status {self._status}"
        self._resolve(Ending(outcome, self._status, error))

    def _lost(self, error: str) -> None:
        outcome = RequestOutcome.TRUNCATED if self._received else RequestOutcome.RESET
        self._resolve(Ending(outcome, self._status, error))

    def _resolve(self, answer: Ending) -> None:
        future, self._answer = self._answer, None
        if future is not None and not future.done():
            future.set_result(answer)

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()


async def connect(address: Address, registry: set[ClientConnection]) -> ClientConnection:
    return await open_connection(address, lambda: ClientConnection(address, registry))


async def open_connection(address: Address, make: Callable[[], _Protocol]) -> _Protocol:
    """Connect to ``address``; ``make`` makes the protocol of the connection.

    :raises OSError: connecting failed; see ``connect_failed``.
    """
    loop = asyncio.get_running_loop()
    sock = socket.socket(family_of(address), socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if isinstance(address, str):
            # unix(7): this completes at once, or fails with EAGAIN if the backlog is full. asyncio
            # would take EAGAIN for "under way".
            sock.connect(address)
        else:
            await loop.sock_connect(sock, address)
        _, connection = await loop.create_connection(make, sock=sock)
    except BaseException:
        sock.close()
        raise
    return connection


def connect_failed(problem: OSError, remedy: str) -> Ending:
    """Return the end of a request that got no connection.

    :param problem: the error that connecting raised.
    :param remedy: the remedy for the user if this machine can open no more connections.

    :raises RehearsalError: this machine can open no more connections, so the server lost nothing.
    """
    if problem.errno in _OURS:
        raise RehearsalError(
            f"no more connections can be opened ({problem}): {remedy} or raise `ulimit -n`"
        ) from problem
    outcome = RequestOutcome.RESET if problem.errno in _AFTER_CONNECTING else RequestOutcome.REFUSED
    error = os.strerror(problem.errno) if problem.errno else str(problem)
    return Ending(outcome, None, error)


def record_of(
    request: PlannedRequest,
    kind: ConnectionKind,
    started: float,
    endpoint: str,
    ending: Ending,
    reused: bool = False,
) -> RequestRecord:
    """Return the record of a request that has just ended."""
    return RequestRecord(
        started,
        kind,
        request.path,
        ending.outcome,
        ending.status,
        time.monotonic() - started,
        endpoint,
        ending.error,
        request.slow,
        reused,
        request.method,
        ending.close_code,
    )


def take_idle(pool: deque[ClientConnection], rested: float | None) -> ClientConnection | None:
    """Take a connection from a pool, and drop those that cannot be used any more.

    Without ``rested``, it is the connection that was put back last. Otherwise it is the one that
    has rested longest.

    :param pool: the pool, in the order in which the connections were put back.
    :param rested: the latest ``time.monotonic()`` at which the connection may have been put back.
    :returns: the connection; None if there is none.
    """
    while pool and (rested is None or pool[0].rested <= rested):
        connection = pool.pop() if rested is None else pool.popleft()
        if connection.fresh_as_seen():
            return connection
        connection.abort()
    return None
