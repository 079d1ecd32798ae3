"""The warnings and errors that the instances of a rehearsal log while they boot.

A user who starts one gunicorn reads its log. In a rehearsal the logs of the instances are not
shown, and a warning there may explain a loss later.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

#: A line of gunicorn's log (gunicorn/glogging.py), which uvicorn-worker and the plugin write to as
#: well; a line as uvicorn and ``logging.basicConfig`` format it; and a warning of Python's
#: ``warnings``.
_LINE = re.compile(
    r"\[\d{4}-[^]]*\] \[\d+\] \[(?P<level>WARNING|ERROR|CRITICAL)\] (?P<text>.+)"
    r"|(?P<other>WARNING|ERROR|CRITICAL):\s*(?P<said>.+)"
    r"|(?P<warned>\S.*:\d+: \w*Warning: .+)"
)


def boot_warnings(instances: Iterable[Iterable[tuple[float, str]]], until: float) -> list[str]:
    """Find the warnings and errors, each text once.

    :param instances: for each instance, the lines that it printed as ``(time.monotonic(), text)``.
    :param until: ``time.monotonic()`` when all instances had booted.

    :returns: texts that begin with the level, in the order in which they came.
    """
    found: dict[str, None] = {}
    for lines in instances:
        for at, line in list(lines):
            if at <= until and (match := _LINE.match(line)):
                level = match["level"] or match["other"] or "WARNING"
                text = match["text"] or match["said"] or match["warned"]
                found[f"{level}: {text.strip()}"] = None
    return list(found)
