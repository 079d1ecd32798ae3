"""Makes responses say ``Connection: close`` once the shutdown has begun. Runs in workers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from .classes import ASGI_HOOKS


class Shedding:
    """Makes gunicorn's requests close their connection.

    :ivar known: classes of requests that are not changed, because they already close their
        connection or cannot be made to.

    :param is_terminating: returns whether the shutdown has begun.
    :param tracking: how the worker's requests are counted.
    """

    def __init__(self, is_terminating: Callable[[], bool], tracking: str | None = None) -> None:
        self.known: set[type] = set()
        self._others: dict[type, type] = {}
        self._is_terminating = is_terminating
        # Before gunicorn 27.0 the ASGI worker asks should_close only after the response, whose
        # headers have not said close.
        self._asks_too_late = tracking == ASGI_HOOKS

    def shed(self, request: Any) -> None:
        """Change the class of a request so that its response says ``Connection: close``. This is
        for requests that were not created by the parser which :meth:`teach_the_parser` changes."""
        cls = type(request)
        if self._asks_too_late:
            self.known.add(cls)
            return
        shedding = self._others.get(cls)
        if shedding is None:
            shedding = self._others[cls] = shedding_class(cls, self._is_terminating)
        try:
            request.__class__ = shedding
        except TypeError:
            # The class has another layout (__slots__). Such requests are served and counted, but
            # their connection stays open.
            shedding = cls
        self.known.add(shedding)

    def teach_the_parser(self) -> None:
        """Let gunicorn's HTTP/1 parser create requests that close their connection. This changes
        only this worker process."""
        from gunicorn.http.parser import RequestParser

        parser: Any = RequestParser
        parser.mesg_class = shedding_class(parser.mesg_class, self._is_terminating)
        self.known.add(parser.mesg_class)
        protocol: Any = sys.modules.get("gunicorn.asgi.protocol")
        if protocol is not None and hasattr(protocol.ASGIProtocol, "_will_close"):
            made = shedding_class(protocol.CallbackRequest, self._is_terminating)
            protocol.CallbackRequest = made
            self.known.add(made)


def shedding_class(cls: type, is_terminating: Callable[[], bool]) -> type:
    """Return a subclass of ``cls`` whose ``should_close`` returns true once the shutdown has begun,
    and never changes its answer for a request.

    gunicorn calls ``should_close`` when it writes the headers and again after the response. It also
    calls it on the previous request before it reads the next one. If the answer became true in
    between, gunicorn would close a connection that the headers promised to keep, perhaps with a
    request on its way (measured: 6 of 6 pooled connections broke). So the first answer is kept.

    It is a subclass and not an attribute of each request, because such an attribute would create a
    reference cycle for the garbage collector every time.

    :param cls: the class of a request.
    :param is_terminating: returns whether the shutdown has begun.
    :returns: the subclass; ``cls`` itself if it has no ``should_close``.
    """
    should_close = getattr(cls, "should_close", None)
    if should_close is None:
        return cls

    def latched(self: Any) -> bool:
        answer: bool | None = self._grace_close
        if answer is None:
            answer = self._grace_close = bool(should_close(self)) or is_terminating()
        return answer

    return type(
        cls.__name__,
        (cls,),
        {"should_close": latched, "_grace_close": None, "__module__": cls.__module__},
    )
