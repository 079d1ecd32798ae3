"""The overlay for ASGI applications: it answers the probes in front of them, and counts their
requests. Runs in workers.

:mod:`gunicorn_grace.worker.overlay` does the same for WSGI, and its rules hold here too. An ASGI
server calls the application for more than requests. It calls it for the lifespan, which the overlay
passes on unchanged. It also calls it for WebSockets, each of which counts while it is open.
"""

from __future__ import annotations

from typing import Any

from ..probes.answers import Answer, Target
from ..probes.ownership import Ownership, request_of_scope
from .answering import ANSWERED, WorkerAnswers
from .asgi_connection import connection_in, in_a_thread
from .asgi_lingering import WITHOUT_BODY, Rest, has_body
from .asgi_messages import (
    Application,
    AsgiCall,
    Message,
    Receive,
    Scope,
    Send,
    answer,
    environ_of,
    path_of,
    respond,
    shedding,
)
from .asgi_websockets import WebSockets
from .process import WorkerProcess

COUNTED = "gunicorn_grace.counted"
"""A key of the scope. The overlay sets it on a request that it handles, so that
:class:`gunicorn_grace.asgi.Probes` inside the application does not count the request again."""


class AsgiProbes:
    """Answers the probes in front of an ASGI application, and nothing else.

    :param app: the application.
    :param answers: answers the probes.
    :ivar serve: this object as an ASGI application. It is a coroutine function.
    """

    def __init__(self, app: Application, answers: WorkerAnswers) -> None:
        self.app = app
        self.answers = answers
        self._ownership = Ownership()
        self.serve: Application = self._serve

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the application, or answer a probe."""
        if scope["type"] == "http":
            path = path_of(scope)
            target = self.answers.answers.target(path)
            if target is not None:
                await self.probe(target, path, scope, receive, send, send)
                return
        await self.app(scope, receive, send)

    async def probe(
        self,
        target: Target,
        path: str,
        scope: Scope,
        receive: Receive,
        send: Send,
        servers_own: Send,
    ) -> None:
        """Answer a probe, or let the application answer it if it has that path.

        :param target: the question that the path asks.
        :param path: the path as the application knows it.
        :param scope: the scope of the request.
        :param receive: the ``receive`` for the application.
        :param send: the ``send`` for the answer.
        :param servers_own: the server's own ``send``, which leads to the connection.
        """
        answers, environ = self.answers, environ_of(scope)
        if answers.is_trigger(target, environ):
            with connection_in(environ, scope, servers_own):
                refused = await in_a_thread(lambda: answers.refuse(target, environ))
            assert refused is not None
            await respond(send, refused, scope["method"])
            return
        ours = answers.is_ours(target)
        # Only existing probes are remembered, because invented names would fill the memory.
        request = request_of_scope(scope) if not ours and answers.knows(target) else None
        if ours or self._ownership.is_refused(request):
            await respond(send, await answer(answers, target, environ), scope["method"])
            return

        async def instead(status: str) -> Answer | None:
            """Return the plugin's answer to the probe; ``None`` to keep the application's."""
            host = environ.get("HTTP_HOST", "")
            if not self._ownership.learn(path, host, request, status):
                return await answer(answers, target, environ)
            if status[0] != "2" or ANSWERED in scope:
                return None
            if not answers.is_ours(target) and not answers.have_checks(target, environ):
                return None
            found = await answer(answers, target, environ)
            return None if found.status == 200 else found

        await self.app(scope, receive, _Listening(send, scope["method"], instead).send)


class AsgiOverlay(AsgiProbes):
    """Answers the probes in front of an ASGI application, and counts all other requests while the
    application serves them.

    Once the shutdown has begun, HTTP/1 responses say ``Connection: close``.

    :param app: the application.
    :param ours: the parts of the plugin in this worker.
    :param reads_rest: whether to read the part of a body that the application has not read. This is
        needed for a server that closes the connection at the end of a response (uvicorn).
    :ivar serve: the overlay as an ASGI application. It is a coroutine function, because uvicorn
        (0.20 to 0.54) takes any other callable for ASGI 2.
    """

    def __init__(self, app: Application, ours: WorkerProcess, *, reads_rest: bool) -> None:
        super().__init__(app, WorkerAnswers(ours))
        self._ours = ours
        self._reads_rest = reads_rest
        self._websockets = WebSockets(ours)
        self.serve: Application = self._as_function()

    def _as_function(self) -> Application:
        app, ours, probe, reads_rest = self.app, self._ours, self.probe, self._reads_rest
        begin, end, is_terminating = ours.begin, ours.end, ours.memory.is_terminating
        answers = self.answers.answers
        # If grace_overlay is off, the application gets the requests for the probe paths too.
        paths = answers.paths if ours.settings.overlay else {}
        prefixes = answers.prefixes if ours.settings.overlay else ()
        memory = ours.memory

        def is_closing() -> bool:
            return ours.is_leaving or is_terminating()

        async def serve(scope: Scope, receive: Receive, send: Send) -> None:
            kind = scope["type"]
            if kind == "http":
                path = path_of(scope) if scope.get("root_path") else scope["path"]
                servers_own = send
                if scope["http_version"][0] == "1":
                    rest = None
                    if reads_rest and scope["method"] not in WITHOUT_BODY and has_body(scope):
                        rest = Rest(receive, lambda: bool(memory.header.drain))
                        receive = rest.receive
                    send = shedding(send, is_closing, rest)
                if path in paths or path.startswith(prefixes):
                    target = answers.target(path)
                    if target is not None:
                        scope[COUNTED] = True
                        await probe(target, path, scope, receive, send, servers_own)
                        return
            elif kind == "websocket":
                scope[COUNTED] = True
                await self._serve_websocket(scope, receive, send)
                return
            else:
                await app(scope, receive, send)
                return
            scope[COUNTED] = True
            call = AsgiCall(scope, path)
            begin(call)
            try:
                await app(scope, receive, send)
            finally:
                end(call)

        return serve

    async def _serve_websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = AsgiCall(scope, path_of(scope))
        self._ours.begin(call)
        try:
            await self._websockets.serve(self.app, scope, receive, send)
        finally:
            self._ours.end(call)


class _Listening:
    """Looks at the status of a response before its first message goes out.

    :param send: the server's ``send``.
    :param method: the method of the request.
    :param instead: gets the status, and returns the plugin's answer that replaces the response;
        ``None`` if the response stands.
    """

    def __init__(self, send: Send, method: str, instead: Any) -> None:
        self._send = send
        self._method = method
        self._instead = instead
        self._held: list[Message] = []
        self._passes: bool | None = None

    async def send(self, message: Message) -> None:
        """Send a message of the application, or drop it if the plugin answers."""
        if self._passes is None:
            if message["type"] == "http.response.informational":
                # 103 Early Hints belong to the response that follows.
                self._held.append(message)
                return
            if message["type"] == "http.response.start":
                answer = await self._instead(str(message["status"])[:3])
                self._passes = answer is None
                if answer is not None:
                    await respond(self._send, answer, self._method)
                    return
                for held in self._held:
                    await self._send(held)
        if self._passes is not False:
            await self._send(message)
