"""Find the process that sent a trigger. Only the socket is used, because a header can be forged.

A UNIX socket names the process (`SO_PEERCRED`, unix(7)). For TCP, the peer's row in `/proc/net/tcp`
or `tcp6` has the inode of its socket, and `/proc/<pid>/fd` shows which processes hold that socket
(proc(5)). A request whose origin cannot be proved is refused. Runs in workers and in the probe
responder.
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

from ..shared.text import printable

MAX_AGE = 10.0
"""Age in seconds, counted from the fork, from which on a process is not accepted as a hook. A hook
asks within its first second, and a proxy lives longer than ten. exec() does not reset the age, so a
shell that first sleeps and then becomes curl counts from the start of the shell."""

WAY_OUT = 'use `gunicorn-grace prestop`, or grace_trigger = "token"'

# SYN_SENT, SYN_RECV, LISTEN, NEW_SYN_RECV (include/net/tcp_states.h). The peer of an accepted
# connection is never in one of these states.
_NOT_CONNECTED = frozenset({"02", "03", "0A", "0C"})

# A connection that is not established yet: curl tries IPv6 and IPv4 at the same time (RFC 8305).
_SYN_SENT = "02"

_ACCEPTS = 0x10000  # __SO_ACCEPTCON (include/uapi/linux/net.h), as /proc/net/unix shows it

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Refused(Exception):
    """A trigger is refused. The message is the reason."""


class AskingProcess(NamedTuple):
    """A process that may have sent a trigger.

    :ivar pid: its process id.
    :ivar name: its name, made safe for the log.
    :ivar parent: its parent's process id.
    :ivar started: when it started, in seconds since boot.
    """

    pid: int
    name: str
    parent: int
    started: float

    def __str__(self) -> str:
        return f"pid {self.pid} ({self.name})"


class Asker:
    """Finds the process that sent a trigger and decides whether it can be a one-shot hook of this
    container.

    :param arbiter_pid: the process id of the arbiter. Its descendants belong to the application.
    :param proc: the mount point of the proc file system.
    """

    def __init__(self, arbiter_pid: int, proc: str = "/proc") -> None:
        self._arbiter_pid = arbiter_pid
        self._proc = proc

    def check_proc(self) -> None:
        """Check that /proc belongs to this PID namespace.

        A /proc mounted for another PID namespace numbers processes differently. The arbiter's pid
        would name an unrelated process there, and the application's own processes would look
        unrelated.

        :raises Refused: it does not, or there is no usable /proc.
        """
        try:
            shown = os.readlink(f"{self._proc}/self")
        except OSError as error:
            raise Refused(
                f"{self._proc} is not usable ({error.strerror}), so the asking process is "
                f"unknown; {WAY_OUT}"
            ) from None
        if shown != str(os.getpid()):
            raise Refused(
                f"{self._proc} belongs to another PID namespace (this process is pid "
                f"{os.getpid()}, there {shown}); {WAY_OUT}"
            )

    def inodes(self, peer: tuple[Address, int], ours: tuple[Address, int]) -> set[str]:
        """Return the inodes of the peer's socket, found by both ends of the connection. One port
        may be in use with several remote ends.

        :raises Refused: the socket is not found, or closed.
        """
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
                continue  # tcp6 is missing where IPv6 is disabled
        if not inodes:
            raise Refused(
                f"the peer's end {peer[0]} port {peer[1]} is in neither {self._proc}/net/tcp nor "
                f"tcp6 (a redirected port, or another network namespace); {WAY_OUT}"
            )
        # 0 is a socket that no process holds any more.
        if "0" in inodes:
            raise Refused(
                "the peer closed the connection before it could be looked up: it must wait for "
                "the response"
            )
        return inodes

    def holders(self, inodes: set[str]) -> list[int]:
        """Return the processes that hold one of these sockets.

        :raises Refused: none of the processes that this one may inspect does.
        """
        wanted = {f"socket:[{inode}]" for inode in inodes}
        pids, closed = [], 0
        for pid in [int(name) for name in os.listdir(self._proc) if name.isdigit()]:
            try:
                if self._holds(pid, wanted):
                    pids.append(pid)
            # Such a process may also hold the socket without being seen. To refuse for that reason
            # would refuse every hook in a container where any process has more privileges than the
            # worker.
            except PermissionError:
                closed += 1
        if not pids:
            raise Refused(
                f"no process that uid {os.geteuid()} may inspect holds the other end ({closed} may "
                f"not be inspected): it is in another container, or has another uid; {WAY_OUT}"
            )
        return pids

    def _holds(self, pid: int, wanted: set[str]) -> bool:
        return any(link in wanted for link in self._links(pid))

    def _links(self, pid: int) -> Iterator[str]:
        """Yield the targets of a process's descriptors; nothing once it has ended."""
        folder = f"{self._proc}/{pid}/fd"
        try:
            descriptors = os.listdir(folder)
        except (FileNotFoundError, ProcessLookupError):
            return
        for descriptor in descriptors:
            # A descriptor that is closed between the two calls must not hide the others.
            with suppress(FileNotFoundError, ProcessLookupError):
                yield os.readlink(f"{folder}/{descriptor}")

    def _refuse_relay(self, process: AskingProcess, asking: set[str]) -> None:
        """Refuse a process that may pass on the requests of others.

        Such a process gets them from a socket: a listening one, or a second connection, like the
        child that socat or inetd forks for each client. A hook has no socket except the one with
        which it asks. UNIX connections prove nothing, because the standard streams of a systemd
        service or an ssh session are UNIX connections.

        :raises Refused: it has another socket, or its sockets cannot be inspected.
        """
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
                                f"{process} has another socket ({table}), so it may ask for others,"
                                f" as a proxy does; {WAY_OUT}"
                            )
        except OSError as error:
            raise Refused(
                f"the sockets of {process} cannot be inspected ({error.strerror}); {WAY_OUT}"
            ) from None

    def judge(self, pid: int, asking: set[str]) -> str:
        """Decide whether a process can be a hook.

        :param pid: the process that holds the peer's end of the connection.
        :param asking: the inodes of that end.
        :returns: a description of the process, for the log.
        :raises Refused: it cannot be a hook.
        """
        # The pid may name another process by now. This is not guarded against. Pids are assigned in
        # a cycle, of 32768 by default, which would have to wrap around within the milliseconds of a
        # look-up. SO_PEERCRED is taken at connect(). To abuse it, a process has to leave its
        # connection to an heir and end, and its pid has to go to a process younger than MAX_AGE.
        process = self.process(pid)

        theirs, here = (self._namespace(who) for who in (str(pid), "self"))
        if theirs != here:
            raise Refused(
                f"{process} is in another PID namespace ({theirs}, not {here}); {WAY_OUT}"
            )

        # This refuses a worker, or a curl that the application runs. A hook has ppid 0, because its
        # parent is outside the container, so the rule also holds where the arbiter is PID 1. An
        # orphan adopted by that PID 1 is refused, because it looks the same as a child that the
        # application put into the background. Where the arbiter is not PID 1, such a child passes.
        # An attacker who can start one does not need a trigger.
        ancestor = process
        while ancestor.pid != self._arbiter_pid and ancestor.parent:
            ancestor = self.process(ancestor.parent)
        if ancestor.pid == self._arbiter_pid:
            raise Refused(
                f"{process} belongs to this instance: it is the arbiter, pid {ancestor.pid}, or "
                f"its descendant; {WAY_OUT}"
            )

        # Both clocks include the time that the machine was suspended, and a time namespace shifts
        # both by the same amount.
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - process.started
        if age >= MAX_AGE:
            raise Refused(
                f"{process} started {age:.2f} s ago >= {MAX_AGE:g} s, so it is not a one-shot "
                f"hook; {WAY_OUT}"
            )
        self._refuse_relay(process, asking)
        return f"{process}, started {max(age, 0):.2f} s ago"

    def _namespace(self, who: str) -> str:
        try:
            return os.readlink(f"{self._proc}/{who}/ns/pid")
        except OSError as error:
            raise Refused(
                f"uid {os.geteuid()} may not read the PID namespace of {who} ({error.strerror}); "
                f"{WAY_OUT}"
            ) from None

    def process(self, pid: int) -> AskingProcess:
        """Read the name, the parent and the start of a process.

        :raises Refused: they cannot be read.
        """
        try:
            with open(f"{self._proc}/{pid}/stat", "rb") as file:
                stat = file.read()
        except OSError as error:
            raise Refused(
                f"pid {pid} cannot be inspected ({error.strerror}): it ended or is hidden; "
                f"{WAY_OUT}"
            ) from None
        # "42 (name) S 1 ...": only the name may contain spaces and parentheses.
        head, _, tail = stat.rpartition(b")")
        name = head.partition(b"(")[2].decode("utf-8", "replace")
        columns = tail.split()  # the state, which is field 3 of proc_pid_stat(5), comes first
        return AskingProcess(
            pid, printable(name), int(columns[1]), int(columns[19]) / os.sysconf("SC_CLK_TCK")
        )


def peer_pid(sock: Any) -> int:
    """Return the process that called connect(), the first of struct ucred's three ints; 0 if it is
    not in this PID namespace."""
    return int.from_bytes(
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4], sys.byteorder
    )


def endpoint(name: tuple[Any, ...]) -> tuple[Address, int]:
    """Return the real address and port. A dual-stack listener sees an IPv4 client as
    ::ffff:127.0.0.1."""
    address = ipaddress.ip_address(name[0])
    return getattr(address, "ipv4_mapped", None) or address, name[1]


def _spellings(address: Address, port: int) -> set[str]:
    """Return how the tables in /proc may write one end of a connection: 32-bit words in the
    machine's byte order, in hexadecimal. An end of an IPv4 connection is in `tcp`, or mapped in
    `tcp6`, depending on the kind of its socket."""
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
