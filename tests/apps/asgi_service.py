"""The ASGI application under test, bare and wrapped, without a framework."""

from __future__ import annotations

import asyncio
import json
import os
import time
from typing import Any
from urllib.parse import parse_qsl

from speech import say

import gunicorn_grace


async def respond(send: Any, status: int, *chunks: bytes, pause: float = 0.0) -> None:
    headers = [(b"content-type", b"text/plain")]
    if len(chunks) == 1:
        headers.append((b"content-length", str(len(chunks[0])).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    for number, chunk in enumerate(chunks):
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
        if pause:
            say(f"stream line {number}")
            await asyncio.sleep(pause)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def bare(scope: Any, receive: Any, send: Any) -> None:
    """The routes of ``service``, as far as they are needed."""
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    if scope["type"] == "websocket":
        await echo(receive, send)
        return
    query = dict(parse_qsl(scope["query_string"].decode()))
    match scope["path"]:
        case "/":
            await respond(send, 200, b"hello\n")
        case "/slow":
            say(f"slow request begins in {os.getpid()}")
            await asyncio.sleep(float(query["s"]))
            await respond(send, 200, f"slept {query['s']} s\n".encode())
        case "/block":
            say(f"slow request begins in {os.getpid()}")
            time.sleep(float(query["s"]))  # The whole worker stands still.
            await respond(send, 200, b"blocked\n")
        case "/stream":
            lines = [f"line {number}\n".encode() for number in range(int(query["n"]))]
            await respond(send, 200, *lines, pause=float(query["pause"]))
        case "/work":
            tasks.add(asyncio.ensure_future(work(float(query["s"]))))
            await respond(send, 202, b"begun\n")
        case "/look":
            seen = {
                "pid": os.getpid(),
                "phase": str(gunicorn_grace.phase()),
                "terminating": gunicorn_grace.is_terminating(),
            }
            await respond(send, 200, json.dumps(seen).encode())
        case _:
            await respond(send, 404, b"no such route\n")


tasks: set[asyncio.Future[None]] = set()
"""asyncio itself keeps no task."""


async def work(seconds: float) -> None:
    """Something that no request waits for."""
    with gunicorn_grace.hold("work"):
        say("work begins")
        await asyncio.sleep(seconds)
        say("work ends")


async def lifespan(receive: Any, send: Any) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            say("lifespan ends")
            return


async def echo(receive: Any, send: Any) -> None:
    while True:
        message = await receive()
        if message["type"] == "websocket.connect":
            await send({"type": "websocket.accept"})
            say("websocket opens")
        elif message["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"]})
        else:
            return
