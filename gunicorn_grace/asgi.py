"""The probes as an ASGI middleware.

Under gunicorn's own ASGI worker and uvicorn's, the overlay
(:mod:`gunicorn_grace.worker.asgi_overlay`) answers the probes without this middleware. Use it if
the plugin alone should answer the probe paths, or with a worker class that the plugin does not
know::

    from gunicorn_grace.asgi import Probes

    app = Probes(app)

The answers come from :mod:`gunicorn_grace.worker.answering`. Runs in workers. Outside gunicorn
every answer is that of a serving instance.
"""

from __future__ import annotations

from .worker import process
from .worker.answering import ANSWERED, WorkerAnswers
from .worker.asgi_messages import (
    Application,
    AsgiCall,
    Receive,
    Scope,
    Send,
    answer,
    environ_of,
    path_of,
    respond,
    shedding,
)
from .worker.asgi_overlay import COUNTED
from .worker.classes import ASGI_HOOKS

__all__ = ["Probes"]


class Probes:
    """ASGI middleware that answers the probe paths. It counts all other requests while the
    application serves them, unless the overlay or gunicorn's hooks already count them.

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
            # With preload_app the application is built in the arbiter, so this must wait for the
            # first request in a worker.
            answers = self._answers = WorkerAnswers(process.this_worker)
        ours = answers.worker if COUNTED not in scope else None
        if ours is not None:
            ours.draining.sees_all = True
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        is_http = scope["type"] == "http"
        if is_http and ours is not None and scope.get("http_version", "1.1").startswith("1"):
            send = shedding(send, ours.memory.is_terminating)
        target = answers.answers.target(path_of(scope)) if is_http else None
        if target is not None:
            found = await answer(answers, target, environ_of(scope))
            scope[ANSWERED] = True
            await respond(send, found, scope["method"])
        elif ours is None or (is_http and ours.tracking == ASGI_HOOKS):
            await self.app(scope, receive, send)  # gunicorn's hooks count it, or nothing does.
        else:
            call = AsgiCall(scope, path_of(scope))
            ours.begin(call)
            try:
                await self.app(scope, receive, send)
            finally:
                ours.end(call)
