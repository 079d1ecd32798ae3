"""What an application does about the shutdown: callbacks, work that is no request, streams that
end.

Without it every application would poll ``is_terminating()`` in a thread of its own, and what it
does in such a thread would be cut off in the middle, because gunicorn knows of requests alone.

Everything here belongs to one process, and only a worker does anything: callbacks are registered
anywhere (with ``preload_app`` in the arbiter, and inherited by fork), but run in workers; a hold
counts in the worker that takes it. In any other process a hold does nothing and a stream ends with
its iterable, as in an instance that serves.

How a worker learns of T0: a thread looks at the shared memory, :data:`LOOK_EVERY` seconds apart (a
greenlet in a gevent worker, which has patched ``_thread`` by then). It exists only where a callback
is registered. A signal from the arbiter would need a main thread that is free to run its handler,
interrupt system calls of C code that does not retry them, and be lost between the fork and
gunicorn's ``init_signals``; memory is none of that, and workers that boot during the shutdown need
no case of their own.
"""

from __future__ import annotations

import _thread
import contextlib
import functools
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar, overload

from .errors import UsageError
from .shared import memory as st
from .shared.phase import Phase

LOOK_EVERY = 0.25
"""Seconds between two looks for a shutdown while there is none. They were measured to cost a worker
0.02 % of a CPU."""

LOOK_EVERY_WHILE_TERMINATING = 0.05

CALLBACK_TIMEOUT = 5.0
"""Seconds that a callback has, unless it is given others."""

NAMED = 20
"""How many holds and callbacks one log line names; of the others it says how many they are."""

_F = TypeVar("_F", bound=Callable[[], object])
_T = TypeVar("_T")


class Callback:
    """A function that was registered for a phase.

    :param timeout: seconds after which it is no longer waited for.
    """

    def __init__(self, phase: Phase, function: Callable[[], object], timeout: float) -> None:
        self.phase = phase
        self.function = function
        self.timeout = timeout

    def __str__(self) -> str:
        """As the log names it: what it was registered for, function, file and line."""
        inner: Any = self.function
        while isinstance(inner, functools.partial):
            inner = inner.func
        name = getattr(inner, "__qualname__", type(inner).__qualname__)
        code = getattr(inner, "__code__", None)
        where = (
            f"{code.co_filename}:{code.co_firstlineno}"
            if code
            else f"of {inner.__class__.__module__}"
        )
        return f"{DECORATORS[self.phase]} callback {name} ({where})"


DECORATORS = {Phase.LAME_DUCK: "on_lame_duck", Phase.DRAINING: "on_drain"}

callbacks: dict[Phase, list[Callback]] = {phase: [] for phase in DECORATORS}
"""In the order in which they were registered, which is the order in which they run."""


