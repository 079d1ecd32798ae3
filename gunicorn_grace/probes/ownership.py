"""Who answers a probe path: the application, or the plugin where the application has no probe.

The overlay asks the application first. Its status shows whether it has a probe there. That is worth
remembering, because an application may log a traceback for each request that it refuses (Django's
``DisallowedHost``), and a platform probes every few seconds.

What is remembered must not be wrong for anybody else. An application may have its readiness for GET
alone, at one host alone, or only for a client with a certain header or address. If a refusal of one
request were remembered for the path, a stranger's request could replace the application's own "not
ready" by the plugin's answer, for the worker's life. So a refusal is remembered for requests that
look the same to the application in every respect, and only where the application has never answered
the path itself. Runs in workers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .answers import METHODS

NO_SUCH_ROUTE = frozenset({"404", "405"})
"""Statuses that show that the application has no route at a path."""

REFUSALS = frozenset({"301", "302", "303", "307", "308", "400", "401", "403", "421"})
"""Statuses that show that the application refuses the client: an untrusted host (400, 421), a login
required (401, 403, a redirect)."""

LEARNED = 64
"""How many refused requests, and how many paths of the application, are remembered."""

LONGEST = 4096
"""Characters of a request that is remembered. Probes have a few hundred, and a stranger's request
must not fill the memory."""

_OF_THE_CONNECTION = frozenset({"REMOTE_PORT", "wsgi.input_terminated"})

Request = tuple[tuple[str, str], ...]


class Ownership:
    """What one process has learned about the application's probes. Threads may share it.

    A race of two threads costs at most one more question to the application.
    """

    def __init__(self) -> None:
        self._refused: set[Request] = set()
        self._theirs: set[tuple[str, str]] = set()

    def is_refused(self, request: Request | None) -> bool:
        """Whether the application has refused this very request before, so that it need not be
        asked.

        :param request: the request, from :func:`request_of`.
        """
        return request is not None and request in self._refused

    def learn(self, path: str, host: str, request: Request | None, status: str) -> bool:
        """Note the application's answer to a probe path.

        :param path: the path that was asked for.
        :param host: the host that was asked for.
        :param request: the request, from :func:`request_of`.
        :param status: the first three characters of the application's status.
        :returns: whether the application has answered. If not, the plugin answers.
        """
        is_missing = status in NO_SUCH_ROUTE
        if not is_missing and status not in REFUSALS:
            if request is not None and (path, host) not in self._theirs:
                if len(self._theirs) < LEARNED:
                    self._theirs.update(((path, ""), (path, host)))
                self._refused.clear()  # A refusal of this path may be among them.
            return True
        # An application whose own probe says 404 for a while has it all the same. Which host is
        # trusted does not change, so there the application's own answer at another host does not
        # count. When there is no room for another path of the application, nothing is learned.
        mine = (path, "" if is_missing else host)
        if request is not None and mine not in self._theirs and len(self._theirs) < LEARNED:
            if len(self._refused) >= LEARNED:
                self._refused.clear()
            self._refused.add(request)
        return False


def request_of(environ: Mapping[str, Any]) -> Request | None:
    """Return everything of a request that the application may look at, except its body.

    :param environ: the request as WSGI names it: method, path, query, address, headers.
    :returns: ``None`` if nothing may be learned from it: it is neither GET nor HEAD, or it is
        longer than a probe.
    """
    if environ["REQUEST_METHOD"] not in METHODS:
        return None
    return _bounded(
        sorted(
            (name, value)
            for name, value in environ.items()
            if type(value) is str and name not in _OF_THE_CONNECTION
        )
    )


def request_of_scope(scope: Mapping[str, Any]) -> Request | None:
    """Return the same of a request as ASGI names it.

    Its headers are kept as they came. If they got the names of CGI first, ``x_probe`` and
    ``x-probe`` would be the same, and an application may tell them apart.
    """
    if scope["method"] not in METHODS:
        return None
    parts = [(name, str(value)) for name, value in scope.items() if type(value) in (str, bytes)]
    for end in ("client", "server"):
        # The client's port changes with each connection.
        host, port = (scope.get(end) or ("", 0))[:2]
        parts.append((end, f"{host} {port if end == 'server' else ''}"))
    headers = [
        (name.decode("latin-1"), value.decode("latin-1"))
        for name, value in scope.get("headers", ())
    ]
    return _bounded([*sorted(parts), *headers])


def _bounded(parts: list[tuple[str, str]]) -> Request | None:
    is_short = sum(len(name) + len(value) for name, value in parts) <= LONGEST
    return tuple(parts) if is_short else None
