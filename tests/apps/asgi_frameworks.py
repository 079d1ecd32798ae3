"""ASGI applications as their authors write them, unchanged: FastAPI, Starlette, Django, and some
without a framework."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from speech import say

import gunicorn_grace

NOT_READY = Path(os.environ.get("NOT_READY", os.devnull + "/none"))
"""While this file is there the applications' own readiness says 503."""


def fastapi() -> Any:
    from fastapi import FastAPI

    app = FastAPI()

    @app.get("/")
    def index() -> str:
        return "hello"

    return app


def starlette_background() -> Any:
    """That goes on working when it has answered."""
    from starlette.applications import Starlette
    from starlette.background import BackgroundTask
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse, Response
    from starlette.routing import Route

    async def work(seconds: float) -> None:
        say(f"background begins in {os.getpid()}")
        await asyncio.sleep(seconds)
        say("background ends")

    async def background(request: Request) -> Response:
        seconds = request.query_params.get("s")
        task = None if seconds is None else BackgroundTask(work, float(seconds))
        return PlainTextResponse("answered", background=task)

    return Starlette(routes=[Route("/", background)])


def starlette_own() -> Any:
    """With a readiness of its own, and an application mounted below it."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse, Response
    from starlette.routing import Mount, Route

    async def readyz(request: Request) -> Response:
        status = 503 if NOT_READY.exists() else 200
        return PlainTextResponse("theirs", status, {"x-mine": "1"})

    async def where(request: Request) -> Response:
        return PlainTextResponse(f"{request.scope['root_path']} {request.url.path}")

    mounted = Starlette(routes=[Route("/readyz", where), Route("/where", where)])
    return Starlette(routes=[Route("/readyz", readyz), Mount("/sub", mounted)])


def starlette_duties() -> Any:
    """With coroutines for the phases of a shutdown, and a stream of events without an end."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response, StreamingResponse
    from starlette.routing import Route

    loops = []

    @gunicorn_grace.on_lame_duck
    async def first() -> None:
        say(f"first in {gunicorn_grace.phase()}, {loops == [asyncio.get_running_loop()]}")

    @gunicorn_grace.on_drain(timeout=20)
    async def last() -> None:
        await asyncio.sleep(1)
        say(f"last in {gunicorn_grace.phase()}, {loops == [asyncio.get_running_loop()]}")

    async def events() -> AsyncIterator[str]:
        for number in itertools.count():
            say(f"event {number}")
            yield f"data: {number}\n\n"
            await asyncio.sleep(0.1)

    async def stream(request: Request) -> Response:
        loops.append(asyncio.get_running_loop())
        sent = gunicorn_grace.until_terminating(events())
        return StreamingResponse(sent, media_type="text/event-stream")

    return Starlette(routes=[Route("/events", stream)])


def trusting_own_host() -> Any:
    """That refuses every client that does not name its host."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    return Starlette(middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=["example.org"])])


class Asgi2:
    """ASGI 2: an instance for each connection."""

    def __init__(self, scope: Any) -> None:
        assert scope["type"] == "http", "no lifespan"

    async def __call__(self, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 404, "headers": []})
        await send({"type": "http.response.body", "body": b"nothing here"})


def wsgi(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    return [b"wsgi"]


async def failing_lifespan(scope: Any, receive: Any, send: Any) -> None:
    assert scope["type"] == "lifespan"
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no database"})


def __getattr__(name: str) -> Any:
    made = {
        "fast": fastapi,
        "background": starlette_background,
        "duties": starlette_duties,
        "own": starlette_own,
        "strict": trusting_own_host,
    }
    if name in made:
        return made[name]()
    raise AttributeError(name)
