"""An application of aiohttp's own, for its own worker class."""

from __future__ import annotations

import asyncio
import os

from aiohttp import web
from speech import say


async def index(request: web.Request) -> web.Response:
    return web.Response(text="hello\n")


async def slow(request: web.Request) -> web.Response:
    """Takes as long as it is told."""
    say(f"slow request begins in {os.getpid()}")
    await asyncio.sleep(float(request.query["s"]))
    return web.Response(text="slept\n")


app = web.Application()
app.add_routes([web.get("/", index), web.get("/slow", slow)])
