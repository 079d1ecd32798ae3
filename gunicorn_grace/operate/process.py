"""Reads data about the processes of an instance from /proc (proc(5)). Runs in a command."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator

from ..probes.processes import arguments

_HEARTBEAT = re.compile(r"/wgunicorn-[^/]*( \(deleted\))?$")
"""The heartbeat file of a worker, whose modification time the worker sets (gunicorn's
``WorkerTmp``, 22.0 to 27.0)."""


def directory(pid: int) -> str | None:
    """Return the working directory of a process; ``None`` if it cannot be read."""
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return None


def command(pid: int) -> list[str]:
    """Return the command line of a process; an empty list if it cannot be read."""
    return [word for word in arguments("/proc", pid) if word]


def started(pid: int) -> float | None:
    """Return when a process started, as a Unix time in seconds; ``None`` if it cannot be read."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stream:
            fields = stream.read().rpartition(b")")[2].split()
        since_boot = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + since_boot
    except (OSError, ValueError, IndexError):
        return None


def parent(pid: int) -> int | None:
    """Return the pid of a process's parent; ``None`` if it cannot be read."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stream:
            return int(stream.read().rpartition(b")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return None


def children(pid: int) -> dict[int, int]:
    """Return the children of an arbiter: the pid of each in its own PID namespace, with its pid in
    the namespace of this process."""
    found = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError, KeyError, ValueError):
            with open(f"/proc/{name}/status", encoding="utf-8", errors="replace") as lines:
                status = dict(line.partition(":")[::2] for line in lines)
            if int(status["PPid"]) == pid:
                found[int(status.get("NSpid", name).split()[-1])] = int(name)
    return found


def heartbeat(pid: int) -> float | None:
    """Return when the last heartbeat of a worker was, in seconds of the monotonic clock; ``None``
    if this user may not see it."""
    for path in _descriptors(pid):
        with contextlib.suppress(OSError):
            if _HEARTBEAT.search(os.readlink(path)):
                return os.stat(path).st_mtime
    return None


def _descriptors(pid: int) -> Iterator[str]:
    folder = f"/proc/{pid}/fd"
    with contextlib.suppress(OSError):
        for fd in os.listdir(folder):
            yield f"{folder}/{fd}"
