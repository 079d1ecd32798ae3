"""An application whose checks a test turns, by files, with the probes in each of the ways that are
not the overlay.

Which way is asked is told by the host, so that one server has them all.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from flask import Flask
from speech import say

import gunicorn_grace
from gunicorn_grace.flask import blueprint, init_app
from gunicorn_grace.wsgi import Probes

SWITCHES = Path(os.environ["SWITCHES"])
TIMEOUT = float(os.environ.get("CHECK_TIMEOUT", "30"))


def follow(name: str) -> bool:
    """Fail while a file says so, and hang while another does."""
    if (SWITCHES / f"{name}-hangs").exists():
        say(f"check {name} hangs in {os.getpid()}")
        while (SWITCHES / f"{name}-hangs").exists():
            time.sleep(0.01)
    if (SWITCHES / f"{name}-down").exists():
        raise ConnectionError(f"s3cret place of {name}")
    return True


@gunicorn_grace.check("database", timeout=TIMEOUT, ttl=0)
def database() -> bool:
    return follow("database")


@gunicorn_grace.check("loop", kind="liveness", timeout=TIMEOUT, ttl=0)
def loop() -> bool:
    return follow("loop")


@gunicorn_grace.check("migrations", kind="startup", timeout=TIMEOUT, ttl=0)
def migrations() -> bool:
    return follow("migrations")


def flask_app() -> Flask:
    made = Flask(__name__)
    made.add_url_rule("/", "index", lambda: f"{os.getpid()}\n")
    return made


with_blueprint, with_init_app = flask_app(), flask_app()
with_blueprint.register_blueprint(blueprint)
init_app(with_init_app)

WAYS: dict[str, Any] = {
    "overlay": flask_app(),
    "blueprint": with_blueprint,
    "init_app": with_init_app,
    "middleware": Probes(flask_app()),
}


def app(environ: Any, start_response: Any) -> Any:
    return WAYS.get(environ.get("HTTP_HOST"), WAYS["overlay"])(environ, start_response)
