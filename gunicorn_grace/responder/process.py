"""The probe responder: a small process that answers the probes while every worker is busy.

A sync worker answers one request at a time, so a readiness probe waits behind slow requests just
when the instance is loaded, and a load balancer takes it out for being slow. This process has
nothing else to do. It is started anew, not forked (:mod:`gunicorn_grace.arbiter.probe_port` says
how), so it holds no module of the application, no lock and no descriptor but these: 0 its orders, 1
and 2 a pipe into the arbiter's log, 3 the listener, 4 the shared memory.

All signals are blocked but RETIRE, so that a SIGTERM to the whole process group does not end it
before the others. It looks once a second whether its arbiter is gone, and then ends too.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys

from ..shared.agreed import LISTENER, MEMORY, RETIRE
from ..shared.memory import Memory
from ..shared.settings import Secret, Settings
from .answering import ResponderAnswers
from .http import Server


def say(line: str) -> None:
    """Tell the arbiter a line for its log. What it does not read in time is lost: nothing waits
    here."""
    with contextlib.suppress(OSError):
        os.write(2, line.replace("\n", " ").encode("utf-8", "backslashreplace") + b"\n")


def main() -> None:
    """The process. Its parent is the arbiter."""
    orders = json.load(sys.stdin)
    _leave_all_else()
    _become(orders["uid"], orders["gid"])
    arbiter: int = orders["arbiter"]

    def is_orphan() -> bool:
        return os.getppid() != arbiter

    token = orders["settings"].pop("trigger_token")
    settings = Settings(
        **orders["settings"], trigger_token=None if token is None else Secret(token)
    )
    memory = Memory.mapped(MEMORY, "the shared memory")
    answers = ResponderAnswers(memory, settings, orders["timeout"], say)
    server = Server(socket.socket(fileno=LISTENER), answers.answer, say, is_orphan)
    signal.signal(RETIRE, server.retire)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {RETIRE})
    if not is_orphan():
        server.run()


def _leave_all_else() -> None:
    """Close what came along: gunicorn's listeners are inheritable (``gunicorn/sock.py``, 22.0 to
    27.0), and held here they would go on taking connections after the arbiter has closed them."""
    for folder in ("/proc/self/fd", "/dev/fd"):
        with contextlib.suppress(OSError):
            for fd in [int(name) for name in os.listdir(folder)]:
                if fd > MEMORY:
                    with contextlib.suppress(OSError):  # The listing's own.
                        os.close(fd)
            return
    os.closerange(MEMORY + 1, os.sysconf("SC_OPEN_MAX"))


def _become(uid: int, gid: int) -> None:
    """Give up what the arbiter may and a worker may not. Unlike a worker it keeps no other group
    either."""
    if (uid, gid) == (os.geteuid(), os.getegid()):
        return
    with contextlib.suppress(PermissionError):
        os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
