"""Which process is asking: found from the socket alone, because no header can be believed.

A UNIX socket names the process (`SO_PEERCRED`, unix(7)). For TCP the peer's row in `/proc/net/tcp`
or `tcp6` has the inode of its socket, and `/proc/<pid>/fd` says which processes hold that (proc(5)).
What cannot be proved is refused. Runs in a worker, and in the probe responder.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

MAX_AGE = 10.0
"""Seconds since the fork. A hook asks within its first second, and a proxy outlives ten. exec()
does not make a process younger, so a shell that sleeps first and then becomes curl counts from the
start of the shell."""

WAY_OUT = 'use `gunicorn-grace prestop`, or grace_trigger = "token"'

# SYN_SENT, SYN_RECV, LISTEN, NEW_SYN_RECV (include/net/tcp_states.h): no peer of an accepted
# connection.
_NOT_CONNECTED = frozenset({"02", "03", "0A", "0C"})

# A connection that is not there yet: curl tries IPv6 and IPv4 at once (RFC 8305).
_SYN_SENT = "02"

_ACCEPTS = 0x10000  # __SO_ACCEPTCON (include/uapi/linux/net.h), as /proc/net/unix shows it

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Refused(Exception):
    """The reason, on its way from the step that found it to the verdict."""


class AskingProcess(NamedTuple):
    pid: int
    name: str
    parent: int
    started: float  # seconds since boot

    def __str__(self) -> str:
        return f"pid {self.pid} ({self.name})"


class Asker:
    """Looks up the process that asks, and says whether it can be a one-shot hook of this container.

    :param arbiter_pid: the arbiter, whose descendants are the application's own.
    :param proc: where the proc file system is mounted.
    """

    def __init__(self, arbiter_pid: int, proc: str = "/proc") -> None:
        self._arbiter_pid = arbiter_pid
        self._proc = proc

    def check_proc(self) -> None:
        """A /proc that is mounted for another PID namespace numbers processes in its own way: the
        arbiter's pid would name a stranger there, and our own processes would pass for
        strangers."""
        try:
            shown = os.readlink(f"{self._proc}/self")
        except OSError as error:
            raise Refused(
                f"no usable {self._proc} ({error.strerror}): the asking process is unknown; {WAY_OUT}"
            ) from None
        if shown != str(os.getpid()):
            raise Refused(
                f"{self._proc} is that of another PID namespace (we are pid {os.getpid()}, there {shown}); {WAY_OUT}"
            )

    def inodes(self, peer: tuple[Address, int], ours: tuple[Address, int]) -> set[str]:
        """The peer's own socket, by both ends of the connection: a port alone may be in use with
        several remotes."""
        local, remote = _spellings(*peer), _spellings(*ours)
        inodes = set()
        for table in ("tcp", "tcp6"):
            try:
                with open(f"{self._proc}/net/{table}", encoding="utf-8") as rows:
                    for row in rows:
                        columns = row.split()
                        if (
                            columns[1] in local
                            and columns[2] in remote
                            and columns[3] not in _NOT_CONNECTED
                        ):
                            inodes.add(columns[9])
            except FileNotFoundError:
                continue  # no tcp6 where IPv6 is switched off
        if not inodes:
            raise Refused(
                f"the peer's end {peer[0]} port {peer[1]} is not in {self._proc}/net/tcp, nor in tcp6"
                f" (a redirected port, or another network namespace); {WAY_OUT}"
            )
        # 0 is a socket that no process holds any more.
        if "0" in inodes:
            raise Refused(
                "the peer closed the connection before it could be looked up: it must wait for the response"
            )
        return inodes

    def holders(self, inodes: set[str]) -> list[int]:
        wanted = {f"socket:[{inode}]" for inode in inodes}
        pids, closed = [], 0
        for pid in [int(name) for name in os.listdir(self._proc) if name.isdigit()]:
            try:
                if self._holds(pid, wanted):
                    pids.append(pid)
            # Such a process may hold the socket as well, unseen. Refusing for it would refuse every
            # hook in a container where anything runs with more privileges than the worker.
            except PermissionError:
                closed += 1
        if not pids:
            raise Refused(
                f"no process that we may look into holds the other end ({closed} are closed to uid"
                f" {os.geteuid()}): it is in another container, or of another uid; {WAY_OUT}"
            )
        return pids

    def _holds(self, pid: int, wanted: set[str]) -> bool:
        return any(link in wanted for link in self._links(pid))

    def _links(self, pid: int) -> Iterator[str]:
        """What the descriptors of a process are; nothing once it has ended."""
        folder = f"{self._proc}/{pid}/fd"
        try:
            descriptors = os.listdir(folder)
        except (FileNotFoundError, ProcessLookupError):
            return
        for descriptor in descriptors:
            # One that is closed between the two calls must not hide the others.
            with suppress(FileNotFoundError, ProcessLookupError):
                yield os.readlink(f"{folder}/{descriptor}")

    def _refuse_relay(self, process: AskingProcess, asking: set[str]) -> None:
        """A process that passes on what others ask has it from a socket: one that listens, or a
        further connection, as the child has that socat or inetd forks for each client. A hook has
        none but the one that it asks with.

        UNIX connections are no sign: the standard streams of a systemd service or an ssh session
        are such."""
        folder = f"{self._proc}/{process.pid}"
        try:
            sockets = {
                link[8:-1] for link in self._links(process.pid) if link.startswith("socket:[")
            } - asking
            for table in ("tcp", "tcp6", "unix"):
                with suppress(FileNotFoundError), open(f"{folder}/net/{table}", "rb") as rows:
                    next(rows)
                    for row in rows:
                        columns = row.decode("ascii", "replace").split(maxsplit=10)
                        if table == "unix":  # Num RefCount Protocol Flags Type St Inode Path
                            found = columns[6] in sockets and int(columns[3], 16) & _ACCEPTS
                        else:
                            found = columns[9] in sockets and columns[3] != _SYN_SENT
                        if found:
                            raise Refused(
                                f"{process} has another socket ({table}), so it may ask for others, as a proxy does;"
                                f" {WAY_OUT}"
                            )
        except OSError as error:
            raise Refused(
                f"the sockets of {process} cannot be looked at ({error.strerror}); {WAY_OUT}"
            ) from None

    def judge(self, pid: int, asking: set[str]) -> str:
        # The pid may by now name another process; that is left unguarded. Pids are given out in a
        # circle, 32768 by default, which would have to be run through within the milliseconds of a
        # look-up. SO_PEERCRED is of connect(), so there it takes a process that left its connection
        # to an heir, ended, and had its pid given to a process younger than MAX_AGE.
        process = self.process(pid)

        theirs, here = (self._namespace(who) for who in (str(pid), "self"))
        if theirs != here:
            raise Refused(
                f"{process} is in another PID namespace ({theirs}, ours is {here}); {WAY_OUT}"
            )

        # Ours is a worker, or a curl that the application runs. A hook has ppid 0, as its parent is
        # outside of the container, so the rule is right also where the arbiter is PID 1. An orphan
        # that PID 1 adopted is refused there: it cannot be told from a child that the application
        # put into the background. Where the arbiter is not PID 1 such a child passes: who can start
        # one needs no trigger.
        ancestor = process
        while ancestor.pid != self._arbiter_pid and ancestor.parent:
            ancestor = self.process(ancestor.parent)
        if ancestor.pid == self._arbiter_pid:
            raise Refused(
                f"{process} is one of our own: the arbiter, pid {ancestor.pid}, or a descendant; {WAY_OUT}"
            )

        # Both count the time that the machine was suspended, and both are shifted alike in a time
        # namespace.
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - process.started
        if age >= MAX_AGE:
            raise Refused(
                f"{process} started {age:.2f} s ago >= {MAX_AGE:g} s, so it is no one-shot hook; {WAY_OUT}"
            )
        self._refuse_relay(process, asking)
        return f"{process}, started {max(age, 0):.2f} s ago"

    def _namespace(self, who: str) -> str:
        try:
            return os.readlink(f"{self._proc}/{who}/ns/pid")
        except OSError as error:
            raise Refused(
                f"the PID namespace of {who} is closed to uid {os.geteuid()} ({error.strerror}); {WAY_OUT}"
            ) from None

    def process(self, pid: int) -> AskingProcess:
        try:
            with open(f"{self._proc}/{pid}/stat", "rb") as file:
                stat = file.read()
        except OSError as error:
            raise Refused(
                f"pid {pid} cannot be looked at ({error.strerror}): it ended or is hidden; {WAY_OUT}"
            ) from None
        # "42 (name) S 1 ...": a name may hold spaces and parentheses, nothing after it does.
        head, _, tail = stat.rpartition(b")")
        name = head.partition(b"(")[2].decode("utf-8", "replace")
        columns = tail.split()  # the state, which is field 3 of proc_pid_stat(5), comes first
        return AskingProcess(
            pid, printable(name), int(columns[1]), int(columns[19]) / os.sysconf("SC_CLK_TCK")
        )


def peer_pid(sock: Any) -> int:
    """The process that called connect(), first of struct ucred's three ints; 0: not in our PID
    namespace."""
    return int.from_bytes(
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4], sys.byteorder
    )


def endpoint(name: tuple[Any, ...]) -> tuple[Address, int]:
    """The address as it is meant: a dual-stack listener sees an IPv4 client as ::ffff:127.0.0.1."""
    address = ipaddress.ip_address(name[0])
    return getattr(address, "ipv4_mapped", None) or address, name[1]


def _spellings(address: Address, port: int) -> set[str]:
    """How the tables write an end: words of 32 bits, each as this machine reads it, in hexadecimal.
    An end of an IPv4 connection is in `tcp` or, mapped, in `tcp6`, by the kind of socket that it
    is."""
    forms = [address.packed]
    if address.version == 4:
        forms.append(b"\0" * 10 + b"\xff\xff" + address.packed)
    return {
        "".join(
            f"{int.from_bytes(form[at : at + 4], sys.byteorder):08X}"
            for at in range(0, len(form), 4)
        )
        + f":{port:04X}"
        for form in forms
    }


def printable(value: object) -> str:
    """What others wrote, safe for a line of the log."""
    return ascii(str(value))[1:-1][:80]
