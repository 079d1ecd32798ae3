"""A small Flask service with a quick, a slow and a streaming route.

gunicorn -c python:gunicorn_grace.conf app:app      # no file at all
gunicorn -c gunicorn_grace.conf app:app             # the file beside this one
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from flask import Flask, Response

from gunicorn_grace import is_terminating
from gunicorn_grace.flask import blueprint

app = Flask(__name__)

# Not needed, the overlay answers the probes anyway; this makes them routes of the application.
app.register_blueprint(blueprint)


@app.get("/")
def quick() -> str:
    """What most requests are like."""
    return "hello\n"


@app.get("/slow")
def slow() -> str:
    """A request that takes 2 seconds: one that is in flight at the shutdown is finished."""
    time.sleep(2)
    return "slept 2 s\n"


@app.get("/stream")
def stream() -> Response:
    """A stream that would go on for a minute, and ends by itself once the shutdown has begun."""

    def ticks() -> Iterator[str]:
        for number in range(60):
            yield f"tick {number}\n"
            if is_terminating():
                return
            time.sleep(1)

    return Response(ticks(), mimetype="text/plain")
