"""Finds the instance that a command acts on.

A command runs in the container of the instance. It needs no configuration, no HTTP and no free
worker, because it uses the shared memory.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import sys
import time
from collections.abc import Callable, Iterator

from ..errors import StateError
from ..probes.processes import arguments, is_gunicorn, users
from ..shared.instances import Search, lives, search
from ..shared.memory import Memory
from ..shared.text import printable
from .process import directory
from .process import parent as _parent

__all__ = ["LOOK", "MENDING", "OFF", "every", "find", "is_switched_off", "lives", "naming"]

OFF = "gunicorn-grace is switched off in this instance (grace_enabled)"

LOOK = 0.05
"""Seconds between two looks into the shared memory."""

MENDING = 1.5
"""Seconds for which a damaged memory is read again and again. An arbiter restores its own cells in
each pass of its loop, which takes a second while it serves."""


def every(pid: int | None) -> Search:
    """Find the instances that this user may open. The caller has to close the result.

    :param pid: the arbiter to look for; ``None`` for all.
    :raises StateError: no instance was found, or this is not Linux.
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
    if not found.instances:
        found.close()
        raise StateError(_refusal(found, pid))
    return found


def find(pid: int | None) -> Memory:
    """Return the memory of one instance. Its :attr:`~gunicorn_grace.shared.memory.Memory.holder` is
    the arbiter.

    :param pid: its arbiter; ``None`` for the only instance.
    :raises StateError: there is no such instance, or more than one, or its memory cannot be read.
    """
    found = every(pid)
    if len(found.instances) > 1:
        found.close()
        raise StateError(
            f"{len(found.instances)} instances, arbiters {_pids(found)}: choose with --pid; "
            "`gunicorn-grace status` shows them"
        )
    arbiter, memory, problem = found.instances[0]
    if memory is None:
        raise StateError(f"the memory of arbiter {arbiter} cannot be used: {problem}")
    memory.holder = arbiter
    return memory


@contextlib.contextmanager
def naming(memory: Memory, say: Callable[[str], object]) -> Iterator[Callable[[str], object]]:
    """Return a context whose value is ``say`` with the name of the instance in front of each line.
    An error in the context also gets the name. After Ctrl-C one line says that nothing was taken
    back.

    :param memory: the memory of the instance, as :func:`find` returns it.
    :param say: takes a line for the user.
    """
    where = directory(memory.holder)
    place = "" if where is None else f" in {printable(where)}"
    name = f"arbiter {memory.holder}{place}"
    try:
        yield lambda line: say(f"{name}: {line}")
    except StateError as error:
        raise StateError(f"{name}: {error}") from None
    except KeyboardInterrupt:
        print(f"\n{name}: not waited for any longer; what has begun goes on", file=sys.stderr)
        raise


def is_switched_off(memory: Memory) -> bool:
    """Whether the plugin is switched off in this instance (``grace_enabled``). Commands have no
    effect on such an instance."""
    return bool(memory.header.switched_off)


def _is_unsettled(found: Search) -> bool:
    is_damaged = any(instance.problem for instance in found.instances)
    return is_damaged or (not found.instances and bool(found.passed_over))


def _refusal(found: Search, pid: int | None) -> str:
    if pid is not None:
        return _refusal_of(found, pid)
    theirs = _gunicorn_of_another_user()
    if theirs is not None:
        number, owner = theirs
        way_out = f"name it with --pid {number}" if os.geteuid() == 0 else f"run this as {owner}"
        return f"not permitted: gunicorn {number} belongs to user {owner}: {way_out}"
    if found.passed_over:
        return f"no gunicorn with gunicorn-grace that lives: {found.passed_over[0]}: start another"
    return (
        "no gunicorn with gunicorn-grace runs here: start it with "
        "`-c python:gunicorn_grace.conf`, or run this in its container"
    )


def _refusal_of(found: Search, pid: int) -> str:
    """Return the reason why this process is not an instance that this user may open."""
    owners = users("/proc", pid)
    if owners and os.geteuid() != 0 and not owners <= {os.geteuid()}:
        owner = _name(max(owners))
        return f"not permitted: process {pid} belongs to user {owner}: run this as {owner}"
    others = search()
    others.close()
    arbiters = [instance.pid for instance in others.instances]
    there = f"the arbiters here: {_pids(others) or 'none'}"
    if not owners:
        return f"there is no process {pid}; {there}"
    if (parent := _parent(pid)) in arbiters:
        return f"process {pid} is a child of arbiter {parent}: choose it with --pid {parent}"
    if found.passed_over:
        return f"process {pid} is no arbiter: {found.passed_over[0]}; {there}"
    return f"process {pid} is no arbiter of a gunicorn with gunicorn-grace; {there}"


def _gunicorn_of_another_user() -> tuple[int, str] | None:
    """Return the pid and the owner of the first gunicorn whose memory this user may not read; None
    if there is none. It may be a gunicorn without the plugin."""
    us = {os.geteuid()}
    for number in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        owners = users("/proc", number)
        if owners and not owners <= us and is_gunicorn(arguments("/proc", number)):
            return number, _name(max(owners))
    return None


def _name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)


def _pids(found: Search) -> str:
    return ", ".join(str(instance.pid) for instance in found.instances)
