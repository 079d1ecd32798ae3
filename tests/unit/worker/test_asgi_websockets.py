"""WebSockets that are closed by the plugin: what goes out, and what the application sees."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import pytest

from gunicorn_grace.shared.memory import Memory
from gunicorn_grace.shared.phase import Phase
from gunicorn_grace.shared.settings import Settings
from gunicorn_grace.worker.asgi_overlay import AsgiOverlay
from gunicorn_grace.worker.process import WorkerProcess

SCOPE = {"type": "websocket", "path": "/ws", "headers": []}


def worker(memory: Memory, **settings: Any) -> WorkerProcess:
    memory.header.phase = Phase.SERVING
    memory.claim(0, age=1)
    return WorkerProcess(memory, 0, Settings(**settings), logging.getLogger("gunicorn.error"))


class Wire:
    """A server's side: what the application receives comes when a test lets it, and what goes out
    is noted."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.closed = asyncio.Event()

    async def send(self, message: Any) -> None:
        self.sent.append(message)
        if message["type"] == "websocket.close":
            self.closed.set()

    async def receive(self) -> Any:
        await self.closed.wait()
        return {"type": "websocket.disconnect", "code": 1012}


def serve(ours: WorkerProcess, app: Any) -> list[dict[str, Any]]:
    """Run a WebSocket to its end. Draining begins once the application has accepted it."""

    async def run() -> list[dict[str, Any]]:
        wire = Wire()
        overlay = AsgiOverlay(app, ours, reads_rest=False).serve
        await asyncio.wait_for(overlay(dict(SCOPE), wire.receive, wire.send), 20)
        return wire.sent

    return asyncio.run(run())


def begin_draining(ours: WorkerProcess) -> None:
    ours.memory.header.drain = time.monotonic_ns()


def kinds(sent: list[dict[str, Any]]) -> list[str]:
    return [message["type"].removeprefix("websocket.") for message in sent]


def test_a_code_of_ones_own_and_what_follows_it(memory: Memory) -> None:
    """The close frame has the code of the setting. A message after it is an OSError, which goes no
    further than the application; a close is nothing."""
    ours = worker(memory, websocket_close=3001)
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        begin_draining(ours)
        seen.append((await receive())["type"])
        await send({"type": "websocket.close"})
        await send({"type": "websocket.send", "text": "too late"})
        seen.append("not reached")

    sent = serve(ours, app)
    assert kinds(sent) == ["accept", "close"]
    assert sent[1]["code"] == 3001
    assert seen == ["websocket.disconnect"]
    assert ours.record.in_flight == 0


def test_one_that_is_not_accepted_is_left_alone(memory: Memory) -> None:
    """A close would be a 403. It is accepted first, and closed then."""
    ours = worker(memory)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        begin_draining(ours)
        await asyncio.sleep(0.3)
        await send({"type": "websocket.accept"})
        await receive()

    assert kinds(serve(ours, app)) == ["accept", "close"]


def test_one_that_the_application_closes_gets_no_second_frame(memory: Memory) -> None:
    """The code is the application's."""
    ours = worker(memory)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close", "code": 1000})
        begin_draining(ours)
        await asyncio.sleep(0.3)

    sent = serve(ours, app)
    assert [message.get("code") for message in sent] == [None, 1000]


def test_with_zero_nothing_is_sent(memory: Memory) -> None:
    """The application has the server's own functions."""
    ours = worker(memory, websocket_close=0)
    begin_draining(ours)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert send.__self__.__class__ is Wire
        await send({"type": "websocket.accept"})
        await asyncio.sleep(0.3)

    assert kinds(serve(ours, app)) == ["accept"]


def test_an_error_of_the_applications_is_the_servers(memory: Memory) -> None:
    """An OSError too, unless it is the plugin's."""
    ours = worker(memory)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise OSError("theirs")

    with pytest.raises(OSError, match="theirs"):
        serve(ours, app)
    assert ours.record.in_flight == 0
