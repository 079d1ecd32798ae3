"""The application of the programs beside it: a WSGI callable, and a check of readiness."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import gunicorn_grace


@gunicorn_grace.check("folder")
def folder() -> bool:
    """The application needs its working directory."""
    return os.path.isdir(".")


def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    if environ["PATH_INFO"] != "/":
        start_response("404 Not Found", [("Content-Type", "text/plain"), ("Content-Length", "10")])
        return [b"not found\n"]
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "6")])
    return [b"hello\n"]
