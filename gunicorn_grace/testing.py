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

from . import application
from .errors import UsageError
from .shared import memory as st
from .shared.phase import Phase, is_terminating

__all__ = ["Instance", "in_phase"]

NUMBER = 0
"""The slot of the worker that this process pretends to be: the only one."""


class _Pretended(st.State):
    """A memory that no other process has, and that no command finds; and a clock that stands
    still."""

    left: float | None = None

    def __init__(self) -> None:
        super().__init__(-1, mmap.mmap(-1, (st.HEADER_CELLS + st.SLOT_CELLS + st.METER_CELLS) * 8))
        cells = self.cells
        cells[st.VERSION], cells[st.SLOT_COUNT], cells[st.ARBITER] = st.LAYOUT, 1, os.getpid()
        cells[st.MAGIC] = st.MAGIC_NUMBER

    def seconds_left(self) -> float | None:
        return self.left if self.is_terminating() else None


class Instance:
    """The instance that this process pretends to be the one worker of."""

    def __init__(self, state: _Pretended, duties: application.Duties) -> None:
        self._state = state
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
        state, cells, now = self._state, self._state.cells, time.monotonic_ns()
        if is_terminating(phase):
            cells[st.T0] = cells[st.T0] or now
        elif cells[st.T0] or state.is_terminating():
            cells[st.CONSUMED] = now
            cells[st.T0] = 0
        cells[st.DRAIN] = (cells[st.DRAIN] or now) if phase >= Phase.DRAINING else 0
        state.left = None if seconds_left is None else float(seconds_left)
        state.is_booted_worker = phase is not Phase.STARTING
        cells[st.PHASE] = phase

    def run_callbacks(self) -> None:
        """Run the callbacks that the phase asks for and that have not run in this shutdown, in
        their order.

        As in a worker each runs in a thread of its own, where there is no application context, and
        has its timeout.

        :raises BaseException: what a callback raised; a ``TimeoutError`` that names the one that
            did not end in time. Those after it have not run then.
        """
        while due := self._duties.due():
            error = self._duties.run(due[0])
            if error is not None:
                raise error

    @property
    def holds(self) -> list[str]:
        """The names of the holds that would keep the worker now, the oldest first."""
        return [name for name, _ in self._duties.held()]


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
    from .shared import settings
    from .worker import process as worker

    if st.current is not None and not isinstance(st.current, _Pretended):
        raise UsageError(
            f"in_phase({phase}) in process {os.getpid()}, which belongs to a real gunicorn: use it in tests without one"
        )
    state = _Pretended()
    state.claim(NUMBER, age=1)
    used = settings.loaded() or settings.Settings()
    seat = worker.Seat(state, NUMBER, used, logging.getLogger("gunicorn_grace"))
    seat.cells_own[seat.slot + st.PID] = os.getpid()
    instance = Instance(state, seat.duties)
    instance.enter(phase, seconds_left=seconds_left)
    before = st.current, worker.current, application.current
    st.current, worker.current, application.current = state, seat, seat.duties
    try:
        yield instance
    finally:
        st.current, worker.current, application.current = before
