"""A shutdown without gunicorn, for the tests of an application: this process pretends to be in a
phase.

Without it an application could try what it does in a shutdown only with real processes and real time::

    with in_phase(Phase.LAME_DUCK, seconds_left=8):
        assert client.get("/readyz").status_code == 503

Everything then answers as in a worker of an instance in that phase: ``phase()``,
``is_terminating()`` and ``seconds_left()``, the probes of the blueprint and of the middlewares,
holds and ``until_terminating``. No process is started, no signal handler is set, no time passes:
what would happen by itself is done when a test says so. The pytest fixture ``grace_instance`` is in
:mod:`gunicorn_grace.pytest_plugin`; this module needs no pytest.
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
from .shared.memory import HEADER_CELLS, RECORD_CELLS, Memory
from .shared.phase import Phase, is_terminating
from .worker import duties, process
from .worker.duties import Duties

__all__ = ["Instance", "in_phase"]

NUMBER = 0
"""The slot of the worker that this process pretends to be: the only one."""


class _Pretended(Memory):
    """A memory that no other process has, and that no command finds; and a clock that stands
    still."""

    left: float | None = None

    def __init__(self) -> None:
        super().__init__(-1, mmap.mmap(-1, (HEADER_CELLS + RECORD_CELLS) * 8), 1)
        self.publish_layout()

    def seconds_left(self) -> float | None:
        return self.left if self.is_terminating() else None


class Instance:
    """The instance that this process pretends to be the one worker of."""

    def __init__(self, memory: _Pretended, duties: Duties) -> None:
        self._memory = memory
        self._duties = duties

    def enter(self, phase: Phase, *, seconds_left: float | None = None) -> None:
        """Go to a phase, whichever it was in: a test may well go back.

        Back to SERVING is what ``undrain`` does: the next shutdown is another, in which callbacks
        run again.

        :param seconds_left: what ``seconds_left()`` says from now on; it does not count down.
        :raises UsageError: there are seconds left where no shutdown has begun, or fewer than none.
        """
        if seconds_left is not None and (seconds_left < 0 or not is_terminating(phase)):
            raise UsageError(
                f"seconds_left={seconds_left:g} in {phase} must be None before LAME_DUCK and >= 0 from then on"
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
        """Run the callbacks that the phase asks for and that have not run in this shutdown, in
        their order.

        As in a worker each runs in a thread of its own, where there is no application context, and
        has its timeout.

        :raises BaseException: what a callback raised; a ``TimeoutError`` that names the one that
            did not end in time. Those after it have not run then.
        """
        callbacks = self._duties.callbacks
        while due := callbacks.due():
            error = callbacks.run(due[0])
            if error is not None:
                raise error

    @property
    def holds(self) -> list[str]:
        """The names of the holds that would keep the worker now, the oldest first."""
        return [name for name, _ in self._duties.holds.held()]


@contextlib.contextmanager
def in_phase(
    phase: Phase = Phase.LAME_DUCK, *, seconds_left: float | None = None
) -> Iterator[Instance]:
    """Let this process pretend to be a worker of an instance in a phase; at its end everything is
    as it was before.

    A context manager and a decorator. One within another hides it. Every thread of the process sees
    the same phase. Settings are the defaults, unless this process has loaded others.

    :param seconds_left: what ``seconds_left()`` says; ``None`` for an instance without a deadline.
    :raises UsageError: this is a process of a real gunicorn; or see :meth:`Instance.enter`.
    """
    if memory.attached is not None and not isinstance(memory.attached, _Pretended):
        raise UsageError(
            f"in_phase({phase}) in process {os.getpid()}, which belongs to a real gunicorn: use it in tests without one"
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
