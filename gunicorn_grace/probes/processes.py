"""What /proc says about a process that may have sent a trigger (proc(5)).

Runs in workers and in the probe responder.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from ..shared.text import printable

WAY_OUT = 'use `gunicorn-grace prestop`, or grace_trigger = "token"'


class Refused(Exception):
    """A trigger is refused. The message is the reason."""


class AskingProcess(NamedTuple):
    """A process that may have sent a trigger.

    :ivar pid: its process id.
    :ivar name: its name, made safe for the log.
    :ivar parent: its parent's process id.
    :ivar started: when it started, in seconds since boot.
    :ivar state: its state, one letter (proc_pid_stat(5)).
    """

    pid: int
    name: str
    parent: int
    started: float
    state: str

    def __str__(self) -> str:
        return f"pid {self.pid} ({self.name})"


def process(proc: str, pid: int) -> AskingProcess:
    """Read the name, the parent, the start and the state of a process.

    :raises Refused: they cannot be read.
    """
    try:
        with open(f"{proc}/{pid}/stat", "rb") as file:
            stat = file.read()
    except OSError as error:
        raise Refused(
            f"pid {pid} cannot be inspected ({error.strerror}): it ended or is hidden; {WAY_OUT}"
        ) from None
    # "42 (name) S 1 ...": only the name may contain spaces and parentheses.
    head, _, tail = stat.rpartition(b")")
    name = head.partition(b"(")[2].decode("utf-8", "replace")
    columns = tail.split()  # the state, which is field 3 of proc_pid_stat(5), comes first
    started = int(columns[19]) / os.sysconf("SC_CLK_TCK")
    return AskingProcess(pid, printable(name), int(columns[1]), started, columns[0].decode())


def namespace(proc: str, who: str) -> str:
    """Return the PID namespace of a process.

    :raises Refused: it cannot be read.
    """
    try:
        return os.readlink(f"{proc}/{who}/ns/pid")
    except OSError as error:
        raise Refused(
            f"uid {os.geteuid()} may not read the PID namespace of {who} ({error.strerror}); "
            f"{WAY_OUT}"
        ) from None


def users(proc: str, pid: int) -> set[int]:
    """Return the real and the effective user of a process; an empty set if they cannot be read."""
    with suppress(OSError), open(f"{proc}/{pid}/status", "rb") as lines:
        for line in lines:
            if line.startswith(b"Uid:"):
                return set(map(int, line.split()[1:3]))
    return set()


def arguments(proc: str, pid: int) -> list[str]:
    """Return the command line of a process; an empty list if it cannot be read."""
    with suppress(OSError), open(f"{proc}/{pid}/cmdline", "rb") as stream:
        return stream.read(4096).decode("utf-8", "replace").split("\0")
    return []


def is_gunicorn(arguments: Sequence[str]) -> bool:
    """Whether a process with this command line is a gunicorn: by its script, by ``-m``, or by the
    title that it has given itself."""
    if not arguments:
        return False
    if arguments[0].startswith("gunicorn: "):
        return True
    name = os.path.basename(arguments[0])
    if not name.startswith(("python", "pypy")):
        return name == "gunicorn"
    rest = iter(arguments[1:])
    for argument in rest:
        if argument == "-m":
            return next(rest, "") == "gunicorn"
        if argument in ("-W", "-X"):
            next(rest, "")
        elif not argument.startswith("-"):
            return os.path.basename(argument.removesuffix("/__main__.py")) == "gunicorn"
    return False
