"""A small FastAPI service with a quick, a slow and a streaming route, and a WebSocket.

No line of it is the plugin's but `until_terminating`, which ends the stream in time:

gunicorn -c python:gunicorn_grace.conf -k uvicorn_worker.UvicornWorker main:app
gunicorn -c python:gunicorn_grace.conf -k asgi main:app   # gunicorn's own, 24.1 and later
gunicorn-grace rehearse main:app --worker-class uvicorn_worker.UvicornWorker --slow-path /slow \
    --stream-path /stream --websocket-path /echo
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from fastapi.responses import PlainTextResponse, StreamingResponse

from gunicorn_grace import until_terminating

app = FastAPI()


@app.get("/", response_class=PlainTextResponse)
async def quick() -> str:
    """What most requests are like."""
    return "hello\n"


@app.get("/slow", response_class=PlainTextResponse)
async def slow() -> str:
    """A request that takes 2 seconds: one that is in flight at the shutdown is finished."""
    await asyncio.sleep(2)
    return "slept 2 s\n"


@app.get("/stream")
async def stream() -> StreamingResponse:
    """A stream that would go on for a minute, and ends once the shutdown has begun."""

    async def ticks() -> AsyncIterator[str]:
        for number in range(60):
            yield f"tick {number}\n"
            await asyncio.sleep(1)

    return StreamingResponse(until_terminating(ticks()), media_type="text/plain")


@app.websocket("/echo")
async def echo(socket: WebSocket) -> None:
    """Says what it hears. When draining begins, its client is told to reconnect (1012)."""
    await socket.accept()
    try:
        while True:
            await socket.send_text(await socket.receive_text())
    except WebSocketDisconnect:
        pass
