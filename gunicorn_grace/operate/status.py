"""``gunicorn-grace status``: shows the state of each instance and of its workers."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

from ..errors import StateError
from .overview import look
from .overview_text import document, table

EVERY = 1.0
"""Seconds between two looks of ``--watch``. A serving arbiter publishes its numbers once a
second."""

_HOME_AND_CLEAR = "\x1b[H\x1b[J"


def show(
    pid: int | None, say: Callable[[str], object], *, as_json: bool = False, again: bool = False
) -> None:
    """Print the instances that this user may see. Runs in a command.

    :param pid: the arbiter to show; ``None`` for all.
    :param say: takes the text to print.
    :param as_json: whether to print a JSON document in one line.
    :param again: whether to print every second until Ctrl-C or until the output is closed. If no
        instance is found, that error is printed instead.
    :raises StateError: no instance was found, and ``again`` is false.
    """
    while True:
        try:
            seen = look(pid)
        except StateError as error:
            if not again:
                raise
            text = json.dumps({"error": str(error)}) if as_json else str(error)
        else:
            text = json.dumps(document(seen)) if as_json else table(seen)
        if not again:
            say(text)
            return
        is_screen = not as_json and sys.stdout.isatty()
        try:
            say(f"{_HOME_AND_CLEAR}{text}" if is_screen else text)
            time.sleep(EVERY)
        except KeyboardInterrupt:
            return
