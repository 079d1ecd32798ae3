"""gunicorn's dirty arbiter and its workers leave only when they are dismissed, as web workers do.

The dirty arbiter (gunicorn 25.0 to 27.0) is a child of the arbiter, and runs long tasks in its own
workers. A SIGTERM to the whole process group reaches all of them, and they would leave at once.
Every request that uses them would then fail for the whole delay (measured on 27.0.1: 36 of 36).

So both processes ignore a SIGTERM during the delay and the drain. They obey it at once if their
parent is gone or the plugin has failed, and the dirty arbiter also when the arbiter stops. They
obey it after :data:`PATIENCE` if no shutdown has begun by then. The dirty arbiter dismisses its own
workers with SIGQUIT instead, which has the same effect on them. Set up in the arbiter; runs in the
dirty arbiter and in its workers, which are its forks.
"""

from __future__ import annotations

import os
import signal
from typing import Any

from ..shared.memory import Memory
from ..shared.phase import Phase

PATIENCE = 0.5
"""Seconds after which the arbiter has certainly got its SIGTERM if the whole group got one."""


def guard(memory: Memory) -> None:
    """Change how the classes of the dirty arbiter and of its workers handle SIGTERM. Runs in the
    arbiter, before it forks the dirty arbiter. A second call changes nothing.

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
    # The dirty arbiter dismisses its workers with SIGQUIT, so for them STOPPED does not matter.
    is_arbiter = hasattr(cls, "spawn_worker")

    def is_meant(process: Any) -> bool:
        # A child that the application has forked has another parent too, and obeys at once.
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
