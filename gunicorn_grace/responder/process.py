"""The probe responder: a small process that answers the probes while every worker is busy.

A sync worker answers one request at a time. A readiness probe then waits behind slow requests just
when the instance is busy, and a load balancer takes the instance out of rotation because it is
slow. This process only answers probes. It is started as a new program and is not a fork of the
arbiter (see :mod:`gunicorn_grace.arbiter.probe_port`), so it holds no module and no lock of the
application. Its descriptors are 0 for its orders, 1 and 2 for a pipe into the arbiter's log, 3 for
the listener, 4 for the shared memory, and 5 for the arbiter's process (pidfd_open(2)).

All signals except RETIRE are blocked, so that a SIGTERM to the whole process group does not end
this process before the others. When the arbiter has ended, descriptor 5 becomes readable, and this
process exits too. If the kernel has no such descriptors, this process is a child of the arbiter,
and checks once a second whether it has another parent.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import select
import signal
import socket
import sys

from ..shared.agreed import ARBITER, LISTENER, MEMORY, RETIRE
from ..shared.memory import Memory
from ..shared.settings import Secret, Settings
from .answering import ResponderAnswers
from .http import Server


def say(line: str) -> None:
    """Send a line to the arbiter's log. If the pipe is full the line is lost, because this process
    must not block."""
    with contextlib.suppress(OSError):
        os.write(2, line.replace("\n", " ").encode("utf-8", "backslashreplace") + b"\n")


def main() -> None:
    """Run the responder until the arbiter retires it or has ended. The arbiter starts this process,
    and gives the orders as JSON on its standard input."""
    orders = json.load(sys.stdin)
    is_detached = sys.argv[2] == "detached"
    _leave_all_else(ARBITER if is_detached else MEMORY)
    _become(orders["uid"], orders["gid"])
    arbiter: int = orders["arbiter"]

    def is_orphan() -> bool:
        if is_detached:
            return bool(select.select([ARBITER], [], [], 0)[0])
        return os.getppid() != arbiter

    token = orders["settings"].pop("trigger_token")
    settings = Settings(
        **orders["settings"], trigger_token=None if token is None else Secret(token)
    )
    # The arbiter's orders contain the layout, because the copy in the memory may be overwritten.
    mapping = mmap.mmap(MEMORY, os.fstat(MEMORY).st_size)
    memory = Memory(MEMORY, mapping, orders["slots"], orders["boards"])
    answers = ResponderAnswers(memory, settings, orders["timeout"], say, arbiter=arbiter)
    ends_with = ARBITER if is_detached else None
    server = Server(socket.socket(fileno=LISTENER), answers.answer, say, is_orphan, ends_with)
    signal.signal(RETIRE, server.retire)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {RETIRE})
    if not is_orphan():
        server.run()


def _leave_all_else(last: int) -> None:
    """Close all other inherited descriptors. gunicorn's listeners are inheritable
    (``gunicorn/sock.py``, 22.0 to 27.0), and an open copy here would keep accepting connections
    after the arbiter has closed them."""
    for folder in ("/proc/self/fd", "/dev/fd"):
        with contextlib.suppress(OSError):
            for fd in [int(name) for name in os.listdir(folder)]:
                if fd > last:
                    with contextlib.suppress(OSError):  # The descriptor of the listing itself.
                        os.close(fd)
            return
    os.closerange(last + 1, os.sysconf("SC_OPEN_MAX"))


def _become(uid: int, gid: int) -> None:
    """Drop the privileges that the arbiter has and a worker does not. Unlike a worker, this process
    also drops the supplementary groups."""
    if (uid, gid) == (os.geteuid(), os.getegid()):
        return
    with contextlib.suppress(PermissionError):
        os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
