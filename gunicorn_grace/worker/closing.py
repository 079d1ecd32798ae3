"""The body of a WSGI response, with functions to call when the server closes it. Runs in
workers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator


class Closing:
    """A response's body with functions that run when the server closes it. All of them run, in
    order, even if one raises.

    It does the same as werkzeug's ``ClosingIterator``. werkzeug itself is not used, because no part
    of it can be imported without its HTTP server and its test client. That import takes 36 ms and
    1 MiB in each worker, even if the application uses Django.

    :param body: the application's iterable.
    :param closes: the functions, which take no argument.
    """

    def __init__(self, body: Iterable[bytes], *closes: Callable[[], object]) -> None:
        self._body = iter(body)
        self._closes = closes

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return next(self._body)

    def close(self) -> None:
        """Run the functions. The server calls this once, even after an error (PEP 3333).

        :raises BaseException: the exception that the last failing function raised.
        """
        with contextlib.ExitStack() as stack:
            for close in reversed(self._closes):
                stack.callback(close)


def closes_of(body: Iterable[bytes]) -> list[Callable[[], object]]:
    """Return a list of the ``close`` method of an application's iterable; an empty list if it has
    none."""
    return [body.close] if hasattr(body, "close") else []
