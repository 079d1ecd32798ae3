"""``gunicorn-grace run``: any command that starts gunicorn in Python, with the plugin in it.

For programs that nobody can edit. The command is executed in place of this process, so its pid,
its signals and its exit code are its own. It finds :mod:`gunicorn_grace.boot` in front of Python's
path.
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
    """Execute a command. It returns only if that cannot be done.

    :returns: an exit code, and why.
    """
    # What Python ignores at its start would stay ignored in the command.
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

    ``opentelemetry-instrument`` takes itself out of it in the first Python below it, which is this
    one; the second one is gunicorn.
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
