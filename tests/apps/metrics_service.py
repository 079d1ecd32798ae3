"""The application under test with a page of metrics: the plugin's, and one of its own."""

from __future__ import annotations

import os

from flask import Flask, Response
from prometheus_client import REGISTRY, CollectorRegistry, Counter, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from service import app

from gunicorn_grace.prometheus import Collector

__all__ = ["app"]

flask = Flask(__name__)
app.otherwise = flask.wsgi_app
own = Counter("own", "Requests for the page /own.")
registry = REGISTRY
if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
registry.register(Collector())


@flask.get("/own")
def count() -> str:
    own.inc()
    return "counted\n"


@flask.get("/metrics")
def metrics() -> Response:
    """Whose page it is says a header."""
    return Response(
        generate_latest(registry), mimetype="text/plain", headers={"X-Pid": str(os.getpid())}
    )
