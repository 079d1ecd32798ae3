"""What the plugin could have changed in the worker that answers, for WSGI and for ASGI."""

from __future__ import annotations

import gc
import json
import os
import sys
from typing import Any

import asgi_service
from gunicorn.workers.base import Worker
from handlers import classes, name_of, signals
from service import app as app

import gunicorn_grace
from gunicorn_grace.asgi import Probes

METHODS = ("handle_exit", "handle_quit", "handle_winch", "init_signals", "run", "notify")
HOOKS = ("pre_request", "post_request", "worker_int", "worker_abort")
FUNCTIONS = (
    ("gunicorn.util", "close"),
    ("gunicorn.util", "close_graceful"),
    ("gunicorn.workers.gthread", "TConn.close"),
    ("gunicorn.workers.gthread", "ThreadWorker.get_thread_pool"),
    ("gunicorn.workers.ggevent", "StreamServer"),
    ("gunicorn.asgi.protocol", "ASGIProtocol.connection_lost"),
    ("gunicorn.http.message", "Request.should_close"),
    ("signal", "signal"),
)


def insides() -> dict[str, Any]:
    """All of it."""
    # A worker also has those that the arbiter had made before it.
    workers = [thing for thing in gc.get_objects() if isinstance(thing, Worker)]
    (worker,) = [worker for worker in workers if worker.pid == os.getpid()]
    return {
        "pid": os.getpid(),
        "signals": signals(),
        "classes": classes(worker),
        "attributes": sorted(vars(worker)),
        "methods": {name: name_of(getattr(worker, name, None)) for name in METHODS},
        "hooks": {name: name_of(getattr(worker.cfg, name)) for name in HOOKS},
        "functions": {name: _function(module, name) for module, name in FUNCTIONS},
        "environment": sorted(name for name in os.environ if name.startswith("GUNICORN_GRACE")),
        "phase": str(gunicorn_grace.phase()),
        "terminating": gunicorn_grace.is_terminating(),
        "seconds_left": gunicorn_grace.seconds_left(),
    }


def _function(module: str, path: str) -> str:
    value: Any = sys.modules.get(module)
    for part in path.split("."):
        value = getattr(value, part, None)
    return name_of(value)


app.get("/insides")(lambda query: insides())


async def bare(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http" and scope["path"] == "/insides":
        await asgi_service.respond(send, 200, json.dumps(insides()).encode())
    else:
        await asgi_service.bare(scope, receive, send)


wrapped = Probes(bare)
