"""Threads that a signal handler starts. Runs in workers."""

from __future__ import annotations

import _thread
from collections.abc import Callable


def start(target: Callable[[], None]) -> None:
    """Start a thread, unless the interpreter is ending.

    ``start_new_thread`` takes no Python lock, but ``Thread.start`` does, and an interrupted
    ``Thread.start`` would then wait for itself. In a gevent worker the patched function starts a
    greenlet.

    :raises RuntimeError: there is no memory for one.
    """
    try:
        _thread.start_new_thread(target, ())
    except RuntimeError as error:
        # A SIGTERM to a worker that is just leaving: Python 3.12 and later.
        if "shutdown" not in str(error):
            raise
