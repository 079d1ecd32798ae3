"""Lets ASGI workers read the rest of a body that the application did not read, before they close
the connection. Runs in workers.

:mod:`gunicorn_grace.worker.lingering` says what would be lost otherwise, and does the same for
workers without an event loop. In gunicorn's own worker (25.2 to 27.0) the function that closes a
connection is replaced. Measured on 27.0.1, even without a shutdown: the client of a POST request of
600 kB got a reset instead of its response. uvicorn closes the connection when a response is
complete (0.20 to 0.54), so there the overlay reads the rest before it lets the response end.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from .lingering import EXIT_SILENCE, LONGEST, MOST_BYTES, SILENCE

_LOOK_EVERY = 0.05
"""Seconds between two checks of whether the client is still sending."""


def let_linger(cls: Any) -> None:
    """Make gunicorn's ASGI worker linger. Versions whose protocol has no callback parser (24.1) are
    left unchanged.

    :param cls: gunicorn's ``ASGIProtocol`` class.
    """
    if "_callback_parser" not in cls.__init__.__code__.co_names:
        return
    close_now = cls._close_transport

    def close_transport(self: Any) -> None:
        transport = self.transport
        if transport is None or self._closed or not _is_in_a_body(self):
            close_now(self)
            return
        self._closed = True
        worker = self.worker
        _Discarding(self, transport, worker.loop.call_later, lambda: not worker.alive)

    cls._close_transport = close_transport


def _is_in_a_body(protocol: Any) -> bool:
    # Between two requests, _current_request is None.
    parser = protocol._callback_parser
    return (
        parser is not None
        and protocol._current_request is not None
        and not getattr(parser, "is_complete", True)
    )


class _Discarding:
    """The protocol of an asyncio transport that is closed for writing but still read from.

    It is not derived from ``asyncio.Protocol``, because the arbiter loads this module too,
    and must not load asyncio before gevent patches it.

    :param owner: the protocol that had the transport. It is told when the connection ends.
    :param transport: the transport, which may still have something to send.
    :param call_later: the loop's ``call_later``.
    :param is_leaving: returns whether the worker is leaving.
    """

    def __init__(
        self,
        owner: Any,
        transport: Any,
        call_later: Callable[..., Any],
        is_leaving: Callable[[], bool],
    ) -> None:
        self._owner = owner
        self._transport = transport
        self._call_later = call_later
        self._is_leaving = is_leaving
        self._read = 0
        self._since = self._last = time.monotonic()
        transport.set_protocol(self)
        if transport.can_write_eof():  # Not over TLS.
            transport.write_eof()
        with contextlib.suppress(AttributeError, RuntimeError):
            transport.resume_reading()
        self._look()

    def _look(self) -> None:
        now = time.monotonic()
        silence = EXIT_SILENCE if self._is_leaving() else SILENCE
        if now - self._last > silence or now - self._since > LONGEST or self._read > MOST_BYTES:
            self._transport.close()
        if not self._transport.is_closing():
            self._call_later(_LOOK_EVERY, self._look)

    def data_received(self, data: bytes) -> None:
        self._read += len(data)
        self._last = time.monotonic()

    def eof_received(self) -> None:
        """Let the transport close itself."""

    def pause_writing(self) -> None:
        self._owner.pause_writing()

    def resume_writing(self) -> None:
        self._owner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._owner.connection_lost(exc)


Message = MutableMapping[str, Any]

WITHOUT_BODY = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods whose requests hardly ever have a body. Most requests have one of these methods, so this
set is looked up before :func:`has_body` is called."""
_LENGTHS = (b"content-length", b"transfer-encoding")


def has_body(scope: MutableMapping[str, Any]) -> bool:
    """Whether the headers of an HTTP/1 request announce a body."""
    return any(name.lower() in _LENGTHS for name, _ in scope.get("headers", ()))


class Rest:
    """The rest of a request's body: the part that the application has not read.

    :param receive: the server's ``receive``.
    :param is_leaving: returns whether the instance is draining. The wait for the rest is then
        shorter.
    """

    def __init__(
        self, receive: Callable[[], Awaitable[Message]], is_leaving: Callable[[], bool]
    ) -> None:
        self._receive = receive
        self._is_leaving = is_leaving
        self.is_complete: bool = False

    async def receive(self) -> Message:
        """Receive a message, and note whether the body is complete."""
        message = await self._receive()
        self.is_complete = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    async def read(self) -> None:
        """Read the body to its end, within the limits of :mod:`gunicorn_grace.worker.lingering`."""
        import asyncio

        began, count = time.monotonic(), 0
        with contextlib.suppress(asyncio.TimeoutError):
            while not self.is_complete and count <= MOST_BYTES:
                if time.monotonic() - began > LONGEST:
                    return
                silence = EXIT_SILENCE if self._is_leaving() else SILENCE
                message = await asyncio.wait_for(self.receive(), silence)
                count += len(message.get("body", b""))
