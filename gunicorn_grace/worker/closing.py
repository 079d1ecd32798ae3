"""The body of a WSGI response, and what happens when the server closes it. Worker."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator


class Closing:
    """A response's body, and what is called when the server closes it: each of these, in turn, also
    if one raises.

    It is werkzeug's ``ClosingIterator`` without werkzeug, of which no part can be imported without
    its HTTP server and its test client: 36 ms and 1 MiB in each worker, also where the application
    is Django's.

    :param body: the application's iterable.
    :param closes: what is called.
    """

    def __init__(self, body: Iterable[bytes], *closes: Callable[[], object]) -> None:
        self._body = iter(body)
        self._closes = closes

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return next(self._body)

    def close(self) -> None:
        """Called by the server in any case, once (PEP 3333)."""
        with contextlib.ExitStack() as stack:
            for close in reversed(self._closes):
                stack.callback(close)


def closes_of(body: Iterable[bytes]) -> list[Callable[[], object]]:
    """The ``close`` of an application's iterable, if it has one."""
    return [body.close] if hasattr(body, "close") else []
