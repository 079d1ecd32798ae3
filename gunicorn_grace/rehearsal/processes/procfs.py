"""Reads Linux's ``/proc``: children, marked processes, listening sockets.

A process group is not enough to find all processes of an instance. gunicorn's processes can leave
the group in which they were started (``daemon``, ``dumb-init``, a re-exec), and a process that is
left behind holds a port and a core on somebody's machine. All descendants of a process inherit its
environment, whatever sessions they open, and ``/proc/<pid>/environ`` shows it. So each instance is
marked with an environment variable that has a unique value.

On a system without ``/proc``, every function here finds nothing.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
import time
from typing import ClassVar

_LISTEN = "0A"  # include/net/tcp_states.h: TCP_LISTEN


def children(pid: int) -> list[int]:
    """Return the living children of ``pid`` without zombies, the oldest first."""
    found = []
    for task in _list(f"/proc/{pid}/task"):
        found += [int(child) for child in _read(f"/proc/{pid}/task/{task}/children").split()]
    return [child for child in found if _state(child) not in ("Z", "X", "")]


def inner_pid(pid: int) -> int:
    """Return the pid that a process has in its own PID namespace, and writes into its log."""
    for line in _read(f"/proc/{pid}/status").splitlines():
        if line.startswith("NSpid:"):
            return int(line.split()[-1])
    return pid


def marked(variable: str, value: str) -> list[int]:
    """Return the other living processes that were started with ``variable=value`` in their
    environment."""
    return _Scan.of(variable).get(value, [])


def marked_by_value(variable: str) -> dict[str, list[int]]:
    """Return the other living processes that were started with this variable, by the variable's
    value."""
    prefix = f"{variable}=".encode()
    me = os.getpid()
    found: dict[str, list[int]] = {}
    for pid in _pids():
        if pid != me:
            for entry in _bytes(f"/proc/{pid}/environ").split(b"\0"):
                if entry.startswith(prefix):
                    found.setdefault(entry[len(prefix) :].decode("utf-8", "replace"), []).append(
                        pid
                    )
    return found


class _Scan:
    """One scan of all processes, shared by every thread that asked before the scan began.

    Without it, a hundred instances that end at once would mean a hundred threads that each read the
    environment of three hundred processes. That delays the load generator by a second.
    """

    _all: ClassVar[dict[str, _Scan]] = {}

    def __init__(self, variable: str) -> None:
        self._variable = variable
        self._looking = threading.Lock()
        self._begun = self._ended = 0
        self._found: dict[str, list[int]] = {}

    @classmethod
    def of(cls, variable: str) -> dict[str, list[int]]:
        """Return the result of a scan that begins after this call."""
        return cls._all.setdefault(variable, cls(variable))._look()

    def _look(self) -> dict[str, list[int]]:
        wanted = self._begun + 1  # a scan under way may have missed a new process
        with self._looking:
            if self._ended < wanted:
                self._begun += 1
                self._found = marked_by_value(self._variable)
                self._ended = self._begun
            return self._found


def memory(pid: int) -> int:
    """Return the memory of a process in bytes; 0 if it has ended.

    It is the proportional set size (proc_pid_smaps(5)), in which a page that n processes share
    counts as 1/n. So pages that workers share with their arbiter are not counted again for each
    worker. On kernels before 4.14, and for another user's process, it is the resident set size,
    which is too large.
    """
    for line in _read(f"/proc/{pid}/smaps_rollup").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    fields = _read(f"/proc/{pid}/statm").split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") if fields else 0


def end_marked(variable: str, value: str, timeout: float = 5.0) -> list[int]:
    """Send SIGKILL to every process that carries the mark, and wait until they are gone or zombies.

    It looks again until it finds none, because a process may fork just before it is ended.

    :param variable: name of the mark.
    :param value: its value, different for every instance.
    :param timeout: seconds to wait in all. SIGKILL takes longer than that only in an
        uninterruptible sleep.

    :returns: the pids that were ended.
    """
    deadline = time.monotonic() + timeout
    ended: list[int] = []
    while (found := marked(variable, value)) and time.monotonic() < deadline:
        for pid in found:
            if _end(pid, deadline):
                ended.append(pid)
    return ended


def listening(pid: int) -> list[str]:
    """Return the TCP addresses on which ``pid`` listens, as ``host:port``, in the order of its file
    descriptors.

    This is for an instance whose log a user's configuration sends elsewhere.
    """
    inodes = []
    for descriptor in sorted(map(int, _list(f"/proc/{pid}/fd"))):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{descriptor}")
        except OSError:
            continue
        if target.startswith("socket:["):
            inodes.append(target[len("socket:[") : -1])
    table: dict[str, str] = {}
    for name in ("tcp", "tcp6"):
        for line in _read(f"/proc/{pid}/net/{name}").splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTEN:
                table[fields[9]] = _unpack(fields[1])
    return [table[inode] for inode in inodes if inode in table]


def _unpack(packed: str) -> str:
    """Turn ``0100007F:1F90`` into ``127.0.0.1:8080``. The kernel prints the address as 32-bit words
    in host byte order."""
    words, port = packed.split(":")
    raw = b"".join(
        int(words[i : i + 8], 16).to_bytes(4, sys.byteorder) for i in range(0, len(words), 8)
    )
    if len(raw) == 4:
        return f"{socket.inet_ntop(socket.AF_INET, raw)}:{int(port, 16)}"
    return f"[{socket.inet_ntop(socket.AF_INET6, raw)}]:{int(port, 16)}"


def _end(pid: int, deadline: float) -> bool:
    """Send SIGKILL and wait. With a pidfd, the signal never reaches another process with the same
    pid.

    :returns: whether the process existed.
    """
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    except (AttributeError, OSError):  # not Linux, or older than 5.3, or a seccomp filter
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


def _state(pid: int) -> str:
    """Return the state of a process as one letter (proc_pid_stat(5)); empty if it has ended."""
    stat = _read(f"/proc/{pid}/stat")
    return stat.rpartition(")")[2].strip()[:1]  # the name before it may hold spaces and brackets


def _pids() -> list[int]:
    return [int(name) for name in _list("/proc") if name.isdecimal()]


def _list(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _bytes(path: str) -> bytes:
    # Unbuffered, because a fleet reads the files of all processes and must not take time from the
    # threads that follow its logs.
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except OSError:
        return b""


def _read(path: str) -> str:
    return _bytes(path).decode("utf-8", "replace")
