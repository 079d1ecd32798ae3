"""``gunicorn-grace run``: runs any command that starts gunicorn in Python, and loads the plugin
into it.

This is for programs that cannot be edited. The command replaces this process, so it keeps the pid,
receives the signals and sets the exit code. :mod:`gunicorn_grace.boot` is put at the beginning of
its ``PYTHONPATH``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

BOOT = str(Path(__file__).parents[1] / "boot")

NOT_FOUND, NOT_EXECUTABLE = 127, 126
"""The exit codes of a shell for a command that it cannot start."""

PYTHONPATH = "PYTHONPATH"


def run(command: Sequence[str]) -> tuple[int, str]:
    """Replace this process by a command. It returns only if the command cannot be executed.

    :param command: the program and its arguments.
    :returns: an exit code, and the reason.
    """
    # Python ignores these signals from its start, and the command would inherit that.
    for name in ("SIGPIPE", "SIGXFSZ"):
        with contextlib.suppress(AttributeError):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    sys.stdout.flush()
    sys.stderr.flush()
    path = os.pathsep.join(filter(None, [BOOT, _given_path()]))
    try:
        os.execvpe(command[0], list(command), {**os.environ, PYTHONPATH: path})
    except OSError as error:
        code = NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
        return code, f"{command[0]!r} cannot be run: {error.strerror}"


def _given_path() -> str:
    """Return PYTHONPATH as it was given to this process.

    ``opentelemetry-instrument`` removes itself from the variable in the first Python process that
    it starts. That is this process, but gunicorn needs it too.
    """
    try:
        given = Path("/proc/self/environ").read_bytes().split(b"\0")
    except OSError:
        given = []
    name = f"{PYTHONPATH}=".encode()
    for variable in given:
        if variable.startswith(name):
            return os.fsdecode(variable.removeprefix(name))
    return os.environ.get(PYTHONPATH, "")
