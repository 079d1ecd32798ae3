"""Deciding who answers a probe path: the application, or the plugin if the application has none.

The overlay asks the application first. The status of the answer shows whether the application has a
probe at this path. The overlay remembers that, because an application may log a traceback for each
request that it refuses (Django's ``DisallowedHost``), and a platform probes every few seconds.

A remembered refusal must not be wrong for other clients. An application may have a readiness probe
only for GET, only at one host, or only for a client with a certain header or address. If the
refusal of one request were remembered for the path, a stranger's request could replace the
application's own "not ready" by the plugin's answer, for the worker's whole life. So a refusal is
remembered only for requests that look the same to the application in every respect, and only if the
application has never answered the path itself. Runs in workers.
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
"""The maximum length, in characters, of a request that is remembered. Probes have a few hundred. A
stranger's request must not fill the memory."""

_OF_THE_CONNECTION = frozenset({"REMOTE_PORT", "wsgi.input_terminated"})

Request = tuple[tuple[str, str], ...]


class Ownership:
    """The memory of one process about the application's probes. Threads may share it.

    If two threads race, the application is asked at most once more than necessary.
    """

    def __init__(self) -> None:
        self._refused: set[Request] = set()
        self._theirs: set[tuple[str, str]] = set()

    def is_refused(self, request: Request | None) -> bool:
        """Whether the application has refused an identical request before and need not be asked.

        :param request: the request, from :func:`request_of`.
        """
        return request is not None and request in self._refused

    def learn(self, path: str, host: str, request: Request | None, status: str) -> bool:
        """Note the application's answer to a probe path.

        :param path: the path that was asked for.
        :param host: the host that was asked for.
        :param request: the request, from :func:`request_of`.
        :param status: the first three characters of the application's status.
        :returns: whether the application has a probe there. If not, the plugin answers.
        """
        is_missing = status in NO_SUCH_ROUTE
        if not is_missing and status not in REFUSALS:
            if request is not None and (path, host) not in self._theirs:
                if len(self._theirs) < LEARNED:
                    self._theirs.update(((path, ""), (path, host)))
                self._refused.clear()  # A refusal of this path may be among them.
            return True
        # The own probe of an application may answer 404 for a while. So a 404 is not remembered if
        # the application has answered this path at any host. The trusted hosts do not change, so
        # for other refusals only an answer at the same host counts. When there is no room for
        # another path of the application, nothing is remembered.
        mine = (path, "" if is_missing else host)
        if request is not None and mine not in self._theirs and len(self._theirs) < LEARNED:
            if len(self._refused) >= LEARNED:
                self._refused.clear()
            self._refused.add(request)
        return False


def request_of(environ: Mapping[str, Any]) -> Request | None:
    """Return everything in a request that the application may look at, except its body.

    :param environ: the request as WSGI names it: method, path, query, address, headers.
    :returns: the request; ``None`` if it must not be remembered, because it is neither GET nor HEAD
        or is longer than :data:`LONGEST`.
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
    """Do the same as :func:`request_of` for a request as ASGI names it.

    The headers are kept as they came. With the names of CGI, ``x_probe`` and ``x-probe`` would be
    the same, but an application may tell them apart.
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
