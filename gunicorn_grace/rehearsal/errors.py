"""What can go wrong with a rehearsal itself, as opposed to with the service rehearsed."""

from __future__ import annotations

import re

from ..errors import GraceError

#: How Python, gunicorn's own checks, argparse, HAProxy, nginx and Envoy begin the line that says
#: what is wrong.
_CAUSE = re.compile(
    r"[\w.]*(Error|Exception|Exit|Interrupt)\b:|\S*gunicorn\S*: error:|\[Errno"
    r"|Invalid value for|Failed to (find|parse)"
    r"|\[ALERT\].*\.cfg:\d+\]|nginx: \[emerg\]|\[.*\]\[critical\]"
)


class RehearsalError(GraceError):
    """A rehearsal could not be carried out. The first line of the message says all, the rest is
    evidence."""

    @property
    def line(self) -> str:
        """The first line of the message."""
        return str(self).partition("\n")[0]


class InstanceFailed(RehearsalError):
    """An instance ended, or said nothing in time, before it was of use.

    ``output`` is all that it printed.
    """

    def __init__(self, what: str, output: str) -> None:
        self.output = output
        cause = likely_cause(output)
        super().__init__(
            f"{what}{': ' + cause if cause else ''}\n--- output ---\n{output.rstrip() or '(none)'}"
        )


class LineMissing(RehearsalError, AssertionError):
    """A log line that was waited for did not come. An ``AssertionError``: a test that waits fails
    by it."""


class LoadFailed(RehearsalError):
    """The load generator could not do its part (no file descriptors or local ports left, for
    one)."""


class PlanFailed(RehearsalError):
    """The plan cannot be played as it stands."""


class OutputFailed(RehearsalError):
    """A report could not be written."""


def likely_cause(output: str) -> str:
    """The line of ``output`` that best explains a failed start; empty when there is no output.

    The last line that names an error, because a traceback ends in it and what a chained traceback
    ends in is nearest to the user's mistake; else the last line at all.
    """
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    named = [line for line in lines if _CAUSE.match(line)]
    return (named or lines or [""])[-1]
