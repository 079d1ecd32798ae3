"""How a worker leaves: only the arbiter dismisses it, and it finishes its duties first.

Runs in workers; the handlers run in the main thread.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from typing import Any

from ..shared.cells import NS, Record
from ..shared.memory import Memory
from .classes import adapt, is_async
from .draining import TICK, Draining
from .duties import Duties
from .lingering import PATIENCE
from .sigterm import Sigterm, ours
from .unfinished import END_OF_DRAIN, INTERRUPTED, Unfinished
from .waiting import Waiting

LATER_THAN_THE_ARBITER = 0.5
"""Seconds after the drain limit at which a worker would cut its requests off itself. The arbiter
sends it SIGKILL at the limit. If the worker were first, it would count these requests out as if
they had been answered."""


class Leaving:
    """Decides whether this worker may leave, and how long it may stay.

    :ivar is_hurried: whether this worker was told to leave at once, by SIGINT, SIGQUIT or SIGABRT.

    :param memory: the shared memory.
    :param record: the worker's record.
    :param is_counted: whether that record is in the shared memory.
    :param draining: the worker's connections.
    :param duties: the worker's holds and callbacks.
    :param unfinished: logs what is in flight.
    :param waiting: counts the requests that the worker has accepted but not begun.
    :param sigterm: calls the application's SIGTERM handlers after the worker's own.
    """

    def __init__(
        self,
        memory: Memory,
        record: Record,
        is_counted: bool,
        draining: Draining,
        duties: Duties,
        unfinished: Unfinished,
        waiting: Waiting,
        sigterm: Sigterm,
    ) -> None:
        self._memory = memory
        self._record = record
        self._is_counted = is_counted
        self._draining = draining
        self._duties = duties
        self._unfinished = unfinished
        self._waiting = waiting
        self._pid = os.getpid()
        self._told_to_leave = 0
        self._sigterm = sigterm
        self.is_hurried: bool = False

    def is_dismissed(self) -> bool:
        """Whether the arbiter has dismissed this worker. A worker that is not counted leaves at any
        SIGTERM."""
        return not self._is_counted or self._record.dismissed != 0

    def note_sigterm(self) -> None:
        """Store the time of a SIGTERM for the arbiter. If the arbiter did not send it, it can see
        from this that the whole process group got one."""
        self._record.term_seen = time.monotonic_ns()

    def note_cut_off(self) -> None:
        """Store how many requests are cut off now. Their ``post_request`` still runs while the
        worker is torn down, so the number in flight would later show too few."""
        self.is_hurried = True
        self._record.cut_off = self._record.in_flight
        self._waiting.look_last()

    def may_leave(self, worker: Any) -> bool:
        """Whether gunicorn is to act on a SIGTERM. Called in the signal handler.

        With ``dumb-init`` or ``tini -g`` the whole process group gets the signal, and then it is
        not an order from the arbiter. A child that the application has forked acts on it as under
        plain gunicorn.

        :param worker: gunicorn's worker.
        :raises SystemExit: the worker may leave and has not booted, so it exits at once.
        """
        if self._is_a_child():
            return True
        try:
            self.note_sigterm()
            is_orphan = os.getppid() != worker.ppid
            if not (self.is_dismissed() or is_orphan or self._memory.header.failed):
                return False
            if not worker.booted:
                # gunicorn 22.0 to 27.0 would finish loading the application first.
                worker.alive = False  # In case the loading code catches SystemExit.
                sys.exit(0)
            self._limit_drain(worker.cfg)
            self._draining.accepting.stop(worker)
            self._waiting.watch()
            self._draining.watch()
        except Exception:
            worker.log.exception(
                "gunicorn-grace: failed at SIGTERM; "
                "the worker stops the way plain gunicorn stops it"
            )
        return True

    def _is_a_child(self) -> bool:
        """Whether this process is a child that the application has forked from the worker. It
        compares pids because a signal handler may run before the fork hooks of the child."""
        return os.getpid() != self._pid

    def _limit_drain(self, cfg: Any) -> None:
        """Set the ``graceful_timeout`` of gunicorn's worker so that it ends just after the drain
        limit of the whole instance."""
        now, limit = time.monotonic_ns(), self._memory.header.drain_limit
        # gunicorn repeats SIGTERM to a surplus worker, and only the first one counts.
        self._told_to_leave = self._told_to_leave or now
        if limit:
            left = max(0.0, (limit - now) / NS)
            cfg.settings["graceful_timeout"].value = left + LATER_THAN_THE_ARBITER

    def stay(self, worker: Any) -> None:
        """Wait, after the last request, while the worker has duties or while a client is still
        sending a body that was not read. The wait ends at the drain limit; without one, when
        ``graceful_timeout`` is over.

        Only the heartbeat file is touched here, because the worker's own ``notify`` may do more:
        that of pulpcore's classes ends the process if the database is gone.

        This does not run in ``worker_exit``, because by then gunicorn has closed the heartbeat file
        (22.0 to 27.0). Outside a shutdown the arbiter would then abort the worker after
        ``timeout``.

        :param worker: gunicorn's worker.
        """
        if self._is_a_child():
            return
        self._duties.callbacks.leave()
        if self.is_hurried or not self._is_kept():
            return
        # The worker no longer serves. Sockets that it shares with another process stay open there.
        # Clients of the others would hang: of its own listeners (reuse_port), and of the
        # connections that gthread and sync leave open until the process ends.
        for sock in worker.sockets:
            with contextlib.suppress(OSError):
                sock.close()
        self._draining.hang_up_all_but_the_busy()
        told = self._told_to_leave or time.monotonic_ns()
        own_limit = told + round(worker.cfg.graceful_timeout * NS)
        while self._is_kept() and not self.is_hurried and not self._is_a_child():
            now, drain_limit = time.monotonic_ns(), self._memory.header.drain_limit
            if not self._duties.left() and not drain_limit and now >= told + PATIENCE * NS:
                return  # When a worker recycles itself, its replacement starts only after its exit.
            limit = drain_limit or own_limit
            what = END_OF_DRAIN if drain_limit else "graceful_timeout"
            self._unfinished.tell_before(what, limit, now)
            if now >= limit:
                return
            worker.tmp.notify()
            time.sleep(TICK)

    def _is_kept(self) -> bool:
        return bool(self._duties.left() or self._draining.lingering.expected())

    def answer_signals(self, worker: Any) -> None:
        """Install the plugin's handlers in front of the worker's own. They decide who may dismiss
        the worker and how long it may stay.

        They are installed in the worker's class. After the fork this process has only one instance
        of it. The instance itself is not changed: if its class changes or it gets attributes of its
        own, CPython looks its attributes up more slowly from then on (3.11 to 3.13, inline values;
        measured: 20,000 instructions per request).

        :param worker: gunicorn's worker.
        """
        cls: Any = type(worker)
        leave, serve, sigterm = cls.handle_exit, cls.run, self._sigterm

        @ours
        def handle_exit(worker: Any, sig: int, frame: Any) -> None:
            if self._is_a_child():
                # gunicorn does the same in a child. Its gthread handler also writes into a pipe
                # that the worker reads (24.1 to 27.0), so that handler is not called.
                worker.alive = False
                return
            # uvicorn-worker also calls this for SIGQUIT.
            if sig != signal.SIGTERM or self.may_leave(worker):
                self.is_hurried |= sig != signal.SIGTERM
                leave(worker, sig, frame)
                if sig == signal.SIGTERM:
                    sigterm.call_theirs(sig, frame)

        def handle_winch(worker: Any, sig: int, frame: Any) -> None:
            """Handle the arbiter's poke, or the resizing of a terminal."""
            if self._is_a_child():
                return
            try:
                self._waiting.watch()
                self._draining.watch()
                limit = self._memory.header.drain_limit
                self._unfinished.tell_if_stuck(END_OF_DRAIN, limit, time.monotonic_ns())
            except Exception:
                worker.log.exception("gunicorn-grace: failed to watch the drain; gunicorn goes on")

        def run(worker: Any) -> None:
            try:
                sigterm.take_back(worker, lambda: self.may_leave(worker))
            except Exception:
                worker.log.exception(
                    "gunicorn-grace: failed to take SIGTERM back; gunicorn goes on"
                )
            serve(worker)
            try:
                self.stay(worker)
            except Exception:
                worker.log.exception(
                    "gunicorn-grace: failed to wait for holds and callbacks; the worker leaves"
                )

        def handle_quit(worker: Any, sig: int, frame: Any) -> None:
            with contextlib.suppress(Exception):
                if self._unfinished.is_stuck() and not self._is_a_child():
                    self._unfinished.tell_at_once(INTERRUPTED)
            interrupt(worker, sig, frame)

        cls.handle_exit, cls.handle_winch, cls.run = handle_exit, handle_winch, run
        if is_async(cls):
            # The handler of gevent and eventlet only starts a greenlet, which calls worker_int.
            # That greenlet never runs if the interrupted one does not yield.
            interrupt, cls.handle_quit = cls.handle_quit, handle_quit
        try:
            sigterm.keep(worker)
            adapt(
                worker,
                self.is_dismissed,
                self._memory.is_terminating,
                self._draining.lingering.close,
            )
        except Exception:
            worker.log.exception(
                "gunicorn-grace: failed to adapt %s; it stops the way plain gunicorn stops it",
                cls.__name__,
            )
