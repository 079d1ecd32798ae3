"""The clients that hold a connection open: an event stream or a WebSocket.

A request ends when its response is complete. A stream and a WebSocket do not end by themselves, so
a shutdown has to end them in a way that their client understands: by completing the response, or by
a close frame. The client then connects again at once, as an ``EventSource`` and every WebSocket
library do, and must find an instance that serves. These clients count every loss in between.

Half of the clients stay until the server ends the connection. The others leave by themselves after
``HOLD`` seconds and come back, so that there are new connections in each phase of a shutdown.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from ..kubernetes.routing import EndpointTable, NoEndpoint
from .connection import Ending, connect, connect_failed, open_connection, record_of
from .requests import PlannedRequest
from .tally import ConnectionKind, RequestOutcome, RequestRecord
from .wire import Address, show_address

#: Seconds after which a client that does not stay leaves by itself.
HOLD = 2.0
#: The least number of seconds from one connection of a client to its next one. Real clients back
#: off, too.
SPACING = 1.0
#: Seconds between two pings on a WebSocket.
PING_EVERY = 1.0
#: Seconds within which a server has to answer a client's close frame.
GOODBYE = 2.0
#: The kinds in words, and the remedies for the user if a connection fails.
WORDS = {ConnectionKind.STREAM: "stream", ConnectionKind.WEBSOCKET: "WebSocket"}
REMEDIES = {
    ConnectionKind.STREAM: "succeeds with --stream-path",
    ConnectionKind.WEBSOCKET: "takes WebSockets with --websocket-path, and a worker class that "
    "speaks them with --worker-class",
}
#: Seconds for which a connection is tried out before the load begins.
TRIAL = 0.1


class HeldClients:
    """Clients that hold streams and WebSockets open. All methods run in the load's event loop.

    :param table: chooses the instance for each new connection.
    :param stream_path: request target of the streams; None for no streams.
    :param websocket_path: request target of the WebSockets; None for no WebSockets.
    :param held: the number of streams, and of WebSockets, that are open at the same time.
    :param clients: the number of nodes. Client n uses the routing of node n modulo ``clients``.
    :param timeout: seconds within which the response has to begin or the handshake has to be
        complete, including connecting; also the seconds from a ping to its answer.
    :param host: the ``Host`` header; None for the endpoint's address.
    :param seed: seed of the random choices.
    :param record: takes the record of each connection that has ended.

    :raises ValueError: a number is out of its range, or a path cannot be requested.
    """

    def __init__(
        self,
        table: EndpointTable,
        *,
        stream_path: str | None,
        websocket_path: str | None,
        held: int,
        clients: int,
        timeout: float,
        host: str | None,
        seed: int,
        record: Callable[[RequestRecord], None],
    ) -> None:
        if held < 1:
            raise ValueError(f"held {held} is not 1 or more: leave out the paths to hold none")
        self.kinds: dict[ConnectionKind, str] = {
            kind: path
            for kind, path in (
                (ConnectionKind.STREAM, stream_path),
                (ConnectionKind.WEBSOCKET, websocket_path),
            )
            if path is not None
        }
        for path in self.kinds.values():
            if not path.startswith("/"):
                raise ValueError(f"{path!r} is not a path: begin it with /")
            PlannedRequest(path).check(host)
        if websocket_path is not None:
            # This module needs an optional library, and importing it takes a tenth of a second.
            # Under load, that would delay requests.
            from . import websocket  # noqa: F401
        self._table = table
        self._held = held
        self._clients = clients
        self._timeout = timeout
        self._host = host
        self._routing = random.Random(seed)
        self._record = record
        self._leaving = asyncio.Event()

    def start(self) -> list[asyncio.Task[None]]:
        """Begin to connect, and return a task for each client. The tasks end after ``leave``."""
        return [
            asyncio.create_task(self._keep_open(kind, path, number))
            for kind, path in self.kinds.items()
            for number in range(self._held)
        ]

    def leave(self) -> None:
        """Let every client end its connection."""
        self._leaving.set()

    async def _keep_open(self, kind: ConnectionKind, path: str, number: int) -> None:
        """Be one client: connect again and again until all clients leave."""
        await self._rest(SPACING * number / self._held)  # not all of them at once
        while not self._leaving.is_set():
            started = time.monotonic()
            endpoint = ""
            try:
                address = self._table.pick(self._routing, number % self._clients)
                endpoint = show_address(address)
                ending = await self.hold(kind, path, address, None if number % 2 else HOLD)
            except NoEndpoint as problem:
                ending = Ending(RequestOutcome.REFUSED, None, str(problem))
            self._record(record_of(PlannedRequest(path), kind, started, endpoint, ending))
            await self._rest(started + SPACING - time.monotonic())

    async def _rest(self, seconds: float) -> None:
        if seconds > 0:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._leaving.wait(), seconds)

    async def hold(
        self, kind: ConnectionKind, path: str, address: Address, seconds: float | None
    ) -> Ending:
        """Open one connection, and hold it until the server ends it, the client leaves, or all
        clients leave.

        :param kind: a stream or a WebSocket.
        :param path: request target.
        :param address: the address of the instance.
        :param seconds: the time after which the client leaves; None for a client that stays.
        :raises RehearsalError: this machine can open no more connections.
        """
        run = self._stream if kind is ConnectionKind.STREAM else self._websocket
        try:
            return await run(path, address, seconds)
        except asyncio.TimeoutError:  # only connecting raises this and OSError
            return Ending(RequestOutcome.REFUSED, None, f"not connected within {self._timeout:g} s")
        except OSError as problem:
            return connect_failed(problem, f"hold fewer than {self._held}")

    async def _stream(self, path: str, address: Address, seconds: float | None) -> Ending:
        deadline = time.monotonic() + self._timeout
        connection = await asyncio.wait_for(connect(address, set()), self._timeout)
        exchange = asyncio.ensure_future(
            connection.exchange(PlannedRequest(path), close=True, host=self._host)
        )
        try:
            await self._until({exchange, connection.begun}, deadline - time.monotonic())
            if not exchange.done() and not connection.begun.done():
                if self._leaving.is_set():
                    return Ending(RequestOutcome.OK, None, "")
                return Ending(
                    RequestOutcome.TIMEOUT, None, f"no response within {self._timeout:g} s"
                )
            await self._until({exchange}, seconds)
            if exchange.done():
                return Ending(*exchange.result())
            return Ending(RequestOutcome.OK, connection.begun.result(), "")
        finally:
            exchange.cancel()
            connection.abort()

    async def _websocket(self, path: str, address: Address, seconds: float | None) -> Ending:
        from .websocket import WebSocketConnection

        deadline = time.monotonic() + self._timeout
        connection = await asyncio.wait_for(
            open_connection(address, lambda: WebSocketConnection(address, path, self._host)),
            self._timeout,
        )
        try:
            await asyncio.wait({connection.opened}, timeout=deadline - time.monotonic())
            if not connection.opened.done():
                return Ending(
                    RequestOutcome.TIMEOUT,
                    None,
                    f"no answer to the handshake within {self._timeout:g} s",
                )
            until = float("inf") if seconds is None else time.monotonic() + seconds
            while not (
                connection.ended.done() or self._leaving.is_set() or time.monotonic() >= until
            ):
                connection.ping()
                await self._until({connection.ended}, min(PING_EVERY, until - time.monotonic()))
                if time.monotonic() - connection.heard > PING_EVERY + self._timeout:
                    return Ending(
                        RequestOutcome.TIMEOUT,
                        101,
                        f"no answer to a ping within {self._timeout:g} s",
                    )
            if connection.ended.done():
                # RFC 6455, section 7.1.1: the server closes the connection first.
                await asyncio.wait({connection.gone}, timeout=GOODBYE)
                return connection.ended.result()
            connection.leave()
            await asyncio.wait({connection.ended}, timeout=GOODBYE)
            return Ending(RequestOutcome.OK, 101, "")
        finally:
            connection.abort()

    async def _until(self, done: set[asyncio.Future[Any]], seconds: float | None) -> None:
        """Wait until one of these futures is done, the time is over, or the clients leave."""
        leaving = asyncio.ensure_future(self._leaving.wait())
        try:
            await asyncio.wait(
                {*done, leaving}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            leaving.cancel()


class Failure(NamedTuple):
    """A connection that could not be held open.

    :ivar what: its kind and path in words.
    :ivar status: the status of the response; None if there was none.
    :ivar error: the error.
    :ivar remedy: what another path has to do instead, and the option that names it.
    """

    what: str
    status: int | None
    error: str
    remedy: str


def try_out(address: Address, **options: Any) -> Failure | None:
    """Open one connection of each kind to an instance, and return the first failure, if there is
    one.

    :param address: the address where the instance listens.
    :param options: the other parameters of ``HeldClients``.
    """

    async def run() -> Failure | None:
        clients = HeldClients(EndpointTable(), record=lambda record: None, **options)
        for kind, path in clients.kinds.items():
            ending = await clients.hold(kind, path, address, TRIAL)
            if ending.outcome is not RequestOutcome.OK:
                what = f"{WORDS[kind]} {path}"
                return Failure(what, ending.status, ending.error, REMEDIES[kind])
        return None

    return asyncio.run(run())
