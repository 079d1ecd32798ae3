"""The probes in front of an ASGI application, and the counting of its requests.

An ASGI worker does not call ``worker.wsgi``, where the overlay sits, and uvicorn's worker calls no
request hook either. So the author of the application wraps it, outside of all other middleware::

    from gunicorn_grace.asgi import Probes

    app = Probes(app)

The answers come from :mod:`gunicorn_grace.worker.answering`. Runs in workers. Outside gunicorn
every answer is that of a serving instance.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from .probes.answers import Answer, Target
from .worker import process
from .worker.answering import WorkerAnswers
from .worker.asgi_lingering import Rest, has_body
from .worker.classes import ASGI, ASGI_HOOKS
from .worker.counting import CountedCall

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOK_INTERVAL = 0.01
"""Seconds between two looks at a running check. The loop's thread pool is not used to wait for it,
because a probe would then wait for the application's jobs in that pool."""

CLOSE = (b"connection", b"close")


class Probes:
    """ASGI middleware that answers the probe paths and counts all other requests while the
    application serves them.

    Once the shutdown has begun, HTTP/1.1 responses say ``Connection: close``. A WebSocket counts as
    a request in flight while it is open. It is never a probe.

    :param app: the ASGI application that gets everything else, including the lifespan.
    """

    def __init__(self, app: Application) -> None:
        self.app = app
        self._answers: WorkerAnswers | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answers = self._answers
        if answers is None or answers.worker is not process.this_worker:
            # This is created in the worker and not where the application is built, which with
            # preload_app is the arbiter.
            answers = self._answers = WorkerAnswers(process.this_worker)
        ours = answers.worker
        if ours is not None:
            ours.draining.sees_all = True
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        is_http = scope["type"] == "http"
        if is_http and ours is not None and scope.get("http_version", "1.1").startswith("1"):
            rest = None
            if ours.tracking == ASGI and has_body(scope):
                rest = Rest(receive, lambda: bool(ours.memory.header.drain))
                receive = rest.receive
            send = _shedding(send, ours.memory.is_terminating, rest)
        target = answers.answers.target(_path(scope)) if is_http else None
        if target is not None:
            answer = await _answer(answers, target, _environ(scope))
            body = answer.body.encode()
            headers = [(name.lower().encode(), value.encode()) for name, value in answer.headers]
            headers.append((b"content-length", str(len(body)).encode()))
            await send({"type": "http.response.start", "status": answer.status, "headers": headers})
            await send(
                {"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body}
            )
        elif ours is None or (is_http and ours.tracking == ASGI_HOOKS):
            await self.app(scope, receive, send)  # gunicorn's hooks count it, or nothing does.
        else:
            call = CountedCall(scope.get("method", "WEBSOCKET"), _path(scope))
            ours.begin(call)
            try:
                await self.app(scope, receive, send)
            finally:
                ours.end(call)


async def _answer(answers: WorkerAnswers, target: Target, environ: dict[str, Any]) -> Answer:
    """Return the complete answer. The event loop continues while a check runs."""
    refused = answers.refuse(target, environ)
    if refused is not None:
        return refused
    question = answers.ask(target, environ)
    while not question.is_known():
        await asyncio.sleep(LOOK_INTERVAL)
    return question.answer(answers.situation)


def _shedding(send: Send, is_terminating: Callable[[], bool], rest: Rest | None = None) -> Send:
    """Wrap ``send`` so that a response that begins after T0 says ``Connection: close``. A response
    that began earlier is not changed.

    gunicorn's ASGI worker then closes the connection itself from 27 on, and uvicorn's always does.
    Otherwise the client does (RFC 9112, section 9.6).

    :param rest: what is to be read of the body before the server closes the connection.
    """
    closes = False

    async def shedding(message: Message) -> None:
        nonlocal closes
        kind = message["type"]
        if kind == "http.response.body" and closes and not message.get("more_body", False):
            if rest is not None and not rest.is_complete:
                # uvicorn closes after the last part of a response, so that part is sent later.
                await send({**message, "more_body": True})
                await rest.read()
                message = {"type": kind, "body": b""}
        elif kind == "http.response.start" and is_terminating():
            closes = True
            kept = [
                (name, value)
                for name, value in message.get("headers", ())
                if name.lower() != b"connection"
            ]
            message = {**message, "headers": [*kept, CLOSE]}
        await send(message)

    return shedding


def _path(scope: Scope) -> str:
    """Return the path as the application knows it, without the ``root_path`` that servers and
    mounts put in front of it."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path[len(root) :] if root and path.startswith(root + "/") else path


def _environ(scope: Scope) -> dict[str, Any]:
    """Return the parts of a request that the trigger checks. ASGI passes no socket that could prove
    which process asks, so ``grace_trigger = "local"`` refuses and names the remedy.

    The names are those of CGI (RFC 3875, section 4.1.18), so forwarding headers are recognized.
    """
    client = scope.get("client") or ("", 0)
    environ = {
        "REQUEST_METHOD": scope["method"],
        "QUERY_STRING": scope.get("query_string", b"").decode("latin-1"),
        "REMOTE_ADDR": client[0],
    }
    for name, value in scope.get("headers", ()):
        environ["HTTP_" + name.decode("latin-1").upper().replace("-", "_")] = value.decode(
            "latin-1"
        )
    return environ
