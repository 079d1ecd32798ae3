"""A shutdown without gunicorn, for the tests of an application: the test process pretends to be in
a phase.

An application can test its behaviour in a shutdown without real processes and real time::

    with in_phase(Phase.LAME_DUCK, seconds_left=8):
        assert client.get("/readyz").status_code == 503

Everything then behaves as in a worker of an instance in that phase: ``phase()``,
``is_terminating()`` and ``seconds_left()``, the probes of the blueprint and of the middlewares,
holds and ``until_terminating``. No process is started, no signal handler is set, and no time
passes. The test itself decides on each step. The pytest fixture ``grace_instance`` is in
:mod:`gunicorn_grace.pytest_plugin`. This module does not need pytest.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import time
from collections.abc import Iterator

from .errors import UsageError
from .shared import memory, settings
from .shared.cells import HEADER_CELLS, RECORD_CELLS
from .shared.memory import Memory
from .shared.phase import Phase, is_terminating
from .worker import duties, process
from .worker.duties import Duties

__all__ = ["Instance", "in_phase"]

NUMBER = 0
"""The slot of the worker that this process pretends to be. It is the only slot."""


class _Pretended(Memory):
    """A memory that no other process shares and no command finds. Its countdown stands still."""

    left: float | None = None

    def __init__(self) -> None:
        super().__init__(-1, mmap.mmap(-1, (HEADER_CELLS + RECORD_CELLS) * 8), 1)
        self.publish_layout()

    def seconds_left(self) -> float | None:
        return self.left if self.is_terminating() else None


class Instance:
    """An instance whose only worker is this process, as far as the application can see."""

    def __init__(self, memory: _Pretended, duties: Duties) -> None:
        self._memory = memory
        self._duties = duties

    def enter(self, phase: Phase, *, seconds_left: float | None = None) -> None:
        """Go to any phase from any other. A test may also go back.

        Going back to SERVING does what ``undrain`` does: the next shutdown is a new one, in which
        callbacks run again.

        :param phase: the new phase.
        :param seconds_left: the value that ``seconds_left()`` returns from now on. It does not
            count down.
        :raises UsageError: ``seconds_left`` is negative, or is given for a phase before the
            shutdown.
        """
        if seconds_left is not None and (seconds_left < 0 or not is_terminating(phase)):
            raise UsageError(
                f"seconds_left={seconds_left:g} in {phase} must be None before LAME_DUCK and >= 0 "
                "from then on"
            )
        ours, header, now = self._memory, self._memory.header, time.monotonic_ns()
        if is_terminating(phase):
            header.t0 = header.t0 or now
        elif header.t0 or ours.is_terminating():
            header.consumed = now
            header.t0 = 0
        header.drain = (header.drain or now) if phase >= Phase.DRAINING else 0
        ours.left = None if seconds_left is None else float(seconds_left)
        ours.is_booted_worker = phase is not Phase.STARTING
        header.phase = phase

    def run_callbacks(self) -> None:
        """Run the callbacks of the current phase that have not run in this shutdown, in order.

        As in a worker, each runs in its own thread, without an application context, and has its
        timeout.

        :raises BaseException: what a callback raised, or a ``TimeoutError`` that names a callback
            that did not end in time. Later callbacks have not run then.
        """
        callbacks = self._duties.callbacks
        while due := callbacks.due():
            error = callbacks.run(due[0])
            if error is not None:
                raise error

    @property
    def holds(self) -> list[str]:
        """The names of the current holds, the oldest first."""
        return [name for name, _ in self._duties.holds.held()]


@contextlib.contextmanager
def in_phase(
    phase: Phase = Phase.LAME_DUCK, *, seconds_left: float | None = None
) -> Iterator[Instance]:
    """Let this process pretend to be a worker of an instance in a phase, and restore the former
    state at the end.

    It is a context manager and a decorator. An inner one hides the outer one. All threads of the
    process see the same phase. The settings are the defaults, unless this process has loaded
    others.

    :param phase: the phase.
    :param seconds_left: the value that ``seconds_left()`` returns; ``None`` for an instance without
        a deadline.
    :returns: the pretended instance.
    :raises UsageError: this process belongs to a real gunicorn, or ``seconds_left`` does not fit
        (see :meth:`Instance.enter`).
    """
    if memory.attached is not None and not isinstance(memory.attached, _Pretended):
        raise UsageError(
            f"in_phase({phase}) in process {os.getpid()}, which belongs to a real gunicorn: "
            "use it only in tests without gunicorn"
        )
    pretended = _Pretended()
    pretended.claim(NUMBER, age=1)
    used = settings.loaded() or settings.Settings()
    ours = process.WorkerProcess(pretended, NUMBER, used, logging.getLogger("gunicorn_grace"))
    ours.record.pid = os.getpid()
    instance = Instance(pretended, ours.duties)
    instance.enter(phase, seconds_left=seconds_left)
    before = memory.attached, process.this_worker, duties.this_workers
    memory.attached, process.this_worker, duties.this_workers = pretended, ours, ours.duties
    try:
        yield instance
    finally:
        memory.attached, process.this_worker, duties.this_workers = before
