"""The probe responder as a process: the arbiter starts it, reads its lines, tells it to end, and
notices its end.

A program that runs gunicorn may count the arbiter's children and take each of them for a worker.
The monitor of Airflow 2 does, and would end a real worker for each child too many. So the responder
is not a child of the arbiter. The arbiter starts a new interpreter, which forks at once and exits.
The forked child goes to init, which reaps it. The arbiter is not its parent, so the two processes
notice each other in another way:

- The responder has a descriptor of the arbiter's process (pidfd_open(2)). The arbiter itself has
  opened it, so it cannot refer to another process. It becomes readable when the arbiter has ended
  for any reason.
- The arbiter has the reading end of a pipe into which the responder writes. The first line is the
  responder's pid. The arbiter opens a descriptor of that process, and then checks that the pipe
  still has a writer. If it does, the responder was alive all the time, so the pid belongs to it.
- When the responder has ended, the pipe has no writer.

If the kernel has no such descriptors (Linux before 5.3, some sandboxes), the responder is an
ordinary child. Everything here runs in the arbiter's main thread; in gunicorn 22 and 23
:meth:`Responder.reap` runs in a signal handler.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import sys
from pathlib import Path

from ..shared.agreed import RETIRE

_STARTS = """
import os, sys
if sys.argv[2] == "detached":
    try:
        child = os.fork()
    except OSError:
        child = 0
    if child:
        os._exit(0)
    os.write(1, b"%d\\n" % os.getpid())
