"""How the plugin speaks ASGI: it reads scopes, and sends answers. Runs in workers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from ..probes.answers import Answer, Target
from .answering import WorkerAnswers
from .asgi_lingering import Rest

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOK_INTERVAL = 0.01
"""Seconds between two looks at a running check. The loop's thread pool is not used to wait for the
check, because the application's jobs in that pool would then delay the probe."""

CLOSE = (b"connection", b"close")


class AsgiCall:
    """A call of the application, with the attributes of a request that the counter and the log use.

    :ivar path: the path as the application knows it.
    """

    __slots__ = ("_scope", "path")

    def __init__(self, scope: Scope, path: str) -> None:
        self._scope = scope
        self.path: str = path

    @property
    def method(self) -> str:
        """The method; ``WEBSOCKET`` for a WebSocket."""
        return str(self._scope.get("method", "WEBSOCKET"))

    @property
    def headers(self) -> list[tuple[str, str]]:
        """The headers as pairs of a name in capitals and a value."""
        return [
            (name.decode("latin-1").upper(), value.decode("latin-1"))
            for name, value in self._scope.get("headers", ())
        ]

    @property
    def peer_addr(self) -> Any:
        """The client's address; ``None`` if the scope has none, as with a UNIX socket."""
        client = self._scope.get("client")
        return client and tuple(client)


def is_websocket(call: AsgiCall) -> bool:
    """Whether this is a WebSocket rather than an HTTP request."""
    return call.method == "WEBSOCKET"


def path_of(scope: Scope) -> str:
    """Return the path as the application knows it: without the ``root_path`` that servers and
    mounts add at its beginning."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path[len(root) :] if root and path.startswith(root + "/") else path


def environ_of(scope: Scope) -> dict[str, Any]:
    """Return the parts of a request that a probe and the trigger look at, as a WSGI environ.

    The headers have their names of CGI (RFC 3875, section 4.1.18), so the trigger recognizes
    forwarding headers as it does under WSGI.

    :param scope: the scope of an HTTP request.
    """
    client = scope.get("client") or ("", 0)
    environ = {
        "REQUEST_METHOD": scope["method"],
        "QUERY_STRING": scope.get("query_string", b"").decode("latin-1"),
        "REMOTE_ADDR": client[0],
    }
    for name, value in scope.get("headers", ()):
        key = "HTTP_" + name.decode("latin-1").upper().replace("-", "_")
        text = value.decode("latin-1")
        environ[key] = f"{environ[key]},{text}" if key in environ else text
    return environ


async def answer(answers: WorkerAnswers, target: Target, environ: dict[str, Any]) -> Answer:
    """Return the complete answer to a probe. The event loop continues while a check runs."""
    refused = answers.refuse(target, environ)
    if refused is not None:
        return refused
    question = answers.ask(target, environ)
    while not question.is_known():
        await asyncio.sleep(LOOK_INTERVAL)
    return question.answer(answers.situation)


async def respond(send: Send, answer: Answer, method: str) -> None:
    """Send an answer."""
    body = answer.body.encode()
    headers = [(name.lower().encode(), value.encode()) for name, value in answer.headers]
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if method == "HEAD" else body})


def shedding(send: Send, is_closing: Callable[[], bool], rest: Rest | None = None) -> Send:
    """Wrap ``send`` so that a response that begins after T0 says ``Connection: close``. A response
    that began earlier is not changed.

    gunicorn's ASGI worker then closes the connection itself from 27 on, and uvicorn's always does.
    Otherwise the client does (RFC 9112, section 9.6).

    The function that it returns is not a coroutine function, because one more coroutine for each
    message would cost a request more than all the rest of the plugin.

    :param send: the server's ``send``.
    :param is_closing: returns whether responses are to say ``Connection: close``.
    :param rest: the body of the request. Its rest is read before the server closes the connection.
        ``None`` if it is not to be read.
    """
    closes = False

    def shed(message: Message) -> Awaitable[None]:
        nonlocal closes
        if message["type"] == "http.response.start" and is_closing():
            closes = True
            kept = [
                (name, value)
                for name, value in message.get("headers", ())
                if name.lower() != b"connection"
            ]
            message = {**message, "headers": [*kept, CLOSE]}
        elif closes and rest is not None and not rest.is_complete and _ends(message):
            return _send_after(rest, send, message)
        return send(message)

    return shed


def _ends(message: Message) -> bool:
    return message["type"] == "http.response.body" and not message.get("more_body", False)


async def _send_after(rest: Rest, send: Send, message: Message) -> None:
    # uvicorn closes the connection after the last part of a response. So the data is sent now, and
    # the end of the response only when the body has been read.
    await send({**message, "more_body": True})
    await rest.read()
    await send({"type": message["type"], "body": b""})
