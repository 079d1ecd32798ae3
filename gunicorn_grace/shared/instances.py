"""The instances on this machine, found by their shared memory, without configuration.

Any user can make a memory of this name and write any number into it. A preStop hook that trusted
such a decoy would fail, report a false success, or wait for ever. So an instance counts only if the
process that the memory names as its arbiter holds this memory, and both belong to root or to the
user who asks. The processes of other users are not searched, so they cannot cost time either.
Workers that have outlived their arbiter still hold its memory. They do not count as an instance,
because no process acts on that memory any more.

The pid in a memory is the arbiter's number in its own PID namespace. This module identifies a
process by its number in this process's /proc. So it can tell two arbiters apart that are both PID 1
of their containers. Linux only; runs in any process.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Iterator
from typing import NamedTuple

from ..errors import StateError
from .cells import Header
from .memory import LINK, Memory

LINKS = (LINK, f"{LINK} (deleted)")
"""The link targets of a descriptor of the memory. A memfd is in no folder, so the kernel marks it
as deleted."""


class Instance(NamedTuple):
    """An instance whose arbiter is alive.

    :ivar pid: the arbiter's number in this process's /proc.
    :ivar memory: the shared memory, opened here; ``None`` if it cannot be used.
    :ivar problem: why the memory cannot be used; ``None`` if it can.
    """

    pid: int
    memory: Memory | None
    problem: str | None


class Search(NamedTuple):
    """The result of a search.

    :ivar instances: the instances, sorted by the arbiter's pid.
    :ivar passed_over: a line for each memory that does not belong to a live instance: its path and
        the reason. Its arbiter is dead, or the pid in it was overwritten.
    """

    instances: list[Instance]
    passed_over: list[str]

    def close(self) -> None:
        """Unmap the memories."""
        for instance in self.instances:
            if instance.memory is not None:
                instance.memory.close()


class _Process(NamedTuple):
    pid: int
    parent: int
    inner: int
    uids: frozenset[int]


def search(pid: int | None = None, proc: str = "/proc") -> Search:
    """Find the instances of root and of the user who asks.

    :param pid: look only into this process. Root may then name the arbiter of any user.
    :param proc: the mount point of the proc file system.
    :returns: the instances, with their memories opened. The caller closes them.
    """
    processes = list(_processes(proc))
    us = frozenset({0, os.geteuid()})
    if pid is not None and os.geteuid() == 0:
        us = us.union(*(process.uids for process in processes if process.pid == pid))
    holders: dict[tuple[int, int], list[tuple[_Process, str]]] = {}
    for process in processes:
        if process.uids <= us and pid in (None, process.pid):
            for memory, path in _memories(process.pid, us, proc):
                holders.setdefault(memory, []).append((process, path))
    instances: list[Instance] = []
    passed_over: list[str] = []
    for key, held in holders.items():
        opened = _opened(key, [path for _, path in held])
        if opened is None:
            continue  # All the processes that held it have ended.
        fd, path = opened
        cell = os.pread(fd, 8, 8 * Header.arbiter.offset)
        named = int.from_bytes(cell, sys.byteorder, signed=True)
        arbiter = _arbiter(named, [process for process, _ in held], processes, us)
        if arbiter is None:
            passed_over.append(f"{path}: its arbiter, {named}, does not hold it: dead, or damaged")
            os.close(fd)
            continue
        try:
            instances.append(Instance(arbiter, Memory.mapped(fd, path), None))
        except StateError as error:
            instances.append(Instance(arbiter, None, str(error)))
    instances.sort(key=lambda instance: instance.pid)
    return Search(instances, passed_over)


def _opened(memory: tuple[int, int], paths: list[str]) -> tuple[int, str] | None:
    """Open the memory by the first path that still leads to it. A worker may have ended meanwhile,
    and its pid or its descriptor's number may belong to something else by now."""
    for path in paths:
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            there = os.fstat(fd)
            if (there.st_dev, there.st_ino) == memory:
                return fd, path
            os.close(fd)
    return None


def _arbiter(
    named: int, holders: list[_Process], processes: list[_Process], us: frozenset[int]
) -> int | None:
    """Return the pid of the holder that is the arbiter; ``None`` if it cannot be told.

    A worker may overwrite the pid in the memory, and the arbiter stores it again within a second.
    Until then the arbiter is known as the only holder that is the parent of another user's
    processes: of its workers, if they run as another user.
    """
    for process in holders:
        if process.inner == named:
            return process.pid
    parents = {process.parent for process in processes if not process.uids <= us}
    found = {process.pid for process in holders if process.pid in parents}
    return found.pop() if len(found) == 1 else None


def _processes(proc: str) -> Iterator[_Process]:
    for pid in [int(name) for name in os.listdir(proc) if name.isdigit()]:
        try:
            with open(f"{proc}/{pid}/status", encoding="utf-8", errors="replace") as lines:
                status = dict(line.partition(":")[::2] for line in lines)
            # Both the real and the effective user count. In a set-uid program the real user is the
            # one who started it.
            uids = frozenset(map(int, status["Uid"].split()[:2]))
            inner = int(status.get("NSpid", str(pid)).split()[-1])
            yield _Process(pid, int(status["PPid"]), inner, uids)
        except (OSError, KeyError, ValueError):
            continue  # The process has ended meanwhile.


def _memories(pid: int, us: frozenset[int], proc: str) -> Iterator[tuple[tuple[int, int], str]]:
    """Yield the memories of gunicorn-grace that a process holds: device and inode, and the path.

    Another user can pass a descriptor to a process of this user, so the memory itself must belong
    to one of the users ``us`` too.
    """
    folder = f"{proc}/{pid}/fd"
    found = set()
    with contextlib.suppress(OSError):
        for fd in os.listdir(folder):
            path = f"{folder}/{fd}"
            with contextlib.suppress(OSError):
                if os.readlink(path) not in LINKS:
                    continue
                there = os.stat(path)
                key = there.st_dev, there.st_ino
                if stat.S_ISREG(there.st_mode) and there.st_uid in us and key not in found:
                    found.add(key)
                    yield key, path


def lives(pid: int, proc: str = "/proc") -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        with open(f"{proc}/{pid}/stat", encoding="latin-1") as stream:
            return stream.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