sys.modules.update(ssl=None, _hashlib=None)
sys.path.append(sys.argv[1])
from gunicorn_grace.responder.process import main
main()
"""
"""The program of the new interpreter. It runs isolated and without ``site`` (-I -S), because a file
in the working directory or in site-packages could replace a module of the standard library. It runs
without OpenSSL, because ``http.client`` and ``hmac`` would import that: 4 MiB on top of 18 MiB
(Python 3.11)."""

_CHILD_FDS = 16
"""Descriptors are first copied to numbers from this one on, and then to the child's numbers. So no
copy overwrites a descriptor that is still to be copied."""

_GIVE_UP_AFTER = 1.0
"""Seconds to wait until SIGKILL has taken effect."""


class Responder:
    """One responder.

    :ivar pid: its pid; 0 until it is known.

    :param child: the pid of the process that was started.
    :param is_detached: whether that process forks the responder and exits.
    :param pipe: the reading end of the pipe into which the responder writes.
    """

    def __init__(self, child: int, is_detached: bool, pipe: int) -> None:
        self.pid: int = 0 if is_detached else child
        self._child = 0 if is_detached else child
        self._starter = _descriptor_of(child) if is_detached else -1
        self._pidfd = -1
        self._pipe = pipe
        self._unread = b""
        self._status = ""
        self._shall_retire = False

    def read(self) -> list[str]:
        """Return the lines that the responder has written since the last call, without its pid.
        This does not block."""
        if self._pipe < 0:
            return []
        with contextlib.suppress(BlockingIOError):
            self._unread += os.read(self._pipe, 65536)
        *lines, self._unread = self._unread.split(b"\n")
        if not self.pid and lines and lines[0].isdigit():
            self._know(int(lines.pop(0)))
        return [line.decode("utf-8", "backslashreplace") for line in lines]

    def _know(self, pid: int) -> None:
        self._pidfd = _descriptor_of(pid)
        # If the responder has ended by now, another process may have its pid.
        if not self.has_ended():
            self.pid = pid
        if self._shall_retire:
            self.retire()

    def reap(self) -> None:
        """Reap the responder if it is a child, and the process that forked it. Otherwise gunicorn
        would log the end of each as a worker's. This reads nothing and logs nothing."""
        if self._child:
            with contextlib.suppress(ChildProcessError):  # gunicorn's waitpid(-1) has reaped it.
                found, status = os.waitpid(self._child, os.WNOHANG)
                if not found:
                    return
                self._note(os.waitstatus_to_exitcode(status))
            self._child = 0
        # If the arbiter is PID 1, it inherits every orphan, and so the responder too.
        for fd in (self._starter, self._pidfd):
            if fd >= 0:
                with contextlib.suppress(OSError):
                    ended = os.waitid(os.P_PIDFD, fd, os.WEXITED | os.WNOHANG)
                    if ended is not None:
                        by_itself = ended.si_code == os.CLD_EXITED
                        self._note(ended.si_status if by_itself else -ended.si_status)

    def _note(self, code: int) -> None:
        if code:
            self._status = (
                f"ended with exit code {code}" if code > 0 else f"was ended by signal {-code}"
            )

    def has_ended(self) -> bool:
        """Whether the responder has ended, that is, whether its pipe has no writer."""
        if self._pipe < 0:
            return True
        poll = select.poll()
        poll.register(self._pipe, 0)
        return any(event & select.POLLHUP for _, event in poll.poll(0))

    def __str__(self) -> str:
        pid = f"(pid {self.pid}) " if self.pid else ""
        return f"{pid}{self._status or 'has ended'}"

    def retire(self) -> None:
        """Tell the responder to finish its answers and end. If its pid is not known yet, it is told
        as soon as :meth:`read` learns the pid."""
        self._shall_retire = True
        self._send(RETIRE)

    def kill(self) -> None:
        """End the responder by SIGKILL, and wait for its end for at most a second."""
        self._send(signal.SIGKILL)
        if self._pipe >= 0:
            poll = select.poll()
            poll.register(self._pipe, 0)
            poll.poll(_GIVE_UP_AFTER * 1000)
        self.reap()

    def _send(self, sig: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self._pidfd >= 0 and self.pid:
                # The pid would not do. Another process may have it before the end is noticed.
                signal.pidfd_send_signal(self._pidfd, sig)
            elif self._child:
                os.kill(self._child, sig)

    def close(self) -> None:
        """Close this process's descriptors of the responder. Runs in the arbiter, and in a worker,
        which has inherited them."""
        for fd in (self._pipe, self._pidfd, self._starter):
            if fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(fd)
        self._pipe = self._pidfd = self._starter = -1


def start(orders: bytes, listener: int, memory: int) -> Responder:
    """Start a responder.

    :param orders: the JSON that the responder reads from its standard input.
    :param listener: the descriptor of the listener.
    :param memory: the descriptor of the shared memory.
    :raises OSError: the process cannot be started.
    :raises ValueError: the orders do not fit into a pipe.
    """
    with contextlib.ExitStack() as stack:

        def pipe() -> tuple[int, int]:
            ends = os.pipe()
            for end in ends:
                stack.callback(os.close, end)
            return ends

        read_orders, give_orders = pipe()
        os.set_blocking(give_orders, False)
        if os.write(give_orders, orders) < len(orders):
            raise ValueError(f"the settings are longer than a pipe holds: {len(orders)} bytes")
        log, write_log = pipe()
        os.set_blocking(log, False)
        os.set_blocking(write_log, False)
        given = [read_orders, write_log, write_log, listener, memory]
        arbiter = _descriptor_of(os.getpid())
        if arbiter >= 0:
            stack.callback(os.close, arbiter)
            given.append(arbiter)
        actions = []
        for number, fd in enumerate(given):
            copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _CHILD_FDS)
            stack.callback(os.close, copy)
            actions.append((os.POSIX_SPAWN_DUP2, copy, number))
        how = "detached" if arbiter >= 0 else "child"
        package = str(Path(__file__).parents[2])
        child = os.posix_spawn(
            sys.executable,
            [sys.executable, "-I", "-S", "-c", _STARTS, package, how],
            os.environ,
            file_actions=actions,
            # The signals are blocked from the start, because a SIGTERM to the whole group may come
            # before the responder could do that itself.
            setsigmask=sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}),
        )
        return Responder(child, arbiter >= 0, os.dup(log))


def _descriptor_of(pid: int) -> int:
    """Return a descriptor of a process; -1 if the kernel has no such descriptors, or there is no
    such process."""
    try:
        found = os.pidfd_open(pid)
    except (AttributeError, OSError):
        return -1
    try:
        signal.pidfd_send_signal(found, 0)
    except (AttributeError, OSError):
        os.close(found)
        return -1
    return found