class Duties:
    """What a worker has to do before it may go, beside its requests: callbacks that are due, and
    holds.

    :param cells: where its slot is; a private scrap for a worker that has none.
    :param holds_cell: of these, the one that counts the holds.
    """

    def __init__(self, state: st.State, cells: memoryview[int], holds_cell: int, log: Any) -> None:
        self.state = state
        self.log = log
        self.pid = os.getpid()
        """A child that the application forks inherits this object, and must not write into its
        parent's slot."""
        self._cells, self._cell = cells, holds_cell
        # Re-entrant: a signal handler of the application may take a hold.
        self._lock = threading.RLock()
        self._held: dict[object, tuple[str, int]] = {}
        self._ended: set[tuple[int, Callback]] = set()
        self._leaving = self._booted = self._watching = False

    # -- holds ----

    def take(self, name: str) -> object:
        """Count a hold; what is returned gives it back."""
        token = object()
        with self._lock:
            self._held[token] = (name, time.monotonic_ns())
            self._cells[self._cell] = len(self._held)
        return token

    def give_back(self, token: object) -> None:
        """Count it no longer. In a forked child it is the parent's, and stays."""
        if os.getpid() == self.pid:
            with self._lock:
                del self._held[token]
                self._cells[self._cell] = len(self._held)

    def held(self) -> list[tuple[str, int]]:
        """The name of each hold, and since when it is held (ns), the oldest first."""
        with self._lock:
            return list(self._held.values())

    # -- callbacks ----

    def due(self) -> list[Callback]:
        """The callbacks that the phase asks for and that have not ended yet, in the order in which
        they are to run.

        Each runs once a shutdown. One that was taken back, or whose trigger expired, is over: the
        next is another.
        """
        cells = self.state.cells
        if not self.state.is_terminating() or (
            cells[st.PHASE] == Phase.STOPPED and not self._leaving
        ):
            return []
        wanted = []
        if not cells[st.UPGRADED]:
            # Another arbiter serves the same sockets: then there is no lame duck, and whoever takes
            # the address out of a directory would take the new one out.
            wanted += callbacks[Phase.LAME_DUCK]
        if cells[st.PHASE] >= Phase.DRAINING or self._leaving:
            wanted += callbacks[Phase.DRAINING]
        shutdown = cells[st.CONSUMED]
        return [callback for callback in wanted if (shutdown, callback) not in self._ended]

    def run(self, callback: Callback) -> BaseException | None:
        """Run a callback in a thread of its own, for as long as it may take.

        :returns: what it raised, ``SystemExit`` and the like included; a ``TimeoutError`` if it did
            not end in time: then its thread goes on.
        """
        shutdown = self.state.cells[st.CONSUMED]
        raised: list[BaseException] = []
        finished = threading.Event()

        def body() -> None:
            try:
                callback.function()
            except BaseException as error:
                raised.append(error)
            finally:
                finished.set()

        try:
            threading.Thread(target=body, name=f"gunicorn-grace {callback}", daemon=True).start()
            if not finished.wait(callback.timeout):
                return TimeoutError(f"{callback} overran its timeout of {callback.timeout:g} s")
            return raised[0] if raised else None
        finally:
            self._ended.add((shutdown, callback))

    def booted(self) -> None:
        """The worker is about to serve: callbacks may run from now on."""
        self._booted = True
        self.watch()

    def watch(self) -> None:
        """Look out for the shutdown, if there is a callback and nobody does yet."""
        with self._lock:
            if (
                not self._booted
                or self._watching
                or os.getpid() != self.pid
                or not any(callbacks.values())
            ):
                return
            self._watching = True
        try:
            _thread.start_new_thread(self._watch, ())
        except RuntimeError:
            self._watching = False
            self.log.exception(
                "gunicorn-grace: callbacks will not run: there is no thread to be had"
            )

    def _watch(self) -> None:
        try:
            while self._watching:
                for callback in self.due()[:1]:
                    self._run_and_tell(callback)
                if not self.due():
                    time.sleep(
                        LOOK_EVERY_WHILE_TERMINATING if self.state.is_terminating() else LOOK_EVERY
                    )
        except BaseException:
            self._watching = False
            self.log.exception("gunicorn-grace: callbacks run no more in this worker")

    def _run_and_tell(self, callback: Callback) -> None:
        error = self.run(callback)
        if isinstance(error, TimeoutError) and error.__traceback__ is None:
            self.log.error("gunicorn-grace: %s, and is no longer waited for", error)
        elif error is not None:
            self.log.error("gunicorn-grace: %s failed", callback, exc_info=error)

    # -- the end ----

    def leave(self) -> None:
        """The worker has served its last request. In a shutdown, whatever the phase, its callbacks
        run now."""
        self._leaving = True

    def left(self) -> list[str]:
        """What still keeps the worker, as the log names it."""
        now = time.monotonic_ns()
        found = [f"hold {name!r} for {(now - since) / st.NS:.1f} s" for name, since in self.held()]
        if self._watching:
            found += map(str, self.due())
        return found

    def tell_left(self, when: str) -> None:
        """Log what still keeps the worker, if anything does."""
        left = self.left()
        if left:
            more = f" and {len(left) - NAMED} more" if len(left) > NAMED else ""
            held = len(self.held())
            self.log.warning(
                "gunicorn-grace: left %s: %d holds and %d callbacks: %s%s",
                when,
                held,
                len(left) - held,
                ", ".join(left[:NAMED]),
                more,
            )


current: Duties | None = None
"""The duties of this worker; ``None`` in every other process."""


# -- what the application calls ----


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
    callbacks[phase].append(Callback(phase, function, float(timeout)))
    if current is not None:
        current.watch()
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
    duties = current
    if duties is None or os.getpid() != duties.pid:
        yield
        return
    token = duties.take(name)
    try:
        yield
    finally:
        duties.give_back(token)


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
        now = st.current
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
