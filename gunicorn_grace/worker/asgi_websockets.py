"""The WebSockets of an ASGI worker, which are told to reconnect when draining begins. Runs in
workers.

A WebSocket may stay open for ever, so waiting for its end is no use. Without a close frame it would
be cut off at the drain limit, and its client might notice that only when its own timeout expires.
With a close frame the client reconnects at once, while the other instances can take it. The code
1012 means "service restart" (RFC 6455, section 7.4, and IANA's registry of close codes).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable
from typing import Any

from .asgi_messages import Application, Message, Receive, Scope, Send
from .process import WorkerProcess

LOOK_EVERY = 0.1
"""Seconds between two checks of whether draining has begun, while a WebSocket is open."""

HANDSHAKE = 5.0
"""Seconds that a client has for its own close frame (as in gunicorn 26.0 to 27.0)."""

REASON = "this server shuts down: connect again"


class Closed(OSError):
    """The application sends on a WebSocket that the plugin has closed. ASGI 2.4 tells servers to
    raise a subclass of ``OSError`` in this case, so frameworks handle it."""


class WebSockets:
    """The WebSockets that are open in this worker. All methods run in the worker's event loop.

    :param ours: the parts of the plugin in this worker.
    """

    def __init__(self, ours: WorkerProcess) -> None:
        self._ours = ours
        self._code = ours.settings.websocket_close
        self._open: set[_WebSocket] = set()
        self._watcher: asyncio.Task[None] | None = None

    async def serve(self, app: Application, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the application serve a WebSocket."""
        if not self._code:
            await app(scope, receive, send)
            return
        websocket = _WebSocket(send)
        self._open.add(websocket)
        if self._watcher is None or self._watcher.done():
            self._watcher = asyncio.ensure_future(self._watch())
        try:
            with contextlib.suppress(Closed):
                await app(scope, receive, websocket.send)
        finally:
            self._open.discard(websocket)

    async def _watch(self) -> None:
        header, closing = self._ours.memory.header, set()
        while self._open:
            if header.drain:
                for websocket in [one for one in self._open if one.can_close()]:
                    task = asyncio.ensure_future(websocket.close(self._code))
                    closing.add(task)  # asyncio keeps only weak references to tasks.
                    task.add_done_callback(closing.discard)
            await asyncio.sleep(LOOK_EVERY)


class _WebSocket:
    """One WebSocket.

    :param send: the server's ``send``.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._is_accepted = self._is_closed = self._is_ours = False

    def send(self, message: Message) -> Awaitable[None]:
        """Send a message of the application. It is not a coroutine function, for the same reason as
        in :func:`asgi_messages.shedding`: it is called for each message.

        :raises Closed: the plugin has closed the WebSocket.
        """
        if self._is_ours and message["type"] == "websocket.close":
            return _nothing()
        if self._is_ours:
            raise Closed("gunicorn-grace has closed this WebSocket, because the server shuts down")
        kind = message["type"]
        if kind == "websocket.accept":
            return self._accept(message)
        if kind == "websocket.close":
            self._is_closed = True
        return self._send(message)

    async def _accept(self, message: Message) -> None:
        await self._send(message)
        self._is_accepted = True

    def can_close(self) -> bool:
        """Whether the WebSocket was accepted and neither the application nor the plugin has closed
        it."""
        return self._is_accepted and not self._is_closed

    async def close(self, code: int) -> None:
        """Close the WebSocket. The server tells the application, as it does when a client has gone.

        :param code: the code of the close frame.
        """
        self._is_closed = self._is_ours = True
        with contextlib.suppress(Exception):  # The client has gone.
            await self._send({"type": "websocket.close", "code": code, "reason": REASON})
            await _disconnect(getattr(self._send, "__self__", None), code)


async def _disconnect(protocol: Any, code: int) -> None:
    """Wait for the client's close frame, then tell the application that the WebSocket has ended.
    This is for gunicorn 24.1 to 25.3, which does neither."""
    queue = getattr(protocol, "_receive_queue", None)
    if queue is None or hasattr(protocol, "_close_event"):
        return
    until = time.monotonic() + HANDSHAKE
    while protocol.close_code is None and time.monotonic() < until:
        await asyncio.sleep(LOOK_EVERY)
    queue.put_nowait({"type": "websocket.disconnect", "code": code})


async def _nothing() -> None: ...
