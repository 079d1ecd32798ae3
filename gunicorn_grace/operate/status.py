"""``gunicorn-grace status``: what each instance does, and its workers."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

from ..errors import StateError
from .overview import look
from .overview_text import document, table

EVERY = 1.0
"""Seconds between two looks of ``--watch``. An arbiter that serves publishes its numbers that
often."""

_HOME_AND_CLEAR = "\x1b[H\x1b[J"


def show(
    pid: int | None, say: Callable[[str], object], *, as_json: bool = False, again: bool = False
) -> None:
    """Print the instances that this user may see.

    :param pid: show this arbiter's alone.
    :param say: takes what is printed.
    :param as_json: print a JSON document in one line.
    :param again: print them each second, also while there is none, until Ctrl-C or until nobody
        reads any more.
    :raises StateError: there is none.
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
