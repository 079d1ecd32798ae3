"""The duties of a worker in addition to its requests: holds, and the callbacks of a shutdown.

A dismissed worker finishes its requests and exits. A hold keeps it alive for work that is not a
request. A callback runs in it when a phase begins. A hold counts in the worker that takes it.
Callbacks may be registered in any process (with ``preload_app`` in the arbiter, from which workers
inherit them), but they run in workers only.

A thread learns of T0 from the shared memory, which it reads every :data:`LOOK_EVERY` seconds. In a
gevent worker it is a greenlet, because gevent has patched ``_thread`` by then. The thread exists
only if a callback is registered. A signal from the arbiter would be worse for three reasons: it
needs a main thread that is free to run the handler, it interrupts system calls of C code that does
not retry them, and it is lost between the fork and gunicorn's ``init_signals``. Memory has none of
these problems, and a worker that boots during the shutdown is not a special case.
"""

from __future__ import annotations

import _thread
import functools
import os
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

from ..shared.cells import NS, Record
from ..shared.memory import Memory
from ..shared.phase import Phase
from ..shared.text import printable

LOOK_EVERY = 0.25
"""Seconds between two reads of the shared memory before a shutdown. Measured cost: 0.02 % of a CPU
for each worker."""

LOOK_EVERY_WHILE_TERMINATING = 0.05

NAMED = 20
"""How many holds and callbacks one log line names. It only counts the others."""


class Holds:
    """The holds of this worker. Its methods may be called in any thread of the worker.

    :param record: the worker's record, in which the holds are counted.
    """

    def __init__(self, record: Record) -> None:
        self.pid: int = os.getpid()
        """The worker's pid. A child that the application forks inherits this object and must not
        write into its parent's record."""
        self._record = record
        # Re-entrant: a signal handler of the application may take a hold.
        self._lock = threading.RLock()
        self._held: dict[object, tuple[str, int]] = {}

    def take(self, name: str) -> object:
        """Count a hold.

        :param name: the name of the hold in the log.
        :returns: the token for :meth:`give_back`.
        """
        token = object()
        with self._lock:
            self._held[token] = (name, time.monotonic_ns())
            self._record.holds = len(self._held)
        return token

    def give_back(self, token: object) -> None:
        """Stop counting a hold. In a forked child this does nothing, because the hold belongs to
        the parent.

        :param token: what :meth:`take` returned.
        :raises KeyError: the hold was given back before.
        """
        if os.getpid() == self.pid:
            with self._lock:
                del self._held[token]
                self._record.holds = len(self._held)

    def held(self) -> list[tuple[str, int]]:
        """Return the name of each hold and its start in monotonic nanoseconds, the oldest
        first."""
        with self._lock:
            return list(self._held.values())


class Callback:
    """A function that was registered for a phase.

    :param phase: the phase.
    :param function: the function.
    :param timeout: seconds after which the worker no longer waits for it.
    """

    def __init__(self, phase: Phase, function: Callable[[], object], timeout: float) -> None:
        self.phase = phase
        self.function = function
        self.timeout = timeout

    def __str__(self) -> str:
        """The callback as the log names it: phase, function, file and line."""
        return f"{DECORATORS[self.phase]} callback {describe(self.function)}"


def describe(function: Any) -> str:
    """Return a function as the log names it: its name, file and line."""
    inner = function
    while isinstance(inner, functools.partial):
        inner = inner.func
    name = getattr(inner, "__qualname__", type(inner).__qualname__)
    code = getattr(inner, "__code__", None)
    of_a_class = f"of {inner.__class__.__module__}"
    where = f"{code.co_filename}:{code.co_firstlineno}" if code else of_a_class
    return f"{name} ({where})"


DECORATORS = {Phase.LAME_DUCK: "on_lame_duck", Phase.DRAINING: "on_drain"}

registered: dict[Phase, list[Callback]] = {phase: [] for phase in DECORATORS}
"""The callbacks in the order of their registration. They run in this order."""


