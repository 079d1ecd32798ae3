"""The application under test and one of Flask behind it, with callbacks, holds and streams that
end.

``CALLBACKS`` says which callbacks it has: words such as ``lame_duck:first:say`` or
``drain:last:wait``, which are a phase, a name and a deed. ``SWITCHES`` is a folder: what waits does
so until a file of its name is in there.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import service
from flask import Flask, Response, request, stream_with_context
from speech import say

import gunicorn_grace

SWITCHES = Path(os.environ.get("SWITCHES", "."))

flask, app = Flask(__name__), service.app
app.otherwise = flask.wsgi_app


def wait_for(name: str) -> None:
    while not (SWITCHES / name).exists():
        time.sleep(0.02)


def callback(name: str, deed: str) -> Callable[[], None]:
    def run() -> None:
        say(f"{name} in {gunicorn_grace.phase()} in {os.getpid()}")
        if deed == "raise":
            raise ZeroDivisionError("raised by a callback")
        if deed == "exit":
            sys.exit("called by a callback")
        if deed == "interrupt":
            raise KeyboardInterrupt
        if deed in ("wait", "hang"):
            wait_for(name)
            say(f"{name} ended in {os.getpid()}")

    run.__qualname__ = name
    return run


for word in os.environ.get("CALLBACKS", "").split():
    _phase, _name, _deed = word.split(":")
    _register = {"lame_duck": gunicorn_grace.on_lame_duck, "drain": gunicorn_grace.on_drain}[_phase]
    _timeout = 0.2 if _deed == "hang" else 60
    _register(timeout=_timeout)(callback(_name, _deed))


@flask.get("/hold")
def hold() -> str:
    """Begins work that outlives the request, and holds the worker for it until its switch is
    there."""
    name = request.args["name"]
    held = contextlib.ExitStack()
    held.enter_context(gunicorn_grace.hold(name))

    def work() -> None:
        with held:
            wait_for(name)
            say(f"{name} is done in {os.getpid()}")

    threading.Thread(target=work, daemon=True).start()
    return f"{os.getpid()}\n"


@flask.get("/register")
def register() -> str:
    """Registers a callback while it serves."""
    gunicorn_grace.on_lame_duck(callback("late", "say"))
    return "registered\n"


@flask.get("/events")
def events() -> Response:
    """Server-sent events without an end of their own; the last one names a request, for its context
    is still there."""

    def ticks() -> Iterator[str]:
        number = 0
        try:
            while True:
                say(f"event {number} of {request.path}")
                yield f"data: {number}\n\n"
                number += 1
                time.sleep(0.05)
        finally:
            say(f"events of {request.path} are closed")

    return Response(
        gunicorn_grace.until_terminating(stream_with_context(ticks())), mimetype="text/event-stream"
    )
