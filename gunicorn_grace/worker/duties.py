"""What keeps a worker beside its requests: holds, and the callbacks of a shutdown.

A worker that was told to go finishes its requests and goes. A hold keeps it for work that is not a
request; a callback runs in it once a phase has begun. A hold counts in the worker that takes it.
Callbacks are registered anywhere (with ``preload_app`` in the arbiter, and inherited by fork), and
run in workers alone.

How a worker learns of T0: a thread looks at the shared memory, :data:`LOOK_EVERY` seconds apart (a
greenlet in a gevent worker, which has patched ``_thread`` by then). It exists only where a callback
is registered. A signal from the arbiter would need a main thread that is free to run its handler,
it would interrupt system calls of C code that does not retry them, and it would be lost between the
fork and gunicorn's ``init_signals``. Memory has none of these faults, and workers that boot during
the shutdown need no case of their own.
"""

from __future__ import annotations

import _thread
import functools
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from ..shared.memory import NS, Memory, Record
from ..shared.phase import Phase

LOOK_EVERY = 0.25
"""Seconds between two looks for a shutdown while there is none. They were measured to cost a worker
0.02 % of a CPU."""

LOOK_EVERY_WHILE_TERMINATING = 0.05

NAMED = 20
"""How many holds and callbacks one log line names; it gives the number of the others."""


class Holds:
    """The holds of this worker.

    :param record: the worker's record, which counts them.
    """

    def __init__(self, record: Record) -> None:
        self.pid = os.getpid()
        """A child that the application forks inherits this object, and must not write into its
        parent's record."""
        self._record = record
        # Re-entrant: a signal handler of the application may take a hold.
        self._lock = threading.RLock()
        self._held: dict[object, tuple[str, int]] = {}

    def take(self, name: str) -> object:
        """Count a hold.

        :returns: the token that gives it back.
        """
        token = object()
        with self._lock:
            self._held[token] = (name, time.monotonic_ns())
            self._record.holds = len(self._held)
        return token

    def give_back(self, token: object) -> None:
        """Count a hold no longer. In a forked child it is the parent's, and stays."""
        if os.getpid() == self.pid:
            with self._lock:
                del self._held[token]
                self._record.holds = len(self._held)

    def held(self) -> list[tuple[str, int]]:
        """The name of each hold, and since when it is held (ns), the oldest first."""
        with self._lock:
            return list(self._held.values())


class Callback:
    """A function that was registered for a phase.

    :param phase: the phase.
    :param function: the function.
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
        of_a_class = f"of {inner.__class__.__module__}"
        where = f"{code.co_filename}:{code.co_firstlineno}" if code else of_a_class
        return f"{DECORATORS[self.phase]} callback {name} ({where})"


DECORATORS = {Phase.LAME_DUCK: "on_lame_duck", Phase.DRAINING: "on_drain"}

registered: dict[Phase, list[Callback]] = {phase: [] for phase in DECORATORS}
"""The callbacks, in the order in which they were registered, which is the order in which they
run."""


class CallbackRunner:
    """Runs the callbacks of this worker when they are due.

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

    def due(self) -> list[Callback]:
        """The callbacks that the phase asks for and that have not ended yet, in the order in which
        they are to run.

        Each runs once per shutdown. One that was taken back, or whose trigger expired, is over: the
        next is another.
        """
        header = self._memory.header
        phase = header.phase
        if not self._memory.is_terminating() or (phase == Phase.STOPPED and not self._leaving):
            return []
        wanted = []
        if not header.upgraded:
            # Another arbiter serves the same sockets: then there is no lame duck, and a callback
            # that takes the address out of a directory would take the new one out.
            wanted += registered[Phase.LAME_DUCK]
        if phase >= Phase.DRAINING or self._leaving:
            wanted += registered[Phase.DRAINING]
        shutdown = header.consumed
        return [callback for callback in wanted if (shutdown, callback) not in self._ended]

    def run(self, callback: Callback) -> BaseException | None:
        """Run a callback in a thread of its own, for as long as it may take.

        :returns: what it raised, ``SystemExit`` and the like included; a ``TimeoutError`` if it did
            not end in time: then its thread goes on.
        """
        shutdown = self._memory.header.consumed
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
            name = f"gunicorn-grace {callback}"
            threading.Thread(target=body, name=name, daemon=True).start()
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
        """Start to look out for the shutdown, if there is a callback."""
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
            while self._watching:
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
            self._log.error("gunicorn-grace: %s, and is no longer waited for", error)
        elif error is not None:
            self._log.error("gunicorn-grace: %s failed", callback, exc_info=error)

    def leave(self) -> None:
        """The worker has served its last request. In a shutdown, whatever the phase, its callbacks
        run now."""
        self._leaving = True

    def left(self) -> list[str]:
        """The callbacks that still have to run, as the log names them."""
        return list(map(str, self.due())) if self._watching else []


class Duties:
    """What this worker has to do before it may go, beside its requests.

    :param holds: its holds.
    :param callbacks: its callbacks.
    :param log: gunicorn's logger.
    """

    def __init__(self, holds: Holds, callbacks: CallbackRunner, log: Any) -> None:
        self.holds = holds
        self.callbacks = callbacks
        self._log = log

    def left(self) -> list[str]:
        """What still keeps the worker, as the log names it."""
        now = time.monotonic_ns()
        held = [
            f"hold {name!r} for {(now - since) / NS:.1f} s" for name, since in self.holds.held()
        ]
        return held + self.callbacks.left()

    def tell_left(self, when: str) -> None:
        """Log what still keeps the worker, if anything does."""
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


this_workers: Duties | None = None
"""The duties of this worker; ``None`` in every other process."""
