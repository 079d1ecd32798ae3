"""gunicorn's dirty arbiter and its workers leave when they are dismissed, like the web workers.

The dirty arbiter (gunicorn 25.0 to 27.0) is a child of the arbiter, and runs long tasks in workers
of its own. A SIGTERM to the whole process group reaches all of them, and they would leave at once.
Every request that uses them would then fail for the whole delay (measured on 27.0.1: 36 of 36).

So both classes take a SIGTERM only if it is meant for them: the arbiter stops, or its process is
gone, or no shutdown begins within :data:`PATIENCE`. The dirty arbiter itself tells its workers to
leave with SIGQUIT, on which they do the same. Set up in the arbiter; runs in its dirty arbiter and
in the dirty arbiter's workers, which are forks of it.
"""

from __future__ import annotations

import os
import signal
from typing import Any

from ..shared.memory import Memory
from ..shared.phase import Phase

PATIENCE = 0.5
"""Seconds after which the arbiter has certainly got its SIGTERM, if the whole group got one."""


def guard(memory: Memory) -> None:
    """Change the classes of the dirty arbiter and of its workers. Runs in the arbiter, before it
    forks the dirty arbiter. A second call changes nothing.

    :param memory: the shared memory.
    """
    from gunicorn.dirty.arbiter import DirtyArbiter
    from gunicorn.dirty.worker import DirtyWorker

    if hasattr(DirtyArbiter, "grace_is_guarded"):
        return
    _wait_for_the_dismissal(DirtyArbiter, memory)
    _wait_for_the_dismissal(DirtyWorker, memory)
    arbiter: Any = DirtyArbiter
    kill = arbiter.kill_worker

    def kill_worker(self: Any, pid: int, sig: int) -> None:
        kill(self, pid, signal.SIGQUIT if sig == signal.SIGTERM else sig)

    arbiter.kill_worker = kill_worker
    arbiter.grace_is_guarded = True


def _wait_for_the_dismissal(cls: Any, memory: Memory) -> None:
    handle = cls._signal_handler
    header = memory.header
    # A dirty worker is dismissed by its own arbiter, with another signal.
    is_arbiter = hasattr(cls, "spawn_worker")

    def is_meant(process: Any) -> bool:
        # The parent of a child that the application has forked is another one, too.
        if os.getppid() != process.ppid or header.failed:
            return True
        return is_arbiter and header.phase >= Phase.STOPPED

    def leave_unless_it_was_the_group(process: Any) -> None:
        if not memory.is_terminating():
            handle(process, signal.SIGTERM, None)

    def handle_signal(process: Any, sig: int, frame: Any) -> None:
        loop = process._loop
        if sig != signal.SIGTERM or is_meant(process):
            handle(process, sig, frame)
        elif loop is not None:
            loop.call_soon_threadsafe(
                loop.call_later, PATIENCE, leave_unless_it_was_the_group, process
            )

    cls._signal_handler = handle_signal
