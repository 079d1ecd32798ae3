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
    """A rehearsal could not be carried out. The first line of the message is complete; the rest is
    evidence."""

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
    """The line of ``output`` that best explains a failed start; empty when there is no output.

    It is the last line that names an error: a traceback ends with it, and the end of a chained
    traceback is nearest to the user's mistake. If no line names an error, it is the last line. In
    front of it stands the place in the user's own code, if a traceback shows one: the innermost
    frame that is neither of an installed package nor of Python.
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
    """The same, only if ``output`` has a traceback of an error."""
    return likely_cause(output) if "Traceback (most recent call last)" in output else ""


def _shown(file: str) -> str:
    """The path of a file below the working directory, or the whole path."""
    folder = os.getcwd() + os.sep
    return file.removeprefix(folder)
