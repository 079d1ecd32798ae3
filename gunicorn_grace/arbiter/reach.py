"""Whether SIGTERM will reach the arbiter at all. Runs in the arbiter, at boot.

The platform sends SIGTERM to the process that it started. If that is a shell which waits for
gunicorn, the shell keeps the signal for itself: as the first process of a container it does not
even notice it (pid_namespaces(7)), anywhere else it ends, and gunicorn goes on as an orphan. Then
there is no delay and no drain, only SIGKILL. The cure is ``exec``, so the log names it.

What a shell does about SIGTERM is in ``/proc/<pid>/status`` (proc(5)). One that catches it has a
trap, and may pass it on. One that ignores it is a person's: interactive bash, dash and zsh do.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Any, NamedTuple

from ..shared.text import printable

SHELLS = frozenset({"sh", "ash", "bash", "busybox", "dash", "fish", "ksh", "mksh", "zsh"})

_FIRST = (
    "gunicorn-grace: the first process of this container is a shell (%s), which passes no SIGTERM "
    "on: gunicorn would get SIGKILL without a word before it; let the shell run `exec gunicorn`, "
    'or write CMD ["gunicorn", ...]'
)
_PARENT = (
    "gunicorn-grace: a shell waits for gunicorn (%s, pid %d), and passes no SIGTERM on: whoever "
    "stops that shell does not stop gunicorn; let the shell run `exec gunicorn`"
)
_NOT_HANDLED = (
    "gunicorn-grace: SIGTERM is not in Arbiter.SIGNALS, so gunicorn does not handle it: there is "
    "no delay and no drain; add it again: Arbiter.SIGNALS.append(signal.SIGTERM)"
)


class _Process(NamedTuple):
    """What is known of a process that may be a shell.

    :ivar name: the program, as its command line names it.
    :ivar terminal: the number of its terminal; 0 without one.
    :ivar keeps_sigterm: whether SIGTERM has its default action there.
    """

    name: str
    terminal: int
    keeps_sigterm: bool


def tell(server: Any, proc: str = "/proc") -> None:
    """Log in one line what keeps SIGTERM from the arbiter. Runs in ``on_starting``, before gunicorn
    sets its own handlers.

    :param server: gunicorn's arbiter.
    :param proc: the mount point of the proc file system.
    """
    if signal.SIGTERM not in server.SIGNALS:
        server.log.warning(_NOT_HANDLED)
    with contextlib.suppress(OSError, ValueError, LookupError):
        # Elsewhere, its numbers are those of another PID namespace.
        if os.readlink(f"{proc}/self") == str(os.getpid()):
            _tell_of_shells(server.log, proc)


def _tell_of_shells(log: Any, proc: str) -> None:
    pid, parent = os.getpid(), os.getppid()
    first = _shell(1, proc) if pid != 1 else None
    if first is not None and first.keeps_sigterm:
        log.warning(_FIRST, printable(first.name))
        return
    shell = _shell(parent, proc) if parent > 1 else None
    if shell is None or not shell.keeps_sigterm:
        return
    # A script that a person runs is stopped from the terminal, systemd sends SIGTERM to the whole
    # unit (KillMode=), and a script that goes on after `gunicorn &` knows its pid: the shell has
    # then let it ignore SIGINT (POSIX, asynchronous lists).
    is_asynchronous = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if not (shell.terminal or is_asynchronous or "INVOCATION_ID" in os.environ):
        log.warning(_PARENT, printable(shell.name), parent)


def _shell(pid: int, proc: str) -> _Process | None:
    """Return what is known of a process; ``None`` if it is not a shell.

    :raises OSError: the process is gone.
    """
    # Not comm, which for a script is the name of its file.
    command = Path(f"{proc}/{pid}/cmdline").read_bytes().split(b"\0")[0]
    name = os.fsdecode(command).rpartition("/")[2].removeprefix("-")
    if name not in SHELLS:
        return None
    after_name = Path(f"{proc}/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    status = dict(
        line.split(":\t", 1)
        for line in Path(f"{proc}/{pid}/status").read_text(errors="replace").splitlines()
        if ":\t" in line
    )
    handled = int(status["SigCgt"], 16) | int(status["SigIgn"], 16)
    return _Process(name, int(after_name[4]), not handled >> (signal.SIGTERM - 1) & 1)
