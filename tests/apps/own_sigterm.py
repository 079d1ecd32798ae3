"""An application that answers SIGTERM itself. ``HOW`` says where it installs its handler; each of
them is seen in the wild."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from typing import Any

import asgi_service
import service
from speech import say

from gunicorn_grace.asgi import Probes

HOW = os.environ["HOW"]
app = service.app


def bye(*args: object) -> None:
    """Leave at once, whatever is being served."""
    say("the application's handler runs")
    sys.exit(0)


def loops_bye() -> None:
    say("the application's handler runs")


if HOW == "import":
    signal.signal(signal.SIGTERM, bye)
elif HOW == "gevent":
    import gevent

    gevent.signal_handler(signal.SIGTERM, loops_bye)
elif HOW == "uvicorn":
    # What sse-starlette 3.7 does when it is imported.
    from uvicorn.server import Server

    original: Any = Server.handle_exit

    def handle_exit(*args: Any) -> None:
        say("the application's handler runs")
        original(*args)

    Server.handle_exit = staticmethod(handle_exit)  # type: ignore[method-assign, assignment]


@app.get("/install")
def install(query: Mapping[str, str]) -> str:
    signal.signal(signal.SIGTERM, bye)
    return "installed\n"


@app.get("/for-a-while")
def install_for_a_while(query: Mapping[str, str]) -> str:
    """What a library does that guards a piece of work."""
    found = signal.signal(signal.SIGTERM, bye)
    signal.signal(signal.SIGTERM, found)
    return "put back\n"


async def bare(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan" and HOW == "loop":
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, loops_bye)
    elif scope["type"] == "lifespan" and HOW == "startup":
        signal.signal(signal.SIGTERM, bye)
    await asgi_service.bare(scope, receive, send)


asgi = Probes(bare)
