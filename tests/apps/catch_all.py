"""An application that answers everything with 200, whatever the method."""

from __future__ import annotations

from typing import Any


def app(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Length", "7")])
    return [b"theirs\n"]
