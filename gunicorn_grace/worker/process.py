"""A worker process: assembles the parts of the plugin that run in it.

:func:`join` runs in ``post_fork``. The other hooks call the parts later in the worker's life
(:mod:`gunicorn_grace.hooks`).
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from ..probes.answers import Answers, Situation
from ..probes.checks import registry
from ..shared.agreed import WORKERS_MARK
from ..shared.cells import Record
from ..shared.memory import Memory
from ..shared.settings import Settings
from . import duties as duties_module
from .classes import (
    HOOKS,
    WSGI,
    adapt_booted,
    is_sync,
    is_threaded,
    owner_of_requests,
    tracking,
)
from .counting import Counter
from .draining import Draining
from .duties import CallbackRunner, Duties, Holds
from .leaving import Leaving
from .lingering import Lingering
from .shedding import Shedding
from .sigterm import Sigterm
from .unfinished import Unfinished
from .waiting import Waiting


class WorkerProcess:
    """The parts of the plugin in one worker.

    :ivar tracking: how this worker's requests are counted: see
        :func:`~gunicorn_grace.worker.classes.tracking`.
    :ivar is_wrapped: whether the overlay counts the requests of this ASGI worker. The hooks must
        then not count them.
    :ivar is_leaving: whether this ASGI worker serves only requests that are on their way. Every
        response then says ``Connection: close``.

    :param memory: the shared memory.
    :param number: the number of the worker's slot; ``None`` when all slots are taken. The worker is
        then not counted, and everything else works.
    :param settings: the settings in use.
    :param log: gunicorn's logger.
    :param owner: returns what serves the request: the thread's number, the greenlet, or the task.
    :param threaded: whether requests are served in more than one thread.
    :param tracking: how the worker's requests are counted; ``None`` if they are not.
    """

    def __init__(
        self,
        memory: Memory,
        number: int | None,
        settings: Settings,
        log: Any,
        *,
        owner: Callable[[], Any] = threading.get_ident,
        threaded: bool = True,
        tracking: str | None = None,
    ) -> None:
        self.memory = memory
        self.number = number
        self.settings = settings
        self.log = log
        self.tracking = tracking
        self.is_wrapped = self.is_leaving = False
        record = Record.private() if number is None else memory.record(number)
        self.record: Record = record
        self.answers: Answers = Answers(settings)
        self.shedding: Shedding = Shedding(memory.is_terminating, tracking)
        self.counter: Counter = Counter(
            memory,
            record,
            settings,
            self.answers,
            self.shedding,
            log,
            owner=owner,
            threaded=threaded,
        )
        self.begin: Callable[[Any], None] = self.counter.begin
        self.end: Callable[[Any], None] = self.counter.end
        self.duties: Duties = Duties(Holds(record), CallbackRunner(memory, log), log)
        self.unfinished: Unfinished = Unfinished(self.counter, self.duties, log)
        lingering = Lingering(log)
        self.draining: Draining = Draining(
            memory, record, self.counter, self.unfinished, lingering, log
        )
        self.waiting: Waiting = Waiting(memory, record, self.counter, log)
        self.leaving: Leaving = Leaving(
            memory,
            record,
            number is not None,
            self.draining,
            self.duties,
            self.unfinished,
            self.waiting,
            Sigterm(log),
        )

    def situation(self) -> Situation:
        """Return the current state of the instance."""
        return Situation.of(self.memory, time.monotonic_ns())

    def detach(self) -> None:
        """Keep this process out of the instance, because it is a child that the application has
        forked. It may read the shared memory. The parts that it inherits write into private memory
        from now on."""
        self.memory.is_inherited = True
        self.counter.detach()
        private = Record.private()
        self.record.cells, self.record.begin = private.cells, private.begin

    def booted(self, worker: Any) -> None:
        """Note that the application is loaded and the worker is about to serve. Runs in
        ``post_worker_init``.

        :param worker: gunicorn's worker.
        """
        self.memory.is_booted_worker = True
        self.record.booted = 1  # First, because the worker is ready even if a later step fails.
        self.counter.note_probe_paths()
        self.unfinished.booted(worker)
        self.draining.booted(worker)
        self.waiting.booted(worker, owns_listeners=self.draining.owns_listeners)
        self.duties.callbacks.booted()
        self.shedding.teach_the_parser()
        adapt_booted(worker, self.memory.is_terminating)


this_worker: WorkerProcess | None = None
"""The parts of the plugin in this worker; ``None`` in any other process."""


def _leave_the_child() -> None:
    """Switch the parts of a worker off in a process that the application forks from it.

    Runs in that process, before any of its own code. Its signals, requests, threads and greenlets
    are not those of the worker, although gevent's greenlets go on in a child.
    """
    global this_worker
    ours, this_worker, duties_module.this_workers = this_worker, None, None
    if ours is not None:
        ours.detach()
        # A signal to the child would wake the worker through its pipe. In the worker, asyncio would
        # even take it for a signal of its own (Python 3.10 and 3.11; later versions do the same as
        # this line).
        with contextlib.suppress(ValueError):
            signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_leave_the_child)


def join(worker: Any, memory: Memory, number: int | None, settings: Settings) -> WorkerProcess:
    """Make this process a worker of the instance. Runs in ``post_fork``, before gunicorn sets the
    worker's signals.

    :param worker: gunicorn's worker.
    :param memory: the shared memory, inherited from the arbiter.
    :param number: the number of the worker's slot; ``None`` when all slots are taken.
    :param settings: the settings in use.
    :returns: the parts of the plugin in this worker.
    :raises SystemExit: the arbiter has already dismissed the worker.
    """
    global this_worker
    cls = type(worker)
    how = tracking(cls)
    process = this_worker = WorkerProcess(
        memory,
        number,
        settings,
        worker.log,
        owner=owner_of_requests(cls),
        threaded=is_threaded(cls),
        tracking=how,
    )
    duties_module.this_workers = process.duties
    registry.log = worker.log
    process.draining.sees_all = how in (HOOKS, WSGI)
    process.waiting.looks_early = not is_sync(cls)
    process.record.uncounted = int(how is None)
    process.record.pid = os.getpid()
    os.environ[WORKERS_MARK] = "1"
    # This runs after the threads of a gthread worker have been joined, so the requests that they
    # have served by then do not count as lost.
    atexit.register(process.waiting.look_last)
    leaving = process.leaving
    leaving.answer_signals(worker)
    # Until init_signals runs, the arbiter's handlers would swallow a SIGTERM, and stopping would
    # take 5 s longer (gunicorn#1910).
    if getattr(signal.getsignal(signal.SIGALRM), "__name__", "") == "grace_wake":
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, worker.handle_exit)
    if number is not None and leaving.is_dismissed():
        leaving.note_sigterm()
        sys.exit(0)
    return process


def is_in_reloader(worker: Any) -> bool:
    """Whether this code runs in the thread of gunicorn's reloader. In a gevent worker that is a
    greenlet in the main thread.

    :param worker: gunicorn's worker.
    """
    if threading.current_thread() is getattr(worker, "reloader", None):
        return True
    own = threading.get_native_id()
    # A reloader of another kind may call from a thread of its own. Signal handlers run in the main
    # thread.
    return own not in (os.getpid(), threading.main_thread().native_id)
