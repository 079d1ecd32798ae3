"""Errors of a rehearsal itself, as opposed to errors of the service under test."""

from __future__ import annotations

import re

from ..errors import GraceError

#: Matches the start of the line in which Python, gunicorn's checks, argparse, HAProxy, nginx or
#: Envoy name the error.
_CAUSE = re.compile(
    r"[\w.]*(Error|Exception|Exit|Interrupt)\b:|\S*gunicorn\S*: error:|\[Errno"
    r"|Invalid value for|Failed to (find|parse)"
    r"|\[ALERT\].*\.cfg:\d+\]|nginx: \[emerg\]|\[.*\]\[critical\]"
)


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
    traceback is nearest to the user's mistake. If no line names an error, it is the last line.
    """
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    named = [line for line in lines if _CAUSE.match(line)]
    return (named or lines or [""])[-1]
