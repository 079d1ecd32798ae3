"""What an application calls: callbacks of a shutdown, holds, and streams that end.

A worker that was told to go finishes its requests and goes. Work that is not a request would be cut
off in the middle, because gunicorn knows of requests alone: :func:`hold` keeps the worker for it.
In any other process a hold does nothing and a stream ends with its iterable, as in an instance that
serves. :mod:`gunicorn_grace.worker.duties` does the work.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar, overload

from .errors import UsageError
from .shared import memory
from .shared.phase import Phase
from .worker import duties
from .worker.duties import DECORATORS, Callback

CALLBACK_TIMEOUT = 5.0
"""Seconds that a callback has, unless it is given others."""

_F = TypeVar("_F", bound=Callable[[], object])
_T = TypeVar("_T")


@overload
def on_lame_duck(function: _F, /) -> _F: ...
@overload
def on_lame_duck(*, timeout: float = CALLBACK_TIMEOUT) -> Callable[[_F], _F]: ...
def on_lame_duck(function: Any = None, /, *, timeout: float = CALLBACK_TIMEOUT) -> Any:
    """Call a function in every worker when the shutdown begins: ``@on_lame_duck``, or
    ``@on_lame_duck(timeout=20)``.

    It takes no arguments and runs beside the requests, in a thread (in a gevent worker, a greenlet)
    of its own: after those registered before it, once a shutdown, at most half a second after T0. A
    worker that boots later runs it then. What it raises is logged. It does not run after SIGINT or
    SIGQUIT, nor in an arbiter that was replaced by SIGUSR2.

    :param timeout: seconds; then the log names it, and the next one begins.
    :raises UsageError: it is a coroutine function, or no function; or the timeout is no positive
        number.
    """
    return _register(Phase.LAME_DUCK, function, timeout)


@overload
def on_drain(function: _F, /) -> _F: ...
@overload
def on_drain(*, timeout: float = CALLBACK_TIMEOUT) -> Callable[[_F], _F]: ...
def on_drain(function: Any = None, /, *, timeout: float = CALLBACK_TIMEOUT) -> Any:
    """Call a function in every worker when draining begins: no more connections come, and what is
    in flight is finished. As :func:`on_lame_duck`, whose callbacks all come first.

    The worker does not go before it has ended, or the drain limit has come. A worker that goes
    during LAME_DUCK, by ``max_requests`` say, runs it before it goes.
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
            f"{name}(timeout={timeout!r}) must be a number of seconds > 0: try timeout={CALLBACK_TIMEOUT:g}"
        )
    if function is None:
        return lambda function: _register(phase, function, timeout)
    if not callable(function):
        raise UsageError(
            f"{name} got {function!r}, which cannot be called: put it above a function without parameters"
        )
    import inspect  # Half of what importing this package would cost.

    if inspect.iscoroutinefunction(function):
        raise UsageError(
            f"{name} got the coroutine function {function.__qualname__}, and runs in a thread that has no loop: "
            "register a plain function that calls asyncio.run_coroutine_threadsafe"
        )
    duties.registered[phase].append(Callback(phase, function, float(timeout)))
    if duties.this_workers is not None:
        duties.this_workers.callbacks.watch()
    return function


@contextlib.contextmanager
def hold(name: str) -> Iterator[None]:
    """Keep this worker alive for work that is no request: ``with hold("upload 42"):``.

    A worker that was told to go waits for its holds, as it does for requests in flight: up to the
    drain limit in a shutdown, else (SIGHUP, SIGTTOU, ``max_requests``) up to ``graceful_timeout``.
    Then the log names those that are left. SIGINT and SIGQUIT do not wait. The work itself is not
    stopped. Any thread or greenlet may take a hold, and another one give it back
    (``contextlib.ExitStack``). Outside a worker it does nothing.

    :param name: what the log calls it.
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
    """An iterator, and not a generator, whose ``close`` would close nothing before its first
    item."""

    def __init__(self, iterable: Iterable[_T], at: Phase) -> None:
        self._iterable: Iterable[_T] | None = iterable
        self._next = iter(iterable).__next__
        self._at = at

    def __iter__(self) -> _UntilTerminating[_T]:
        return self

    def __next__(self) -> _T:
        now = memory.attached
        if self._iterable is None or (
            now is not None and now.is_terminating() and now.phase() >= self._at
        ):
            self.close()
            raise StopIteration
        return self._next()

    def close(self) -> None:
        iterable, self._iterable = self._iterable, None
        close = getattr(iterable, "close", None)
        if close is not None:
            close()


def until_terminating(iterable: Iterable[_T], at: Phase = Phase.LAME_DUCK) -> Iterator[_T]:
    """The items of ``iterable`` until the shutdown begins: so that an endless response ends, and
    its client comes back elsewhere. Where no shutdown begins, all of them.

    No item is lost: the shutdown is looked for before each one is asked for. What waits for its
    next item is not interrupted, so give it something to say every few seconds (server-sent events:
    a line ``: \\n\\n``). Closing it, as servers do at the end of a response, closes ``iterable``,
    and so does the end of the stream.

    :param at: the phase that ends it; ``DRAINING`` for a stream that shall go on through the delay.
    :raises UsageError: that phase is no part of a shutdown.
    """
    if at not in DECORATORS:
        raise UsageError(
            f"until_terminating(at={at!s}) must be LAME_DUCK or DRAINING: until then it is served"
        )
    return _UntilTerminating(iterable, at)
