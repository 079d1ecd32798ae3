"""The instance that a command acts on.

A command runs in the container of the instance. It needs no configuration, no HTTP and no free
worker.
"""

from __future__ import annotations

import os
import sys
import time

from ..errors import StateError
from ..shared.instances import Search, lives, search
from ..shared.memory import Memory

__all__ = ["LOOK", "MENDING", "find", "lives"]

LOOK = 0.05
"""Seconds between two looks into the shared memory."""

MENDING = 1.5
"""Seconds for which a damaged memory is looked at again. An arbiter stores its own cells again in
each pass of its loop, once a second while it serves."""


def find(pid: int | None) -> Memory:
    """Return the memory of one instance. Its :attr:`~gunicorn_grace.shared.memory.Memory.holder` is
    the arbiter.

    :param pid: its arbiter; ``None`` for the only instance there is.
    :raises StateError: there is none, or more than one, or it cannot be read.
    """
    if not sys.platform.startswith("linux"):
        raise StateError(
            f"this command needs Linux (memfd), and this is {sys.platform}: "
            "use ?down=true or SIGTERM"
        )
    until = time.monotonic() + MENDING
    while _is_unsettled(found := search(pid)) and time.monotonic() < until:
        found.close()
        time.sleep(LOOK)
    if len(found.instances) == 1:
        arbiter, memory, problem = found.instances[0]
        if memory is None:
            raise StateError(f"the memory of arbiter {arbiter} cannot be used: {problem}")
        memory.holder = arbiter
        return memory
    found.close()
    raise StateError(_refusal(found, pid))


def _is_unsettled(found: Search) -> bool:
    is_damaged = any(instance.problem for instance in found.instances)
    return is_damaged or (not found.instances and bool(found.passed_over))


def _refusal(found: Search, pid: int | None) -> str:
    if pid is not None:
        others = search()
        others.close()
        return (
            f"no instance with arbiter {pid} that this user may open; found: "
            f"{_pids(others) or 'none'}"
        )
    if found.instances:
        return f"{len(found.instances)} instances, arbiters {_pids(found)}: choose with --pid"
    why = f" ({found.passed_over[0]})" if found.passed_over else ""
    way_out = "run it as the arbiter's user"
    if os.geteuid() == 0:
        way_out += ", or name the arbiter with --pid"
    return f"no gunicorn with gunicorn-grace that this user may open{why}: {way_out}"


def _pids(found: Search) -> str:
    return ", ".join(str(instance.pid) for instance in found.instances)
