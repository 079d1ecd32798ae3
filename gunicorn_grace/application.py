"""The functions for applications: callbacks of a shutdown, holds, and streams that end.

A dismissed worker finishes its requests and exits. Work that is not a request would be cut off,
because gunicorn knows only about requests. :func:`hold` keeps the worker alive for such work. In
any other process a hold does nothing, and a stream ends with its iterable, as in an instance that
serves. :mod:`gunicorn_grace.worker.duties` does the work.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar, overload

from .errors import UsageError
from .shared import memory
from .shared.phase import Phase
from .worker import duties
from .worker.duties import DECORATORS, Callback

CALLBACK_TIMEOUT = 5.0
"""The default timeout of a callback, in seconds."""

_F = TypeVar("_F", bound=Callable[[], object])
_T = TypeVar("_T")


@overload
def on_lame_duck(function: _F, /) -> _F: ...
@overload
def on_lame_duck(*, timeout: float = CALLBACK_TIMEOUT) -> Callable[[_F], _F]: ...
def on_lame_duck(function: Any = None, /, *, timeout: float = CALLBACK_TIMEOUT) -> Any:
    """Call a function in every worker when the shutdown begins: ``@on_lame_duck``, or
    ``@on_lame_duck(timeout=20)``.

    The function takes no arguments. It runs in its own thread (in a gevent worker, a greenlet)
    while the worker serves requests. A coroutine function runs in the loop of an ASGI worker; in
    any other worker it gets a loop of its own. Callbacks run one after another in the order of
    registration, once per shutdown, and the first one starts at most half a second after T0. A
    worker that boots later runs them when it has booted. Exceptions are logged. Callbacks do not
    run after SIGINT or SIGQUIT. These callbacks do not run in an instance that was replaced by
    SIGUSR2 either, because it has no LAME_DUCK and its successor serves the same address.

    :param function: the function.
    :param timeout: how many seconds it may take. After that the log names it, and the next callback
        starts.
    :returns: the function, or a decorator.
    :raises UsageError: it is not callable, or the timeout is not a positive number.
    """
    return _register(Phase.LAME_DUCK, function, timeout)


@overload
def on_drain(function: _F, /) -> _F: ...
@overload
def on_drain(*, timeout: float = CALLBACK_TIMEOUT) -> Callable[[_F], _F]: ...
def on_drain(function: Any = None, /, *, timeout: float = CALLBACK_TIMEOUT) -> Any:
    """Call a function in every worker when draining begins, that is when no new connections are
    accepted and the requests in flight are finished.

    It works like :func:`on_lame_duck`, whose callbacks all run first. The worker does not leave
    before the function has ended or the drain limit has passed. A worker that leaves during
    LAME_DUCK, for example because of ``max_requests``, runs the function before it leaves. An
    instance that was replaced by SIGUSR2 also runs it when it drains.

    :param function: the function.
    :param timeout: how many seconds it may take. After that the log names it, and the next callback
        starts.
    :returns: the function, or a decorator.
    :raises UsageError: it is not callable, or the timeout is not a positive number.
    """
    return _register(Phase.DRAINING, function, timeout)


def _register(phase: Phase, function: Any, timeout: Any) -> Any:
    name = f"@{DECORATORS[phase]}"
    if (
        isinstance(timeout, bool)
        or not isinstance(timeout, (int, float))
        or not 0 < timeout < math.inf
    ):
        raise UsageError(
            f"{name}(timeout={timeout!r}) must be a number of seconds > 0: "
            f"try timeout={CALLBACK_TIMEOUT:g}"
        )
    if function is None:
        return lambda function: _register(phase, function, timeout)
    if not callable(function):
        raise UsageError(
            f"{name} got {function!r}, which cannot be called: "
            "put it above a function without parameters"
        )
    duties.registered[phase].append(Callback(phase, function, float(timeout)))
    if duties.this_workers is not None:
        duties.this_workers.callbacks.watch()
    return function


@contextlib.contextmanager
def hold(name: str) -> Iterator[None]:
    """Keep this worker alive for work that is not a request: ``with hold("upload 42"):``.

    A dismissed worker waits for its holds as it does for requests in flight. In a shutdown it waits
    up to the drain limit, otherwise (SIGHUP, SIGTTOU, ``max_requests``) up to ``graceful_timeout``.
    Then the log names the holds that are left. After SIGINT and SIGQUIT the worker does not wait.
    The work itself is not stopped. Any thread or greenlet may take a hold, and a different one may
    give it back (``contextlib.ExitStack``). Outside a worker a hold does nothing.

    :param name: the name of the hold in the log.
    """
    ours = duties.this_workers
    if ours is None or os.getpid() != ours.holds.pid:
        yield
        return
    token = ours.holds.take(name)
    try:
        yield
    finally:
        ours.holds.give_back(token)


class _UntilTerminating(Generic[_T]):
    """An iterator that ends with the shutdown. It is not a generator, because closing a generator
    before its first item would not close the iterable."""

    def __init__(self, iterable: Iterable[_T], at: Phase) -> None:
        self._iterable: Iterable[_T] | None = iterable
        self._next = iter(iterable).__next__
        self._at = at

    def __iter__(self) -> _UntilTerminating[_T]:
        return self

    def __next__(self) -> _T:
        if self._iterable is None or _has_come(self._at):
            self.close()
            raise StopIteration
        return self._next()

    def close(self) -> None:
        iterable, self._iterable = self._iterable, None
        close = getattr(iterable, "close", None)
        if close is not None:
            close()


class _AsyncUntilTerminating(Generic[_T]):
    """The same for an asynchronous iterable."""

    def __init__(self, iterable: AsyncIterable[_T], at: Phase) -> None:
        self._iterable: AsyncIterable[_T] | None = iterable
        self._next = aiter(iterable).__anext__
        self._at = at

    def __aiter__(self) -> _AsyncUntilTerminating[_T]:
        return self

    async def __anext__(self) -> _T:
        if self._iterable is None or _has_come(self._at):
            await self.aclose()
            raise StopAsyncIteration
        return await self._next()

    async def aclose(self) -> None:
        iterable, self._iterable = self._iterable, None
        aclose = getattr(iterable, "aclose", None)
        if aclose is not None:
            await aclose()


def _has_come(phase: Phase) -> bool:
    now = memory.attached
    return now is not None and now.is_terminating() and now.phase() >= phase


@overload
def until_terminating(iterable: Iterable[_T], at: Phase = ...) -> Iterator[_T]: ...
@overload
def until_terminating(iterable: AsyncIterable[_T], at: Phase = ...) -> AsyncIterator[_T]: ...
def until_terminating(iterable: Any, at: Phase = Phase.LAME_DUCK) -> Any:
    """Iterate over ``iterable`` until the shutdown begins. An endless response then ends, and its
    client reconnects elsewhere. Without a shutdown the iterator yields all items.

    No item is lost, because the iterator checks for the shutdown before it takes each item. It does
    not interrupt a wait for the next item, so yield something every few seconds (server-sent
    events: a line ``: \\n\\n``). When the shutdown ends the stream, or when the server closes the
    iterator at the end of a response, ``iterable`` is closed too. Runs in any process.

    :param iterable: the items, synchronous or asynchronous.
    :param at: the phase that ends the stream. Use ``DRAINING`` for a stream that continues during
        the delay.
    :returns: an iterator over the items, asynchronous if ``iterable`` is.
    :raises UsageError: the phase is neither LAME_DUCK nor DRAINING.
    """
    if at not in DECORATORS:
        raise UsageError(
            f"until_terminating(at={at!s}) must be LAME_DUCK or DRAINING: "
            "only these phases end a stream"
        )
    if hasattr(iterable, "__aiter__"):
        return _AsyncUntilTerminating(iterable, at)
    return _UntilTerminating(iterable, at)
