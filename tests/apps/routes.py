"""A WSGI application that imports next to nothing.

The tests start some thousand servers, and each worker loads the application: Flask takes 0.2 s of a
CPU each time. What is about Flask is in ``application_service``, ``metrics_service`` and
``probe_service``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl

Answer = str | dict[str, Any] | Iterator[str]


class Routes:
    """Functions by path. They get the query, and return a text, what is to be JSON, or what is to
    be streamed."""

    def __init__(self) -> None:
        self.routes: dict[str, Callable[[Mapping[str, str]], Answer]] = {}
        self.otherwise: Callable[..., Iterable[bytes]] = not_found
        """The WSGI application that has all other paths."""

    def get(self, path: str) -> Callable[..., Any]:
        def add(
            function: Callable[[Mapping[str, str]], Answer],
        ) -> Callable[[Mapping[str, str]], Answer]:
            self.routes[path] = function
            return function

        return add

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        function = self.routes.get(environ["PATH_INFO"])
        if function is None:
            return self.otherwise(environ, start_response)
        answer = function(dict(parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True)))
        kind, length = "text/plain; charset=utf-8", []
        if isinstance(answer, dict):
            answer, kind = f"{json.dumps(answer)}\n", "application/json"
        if isinstance(answer, str):
            length = [("Content-Length", str(len(answer.encode())))]
            answer = iter([answer])
        start_response("200 OK", [("Content-Type", kind), *length])
        return (part.encode() for part in answer)


def not_found(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    start_response("404 Not Found", [("Content-Type", "text/plain"), ("Content-Length", "10")])
    return [b"not found\n"]
