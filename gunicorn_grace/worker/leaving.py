"""How a worker leaves: only the arbiter dismisses it, and only when it has done its duties.

Worker; the handlers run in its main thread.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from typing import Any

from ..shared.memory import NS, Memory, Record
from .classes import adapt
from .draining import TICK, Draining
from .duties import Duties
from .unfinished import Unfinished


class Leaving:
    """Whether this worker may go, and until when it may stay.

    :ivar is_hurried: whether this worker was told to go at once, by SIGINT, SIGQUIT or SIGABRT.

    :param memory: the shared memory.
    :param record: the worker's record.
    :param is_counted: whether that record is in the shared memory.
    :param draining: the worker's connections.
    :param duties: its holds and callbacks.
    :param unfinished: logs what is in flight.
    """

    def __init__(
        self,
        memory: Memory,
        record: Record,
        is_counted: bool,
        draining: Draining,
        duties: Duties,
        unfinished: Unfinished,
    ) -> None:
        self._memory = memory
        self._record = record
        self._is_counted = is_counted
        self._draining = draining
        self._duties = duties
        self._unfinished = unfinished
        self._told_to_leave = 0
        self.is_hurried = False

    def is_dismissed(self) -> bool:
        """Whether the arbiter has told this worker to go. A worker that is not counted goes at any
        SIGTERM."""
        return not self._is_counted or self._record.dismissed != 0

    def note_sigterm(self) -> None:
        """Let the arbiter know of a SIGTERM. If it did not send it, it knows whether the whole
        group got it."""
        self._record.term_seen = time.monotonic_ns()

    def note_cut_off(self) -> None:
        """Keep how many requests are cut off now: their ``post_request`` still runs while the
        worker is torn down."""
        self.is_hurried = True
        self._record.cut_off = self._record.in_flight

    def may_leave(self, worker: Any) -> bool:
        """Whether a SIGTERM means this worker. With ``dumb-init`` or ``tini -g`` it comes to the
        whole process group: then it is not the arbiter's word.

        :param worker: gunicorn's worker.
        :raises SystemExit: the worker has not booted, and goes at once.
        """
        try:
            self.note_sigterm()
            is_orphan = os.getppid() != worker.ppid
            if not (self.is_dismissed() or is_orphan or self._memory.header.failed):
                return False
            if not worker.booted:
                # gunicorn 22.0 to 27.0 would finish loading the application first.
                worker.alive = False  # Where the code that loads catches SystemExit.
                sys.exit(0)
            self._limit_drain(worker.cfg)
            self._draining.watch()
        except Exception:
            worker.log.exception(
                "gunicorn-grace: failed at SIGTERM; the worker stops the way plain gunicorn stops it"
            )
        return True

    def _limit_drain(self, cfg: Any) -> None:
        """Give gunicorn's worker the drain limit of the whole instance as its
        ``graceful_timeout``."""
        now, limit = time.monotonic_ns(), self._memory.header.drain_limit
        # gunicorn goes on sending SIGTERM to a worker too many.
        self._told_to_leave = self._told_to_leave or now
        if limit:
            cfg.settings["graceful_timeout"].value = max(0.0, (limit - now) / NS)

    def stay(self, worker: Any) -> None:
        """Keep a worker that has served its last request for as long as it has duties, and may.

        Here, and not in ``worker_exit``: by then gunicorn has closed the file of the worker's
        heartbeat (22.0 to 27.0), and outside a shutdown would abort it after ``timeout``.

        :param worker: gunicorn's worker.
        """
        self._duties.callbacks.leave()
        if self.is_hurried or not self._duties.left():
            return
        # The worker no longer serves. What another process has as well stays open there; what this
        # worker alone has would hang: its own listeners (reuse_port), and the connections that
        # gthread and sync leave to the process' end.
        for sock in worker.sockets:
            with contextlib.suppress(OSError):
                sock.close()
        self._draining.hang_up_all_but_the_busy()
        told = self._told_to_leave or time.monotonic_ns()
        own_limit = told + round(worker.cfg.graceful_timeout * NS)
        while self._duties.left() and not self.is_hurried:
            now, drain_limit = time.monotonic_ns(), self._memory.header.drain_limit
            limit = drain_limit or own_limit
            what = "the end of the drain" if drain_limit else "graceful_timeout"
            self._unfinished.tell_before(what, limit, now)
            if now >= limit:
                return
            worker.notify()
            time.sleep(TICK)

    def answer_signals(self, worker: Any) -> None:
        """Put our handlers in front of the worker's own: who may dismiss it, and until when it may
        take its time.

        They go into the worker's class, which in this process, after the fork, has this one
        instance. An instance that changes its class or gets attributes of its own is looked up the
        slow way from then on (CPython 3.11 to 3.13, inline values; 20,000 instructions a request
        were measured).

        :param worker: gunicorn's worker.
        """
        cls: Any = type(worker)
        leave, serve = cls.handle_exit, cls.run

        def handle_exit(worker: Any, sig: int, frame: Any) -> None:
            # uvicorn-worker sends its SIGQUIT here as well.
            if sig != signal.SIGTERM or self.may_leave(worker):
                self.is_hurried |= sig != signal.SIGTERM
                leave(worker, sig, frame)

        def handle_winch(worker: Any, sig: int, frame: Any) -> None:
            """The arbiter's poke, or a terminal that was resized."""
            try:
                self._draining.watch()
            except Exception:
                worker.log.exception("gunicorn-grace: failed to watch the drain; gunicorn goes on")

        def run(worker: Any) -> None:
            serve(worker)
            try:
                self.stay(worker)
            except Exception:
                worker.log.exception(
                    "gunicorn-grace: failed to wait for holds and callbacks; the worker leaves"
                )

        cls.handle_exit, cls.handle_winch, cls.run = handle_exit, handle_winch, run
        try:
            adapt(
                worker,
                lambda: self.may_leave(worker),
                self.is_dismissed,
                self._memory.is_terminating,
            )
        except Exception:
            worker.log.exception(
                "gunicorn-grace: failed to adapt %s; it stops the way plain gunicorn stops it",
                cls.__name__,
            )
