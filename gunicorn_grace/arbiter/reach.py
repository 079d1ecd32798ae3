"""Whether SIGTERM will reach the arbiter at all. Runs in the arbiter, at boot.

The platform sends SIGTERM to the process that it started. If that is a shell which waits for
gunicorn, the signal does not reach gunicorn. As the first process of a container, the shell does
not even notice the signal (pid_namespaces(7)). Anywhere else the shell ends, and gunicorn goes on
as an orphan. Then there is no delay and no drain, only SIGKILL. The remedy is ``exec``, so the log
names it.

``/proc/<pid>/status`` shows what a shell does with SIGTERM (proc(5)). A shell that catches it has a
trap, and may pass it on. A shell that ignores it is interactive (bash, dash and zsh do that), and a
person uses it.
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
    """A shell.

    :ivar name: the program, as its command line names it.
    :ivar terminal: the number of its terminal; 0 without one.
    :ivar keeps_sigterm: whether the shell neither catches nor ignores SIGTERM.
    """

    name: str
    terminal: int
    keeps_sigterm: bool


def tell(server: Any, proc: str = "/proc") -> None:
    """Log a line about whatever keeps SIGTERM from the arbiter. Runs in ``on_starting``, before
    gunicorn sets its own handlers.

    :param server: gunicorn's arbiter.
    :param proc: the mount point of the proc file system.
    """
    if signal.SIGTERM not in server.SIGNALS:
        server.log.warning(_NOT_HANDLED)
    with contextlib.suppress(OSError, ValueError, LookupError):
        # Otherwise /proc belongs to another PID namespace, and its pids mean other processes.
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
    # There is no warning in three cases. A person stops a script from its terminal. systemd sends
    # SIGTERM to the whole unit (KillMode=). A script that goes on after `gunicorn &` knows
    # gunicorn's pid; the shell has then made gunicorn ignore SIGINT (POSIX, asynchronous lists).
    is_asynchronous = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if not (shell.terminal or is_asynchronous or "INVOCATION_ID" in os.environ):
        log.warning(_PARENT, printable(shell.name), parent)


def _shell(pid: int, proc: str) -> _Process | None:
    """Return a process if it is a shell; otherwise ``None``.

    :raises OSError: the process is gone.
    """
    # comm would not do: for a script it is the name of the script's file.
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
