"""An application that answers every path after some time, for WSGI and for ASGI."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Any

import asgi_service
from speech import say

from gunicorn_grace.asgi import Probes

SECONDS = 30.0


def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    if environ["PATH_INFO"] in ("/readyz", "/livez"):
        start_response("404 Not Found", [("Content-Length", "0")])
        return []
    say("slow request begins")
    time.sleep(SECONDS)
    start_response("200 OK", [("Content-Length", "0")])
    return []


async def bare(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await asgi_service.bare(scope, receive, send)
        return
    say("slow request begins")
    await asyncio.sleep(SECONDS)
    await asgi_service.respond(send, 200, b"slept\n")


asgi = Probes(bare)
