"""How responses come to say ``Connection: close`` once the shutdown has begun. Worker."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from .classes import ASGI_HOOKS


class Shedding:
    """Makes gunicorn's requests ask for the end of their connection.

    :ivar known: classes of requests that need no more thought: they shed already, or cannot.

    :param is_terminating: whether the shutdown has begun.
    :param tracking: how the worker's requests are counted.
    """

    def __init__(self, is_terminating: Callable[[], bool], tracking: str | None = None) -> None:
        self.known: set[type] = set()
        self._others: dict[type, type] = {}
        self._is_terminating = is_terminating
        # Before gunicorn 27.0 its ASGI worker asks only after the response, which did not say
        # close.
        self._asks_too_late = tracking == ASGI_HOOKS

    def shed(self, request: Any) -> None:
        """Let a request say ``Connection: close`` that our parser did not make."""
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
            # Another layout (__slots__): such requests are served and counted, but not shed.
            shedding = cls
        self.known.add(shedding)

    def teach_the_parser(self) -> None:
        """Let gunicorn's HTTP/1 parser make shedding requests itself: in this process, a worker,
        alone."""
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
    """``cls``, but ``should_close`` says yes once the shutdown has begun, and never changes its
    mind.

    gunicorn asks when it writes the headers, again after the response, and asks the previous
    request before it reads the next one. An answer that turned from no to yes in between would
    close a connection that was promised to stay, with a request perhaps on its way (measured: 6 of
    6 pooled connections broke). So the first answer is kept.

    A subclass, and not an attribute on each request: that would be a reference cycle for the
    collector every time.

    :param cls: the class of a request.
    :param is_terminating: whether the shutdown has begun.
    :returns: ``cls`` itself for requests that have no ``should_close``.
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
