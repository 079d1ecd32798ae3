"""One WebSocket of a client of the load, from the handshake to the close frame.

The library ``websockets`` speaks the protocol. It does no I/O here, because the load has its own
event loop, its own time limits and its own outcomes.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidHandshake
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import OPEN
from websockets.uri import parse_uri

from .connection import Ending, classify
from .tally import RequestOutcome
from .wire import Address, show_address

#: Close codes that report an error (RFC 6455, section 7.4.1, and IANA's registry). A server that
#: shuts down sends 1000, 1001, 1012 or a code of the application's own.
ERRORS = frozenset({1002, 1003, 1007, 1009, 1010, 1011, 1014})


class WebSocketConnection(asyncio.Protocol):
    """A WebSocket. It sends pings, which every server answers without the application. Runs in the
    load's event loop.

    :param address: the address of the instance.
    :param path: request target.
    :param host: the ``Host`` header; None for the address.

    :ivar opened: done when the handshake is complete or has failed.
    :ivar ended: done when the server has sent its close frame or has closed the connection, or when
        the handshake has failed.
    :ivar gone: done when the connection is closed.
    :ivar heard: ``time.monotonic()`` when data last came.
    """

    def __init__(self, address: Address, path: str, host: str | None) -> None:
        loop = asyncio.get_running_loop()
        self.address = address
        self.opened: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[Ending] = loop.create_future()
        self.gone: asyncio.Future[None] = loop.create_future()
        self.heard: float = time.monotonic()
        host = host or ("localhost" if isinstance(address, str) else show_address(address))
        self._protocol = ClientProtocol(parse_uri(f"ws://{host}{path}"), max_size=None)
        self._transport: asyncio.Transport | None = None
        self._status: int | None = None
        self._received = self._is_over = False

    def ping(self) -> None:
        """Send a ping, if the WebSocket is open."""
        if self._protocol.state is OPEN:
            self._protocol.send_ping(b"")
            self._flush()

    def leave(self) -> None:
        """Send a close frame, if the WebSocket is open. The server's own close frame then ends
        it."""
        if self._protocol.state is OPEN:
            self._protocol.send_close(1000)
            self._flush()

    def abort(self) -> None:
        """Close the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    # -- called by the event loop ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._protocol.send_request(self._protocol.connect())
        self._flush()

    def data_received(self, data: bytes) -> None:
        self._received, self.heard = True, time.monotonic()
        self._protocol.receive_data(data)
        self._advance()

    def eof_received(self) -> bool:
        self._finish()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._finish(str(exc or ""))
        self.gone.set_result(None)

    def _finish(self, error: str = "") -> None:
        """Note that the server has closed the connection."""
        if not self._is_over:
            self._is_over = True
            self._protocol.receive_eof()
            self._advance()
        self._end(self._ending(error))

    def _advance(self) -> None:
        event: Any
        for event in self._protocol.events_received():
            if isinstance(event, Response):
                self._status = event.status_code
            elif isinstance(event, Frame) and event.opcode is Opcode.CLOSE:
                self._end(self._ending())
        if not self.opened.done() and (
            self._protocol.state is OPEN or self._protocol.handshake_exc is not None
        ):
            self.opened.set_result(None)
            if self._protocol.state is not OPEN:
                self._end(self._ending())
        if not self._is_over:
            self._flush()

    def _end(self, ending: Ending) -> None:
        if not self.opened.done():
            self.opened.set_result(None)
        if not self.ended.done():
            self.ended.set_result(ending)

    def _ending(self, error: str = "") -> Ending:
        """Return the end of the WebSocket, judged by the data that the server has sent."""
        status, problem = self._status, self._protocol.handshake_exc
        if (close := self._protocol.close_rcvd) is not None:
            if close.code not in ERRORS:
                return Ending(RequestOutcome.OK, status, "", close.code)
            said = f"close frame {close.code}" + (f": {close.reason}" if close.reason else "")
            return Ending(RequestOutcome.SERVER_ERROR, status, said, close.code)
        if status is not None and status != 101:
            outcome = classify(status, ours=False)
            if outcome is RequestOutcome.OK:  # an answer, but not to the handshake
                outcome = RequestOutcome.STATUS
            return Ending(outcome, status, f"the handshake was answered {status}, not 101")
        if not self._received:
            return Ending(RequestOutcome.RESET, None, error or "closed by the peer")
        if status is None or isinstance(problem, InvalidHandshake):  # websockets 13: EOFError
            return Ending(RequestOutcome.TRUNCATED, status, f"the handshake failed: {problem}")
        if (broken := self._protocol.parser_exc) is not None and not isinstance(broken, EOFError):
            return Ending(RequestOutcome.TRUNCATED, status, str(broken))
        return Ending(RequestOutcome.TRUNCATED, status, "ended without a close frame")

    def _flush(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        for data in self._protocol.data_to_send():
            if data:
                self._transport.write(data)
            else:  # the protocol's sign for the end
                self._transport.close()