class CallbackRunner:
    """Runs the callbacks of this worker when their phase begins.

    :ivar loop: the event loop of an ASGI worker, in which coroutines run; ``None`` in any other
        worker, where each coroutine gets a loop of its own.

    :param memory: the shared memory.
    :param log: gunicorn's logger.
    """

    def __init__(self, memory: Memory, log: Any) -> None:
        self._memory = memory
        self._log = log
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._ended: set[tuple[int, Callback]] = set()
        self._leaving = self._booted = self._watching = False
        self.loop: Any = None

    def due(self) -> list[Callback]:
        """Return the callbacks whose phase has begun and that have not run yet, in the order in
        which they run.

        Each callback runs once per shutdown. After a shutdown was taken back or its trigger
        expired, the next one is a new shutdown.
        """
        header = self._memory.header
        phase = header.phase
        if not self._memory.is_terminating() or (phase == Phase.STOPPED and not self._leaving):
            return []
        wanted = []
        if not header.upgraded:
            # If another arbiter serves the same sockets, there is no LAME_DUCK. A callback that
            # removes the address from a directory would remove the new instance.
            wanted += registered[Phase.LAME_DUCK]
        if phase >= Phase.DRAINING or self._leaving:
            wanted += registered[Phase.DRAINING]
        shutdown = header.consumed
        return [callback for callback in wanted if (shutdown, callback) not in self._ended]

    def run(self, callback: Callback) -> BaseException | None:
        """Run a callback in its own thread and wait for it up to its timeout.

        :param callback: the callback.
        :returns: the exception that it raised, including ``SystemExit``; a ``TimeoutError`` if it
            did not end in time, in which case its thread goes on; otherwise ``None``.
        :raises RuntimeError: the thread cannot be started.
        """
        shutdown = self._memory.header.consumed
        raised: list[BaseException] = []
        finished = threading.Event()

        def body() -> None:
            try:
                returned = callback.function()
                if isinstance(returned, Coroutine):
                    self._run_coroutine(returned)
            except BaseException as error:
                raised.append(error)
            finally:
                finished.set()

        try:
            name = f"gunicorn-grace {callback}"
            threading.Thread(target=body, name=name, daemon=True).start()
            if not finished.wait(callback.timeout):
                return TimeoutError(f"{callback} overran its timeout of {callback.timeout:g} s")
            return raised[0] if raised else None
        finally:
            self._ended.add((shutdown, callback))

    def _run_coroutine(self, coroutine: Coroutine[Any, Any, object]) -> None:
        import asyncio  # Here, because gevent patches it in other workers first.

        loop = self.loop
        if loop is not None and loop.is_running():
            asyncio.run_coroutine_threadsafe(coroutine, loop).result()
        else:
            asyncio.run(coroutine)

    def booted(self) -> None:
        """Let callbacks run from now on. Called just before the worker serves."""
        self._booted = True
        self.watch()

    def watch(self) -> None:
        """Start the thread that waits for the shutdown, if a callback is registered."""
        with self._lock:
            is_ours = self._booted and os.getpid() == self._pid
            if not is_ours or self._watching or not any(registered.values()):
                return
            self._watching = True
        try:
            _thread.start_new_thread(self._watch, ())
        except RuntimeError:
            self._watching = False
            self._log.exception("gunicorn-grace: callbacks will not run: cannot start a thread")

    def _watch(self) -> None:
        try:
            # Under gevent, this greenlet also goes on in a child that the application forks.
            while self._watching and not self._memory.is_inherited:
                for callback in self.due()[:1]:
                    self._run_and_tell(callback)
                if not self.due():
                    terminating = self._memory.is_terminating()
                    time.sleep(LOOK_EVERY_WHILE_TERMINATING if terminating else LOOK_EVERY)
        except BaseException:
            self._watching = False
            self._log.exception("gunicorn-grace: callbacks no longer run in this worker")

    def _run_and_tell(self, callback: Callback) -> None:
        error = self.run(callback)
        if isinstance(error, TimeoutError) and error.__traceback__ is None:
            self._log.error("gunicorn-grace: %s; the worker no longer waits for it", error)
        elif error is not None:
            self._log.error("gunicorn-grace: %s failed", callback, exc_info=error)

    def leave(self) -> None:
        """Note that the worker has served its last request. If a shutdown has begun, all callbacks
        that have not run become due now, even those of a later phase."""
        self._leaving = True

    def left(self) -> list[str]:
        """Return the callbacks that are due, as the log names them. The list is empty if the thread
        that would run them does not."""
        return list(map(str, self.due())) if self._watching else []


class Duties:
    """The work that this worker has to finish before it may leave, in addition to its requests.

    :param holds: its holds.
    :param callbacks: its callbacks.
    :param log: gunicorn's logger.
    """

    def __init__(self, holds: Holds, callbacks: CallbackRunner, log: Any) -> None:
        self.holds = holds
        self.callbacks = callbacks
        self._log = log

    def left(self) -> list[str]:
        """Return the holds and callbacks that still keep the worker, as the log names them."""
        now = time.monotonic_ns()
        held = [
            f"hold '{printable(name)}' for {(now - since) / NS:.1f} s"
            for name, since in self.holds.held()
        ]
        return held + self.callbacks.left()

    def tell_left(self, when: str) -> bool:
        """Log the holds and callbacks that still keep the worker, if there are any.

        :param when: the moment, as the log names it.
        :returns: whether there are any.
        """
        left = self.left()
        if left:
            more = f" and {len(left) - NAMED} more" if len(left) > NAMED else ""
            held = len(self.holds.held())
            self._log.warning(
                "gunicorn-grace: left %s: %d holds and %d callbacks: %s%s",
                when,
                held,
                len(left) - held,
                ", ".join(left[:NAMED]),
                more,
            )
        return bool(left)


this_workers: Duties | None = None
"""The duties of this worker; ``None`` in any other process."""
