"""Errors of a rehearsal itself, as opposed to errors of the service under test."""

from __future__ import annotations

import os
import re

from ..errors import GraceError

#: Matches the start of the line in which Python, gunicorn's checks, argparse, HAProxy, nginx or
#: Envoy name the error.
_CAUSE = re.compile(
    r"[\w.]*(Error|Exception|Exit|Interrupt)\b:|\S*gunicorn\S*: error:|\[Errno"
    r"|Invalid value for|Failed to (find|parse)"
    r"|\[ALERT\].*\.cfg:\d+\]|nginx: \[emerg\]|\[.*\]\[critical\]"
)


#: A frame of a traceback: its file and line.
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')
#: Files that a user did not write: installed packages, and Python's own.
_FOREIGN = re.compile(r"<|.*/(site-packages|dist-packages|lib/python3[^/]*)/")


class RehearsalError(GraceError):
    """A rehearsal could not be carried out. The first line of the message can stand alone. The
    other lines, such as an instance's output, are evidence."""

    @property
    def line(self) -> str:
        """The first line of the message."""
        return str(self).partition("\n")[0]


class InstanceFailed(RehearsalError):
    """An instance ended, or did not answer in time.

    :ivar output: everything that it printed.
    """

    def __init__(self, what: str, output: str) -> None:
        self.output = output
        cause = likely_cause(output)
        super().__init__(
            f"{what}{': ' + cause if cause else ''}\n--- output ---\n{output.rstrip() or '(none)'}"
        )


class LineMissing(RehearsalError, AssertionError):
    """An expected log line did not come. It is an ``AssertionError``, so that a test fails with
    it."""


class LoadFailed(RehearsalError):
    """The load generator could not send its requests, for example for lack of file descriptors."""


class PlanFailed(RehearsalError):
    """The plan cannot be played."""


class OutputFailed(RehearsalError):
    """A report could not be written."""


def likely_cause(output: str) -> str:
    """Return the line of ``output`` that best explains a failed start; empty without output.

    It is the last line that names an error. A traceback ends with such a line, and the end of a
    chained traceback is nearest to the user's mistake. If no line names an error, it is the last
    line. If a traceback has a frame in the user's own code, outside installed packages and Python,
    the file and line of the innermost such frame come first.
    """
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    named = [number for number, line in enumerate(lines) if _CAUSE.match(line)]
    if not named:
        return (lines or [""])[-1]
    number = named[-1]
    frames = [match for line in lines[:number] if (match := _FRAME.match(line))]
    own = [frame for frame in frames if not _FOREIGN.match(frame["file"])]
    place = f"{_shown(own[-1]['file'])}:{own[-1]['line']}: " if own else ""
    return place + lines[number]


def traceback_cause(output: str) -> str:
    """Return the :func:`likely_cause` if ``output`` has a traceback; otherwise an empty string."""
    return likely_cause(output) if "Traceback (most recent call last)" in output else ""


def _shown(file: str) -> str:
    """Return the path of a file, relative to the working directory if the file is below it."""
    folder = os.getcwd() + os.sep
    return file.removeprefix(folder)
