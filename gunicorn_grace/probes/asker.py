"""Finding the process that sent a trigger. Only the socket is used, because a header can be forged.

A UNIX socket names the process that connected (`SO_PEERCRED`, unix(7)). Otherwise the kernel says
which socket is the other end (:mod:`gunicorn_grace.probes.sockets`), and `/proc/<pid>/fd` shows
which processes hold that socket (proc(5)). A request whose origin cannot be proved is refused. Runs
in workers and in the probe responder.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from contextlib import suppress
from typing import Any

from ..shared.agreed import WORKERS_MARK
from ..shared.memory import LINK
from . import processes, sockets
from .processes import WAY_OUT, AskingProcess, Refused, is_gunicorn
from .sockets import Breath, End

MAX_AGE = 10.0
"""Seconds, counted from the fork. A process of this age or older is not accepted as a hook. A hook
asks within its first second, and a proxy lives longer than ten. exec() does not reset the age, so
the age of a shell that first sleeps and then becomes curl counts from the start of the shell."""

NAMING = 0.02
"""Seconds of this thread's CPU. If no young process has asked, the old ones are searched for this
long. The one that has asked is refused anyway; the search only lets the log name it."""

_MARKS = (f"{WORKERS_MARK}=".encode(), b"SERVER_SOFTWARE=gunicorn/")
"""Variables in the environment of every process that an application starts, orphans included. The
plugin sets the first one. Every gunicorn sets the second one, also without this plugin
(``Arbiter.__init__``, 22.0 to 27.0)."""


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

        :raises Refused: /proc belongs to another PID namespace, or is not usable.
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

    def inodes(self, peer: End, ours: End) -> set[str]:
        """Return the inodes of the peer's socket. Both ends of the connection are needed to find
        it, because one port may be in use with several remote ends.

        :raises Refused: the socket is not found, or the peer has closed it.
        """
        inodes = sockets.inodes(self._proc, peer, ours)
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

    def judge_holders(self, asking: set[str]) -> list[str]:
        """Decide on every process that holds one of these sockets. One process is not enough,
        because a young process may have got its connection from an old proxy, or from a process of
        this instance.

        Reading all descriptors of a busy proxy takes 0.2 s. So the young processes come first. If a
        young one holds a socket and passes, all old ones are searched. Otherwise they are searched
        only for :data:`NAMING`, so that the log can name the one that asked.

        :param asking: the inodes of the peer's end of the connection.
        :returns: descriptions of the processes.
        :raises Refused: one of them cannot be a hook, or none is found.
        """
        young, old = self._by_age()
        found, closed = sockets.holders(self._proc, young, asking)
        told = [self.judge(pid, asking) for pid in found]
        limit = float("inf") if found else NAMING
        found, more = sockets.holders(self._proc, old, asking, limit=limit)
        told += [self.judge(pid, asking) for pid in found]
        # A process that may not be inspected could also hold the socket. This is not a reason to
        # refuse. Otherwise no hook would be accepted in a container where any process has more
        # privileges than the worker.
        if not told:
            raise Refused(
                f"no process that uid {os.geteuid()} may inspect holds the other end "
                f"({closed + more} may not be inspected): it is in another container, has another "
                f"uid, or started more than {MAX_AGE:g} s ago; {WAY_OUT}"
            )
        return told

    def judge_unix(self, sock: Any) -> list[str]:
        """Decide on the process that connected a UNIX socket. If the kernel tells which socket is
        the other end, decide also on the processes that hold it now.

        :returns: descriptions of the processes.
        :raises Refused: one of them cannot be a hook.
        """
        connected = peer_pid(sock)
        if not connected:
            raise Refused(f"the peer of the UNIX socket is in another PID namespace; {WAY_OUT}")
        asking: set[str] = set()
        with suppress(OSError):
            this = sockets.unix_socket(os.fstat(sock.fileno()).st_ino)
            asking = {str(this.peer)} if this is not None and this.peer else set()
        told = [self.judge(connected, asking)]
        if asking:
            young, old = self._by_age()
            heirs, _ = sockets.holders(self._proc, [*young, *old], asking)
            told += [self.judge(pid, asking) for pid in heirs if pid != connected]
        return told

    def _by_age(self) -> tuple[list[int], list[int]]:
        """Return the processes younger than :data:`MAX_AGE`, and the others. In both lists the
        youngest comes first."""
        young: list[tuple[float, int]] = []
        old: list[tuple[float, int]] = []
        now, breath = time.clock_gettime(time.CLOCK_BOOTTIME), Breath()
        for pid in [int(name) for name in os.listdir(self._proc) if name.isdigit()]:
            breath.take()
            with suppress(Refused):  # The process has ended.
                age = now - processes.process(self._proc, pid).started
                (young if age < MAX_AGE else old).append((age, pid))
        return [pid for _, pid in sorted(young)], [pid for _, pid in sorted(old)]

    def judge(self, pid: int, asking: set[str]) -> str:
        """Decide whether a process can be a hook.

        :param pid: the process that holds the peer's end of the connection.
        :param asking: the inodes of that end.
        :returns: a description of the process, for the log.
        :raises Refused: the process cannot be a hook.
        """
        # The pid may belong to another process by now. This is not guarded against. Pids are
        # assigned in a cycle, of 32768 by default, which would have to wrap around within the
        # milliseconds of a look-up. The kernel sets SO_PEERCRED at connect(). To abuse that, a
        # process would have to leave its connection to another process and end, and its pid would
        # have to go to a process younger than MAX_AGE.
        process = processes.process(self._proc, pid)
        if process.state in "ZX":
            raise Refused(f"{process} has ended, so it cannot wait for an answer; {WAY_OUT}")

        theirs, here = (processes.namespace(self._proc, who) for who in (str(pid), "self"))
        if theirs != here:
            raise Refused(
                f"{process} is in another PID namespace ({theirs}, not {here}); {WAY_OUT}"
            )
        self._refuse_another_user(process)
        self._refuse_the_application(process)

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

    def _refuse_another_user(self, process: AskingProcess) -> None:
        """Refuse a process of a user who could not stop this instance by a signal either.

        :raises Refused: the process belongs neither to root, nor to this worker's user, nor to the
            arbiter's user.
        """
        trusted = {0, os.geteuid()}.union(processes.users(self._proc, self._arbiter_pid))
        users = processes.users(self._proc, process.pid)
        if not users or not trusted.issuperset(users):
            raise Refused(
                f"{process} belongs to another user ({', '.join(map(str, sorted(users)))}, not "
                f"{', '.join(map(str, sorted(trusted)))}); {WAY_OUT}"
            )

    def _refuse_the_application(self, process: AskingProcess) -> None:
        """Refuse the processes of an application: a worker, a child that it has forked, a `curl`
        that it has started. An attacker can make an application fetch a URL (SSRF).

        All descendants of the arbiter are refused. This is right even if the arbiter is PID 1,
        because a hook has ppid 0: its parent is outside the container. Descent is not enough,
        because an orphan has a new parent. But an orphan still has the environment with which it
        was started, and a child that was only forked still holds the shared memory.

        :raises Refused: the process belongs to this gunicorn or to another one on this machine.
        """
        line = [process]
        while line[-1].pid != self._arbiter_pid and line[-1].parent:
            line.append(processes.process(self._proc, line[-1].parent))
        if line[-1].pid == self._arbiter_pid:
            raise Refused(
                f"{process} belongs to this instance: it is the arbiter, pid {line[-1].pid}, or "
                f"its descendant; {WAY_OUT}"
            )
        for ancestor in line:
            if is_gunicorn(processes.arguments(self._proc, ancestor.pid)):
                raise Refused(
                    f"{process} belongs to another gunicorn: it is {ancestor}, or its descendant; "
                    f"{WAY_OUT}"
                )
        try:
            with open(f"{self._proc}/{process.pid}/environ", "rb") as stream:
                variables = stream.read().split(b"\0")
            held = any(
                link.startswith(LINK)
                for _, link in sockets.links(self._proc, process.pid, Breath())
            )
        except OSError as error:
            raise Refused(
                f"uid {os.geteuid()} may not read the environment of {process} "
                f"({error.strerror}); {WAY_OUT}"
            ) from None
        if held or any(variable.startswith(_MARKS) for variable in variables):
            raise Refused(
                f"{process} was started by the application of a gunicorn: its environment or its "
                f"memory is a worker's; {WAY_OUT}"
            )

    def _refuse_relay(self, process: AskingProcess, asking: set[str]) -> None:
        """Refuse a process that may pass on the requests of others.

        Such a process gets the requests from another socket: from a listening one, or from a second
        connection, like the child that socat or inetd forks for each client. A hook has only the
        socket with which it asks.

        :raises Refused: the process has another socket, or its sockets cannot be inspected.
        """
        try:
            kind = sockets.carrying(self._proc, process.pid, asking)
        except OSError as error:
            raise Refused(
                f"the sockets of {process} cannot be inspected ({error.strerror}); {WAY_OUT}"
            ) from None
        if kind is not None:
            raise Refused(
                f"{process} has another socket ({kind}), so it may ask for others, as a proxy "
                f"does; {WAY_OUT}"
            )


def peer_pid(sock: Any) -> int:
    """Return the pid of the process that called connect(), the first of the three ints of struct
    ucred; 0 if that process is in another PID namespace."""
    return int.from_bytes(
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4], sys.byteorder
    )
