"""Threads that a signal handler starts. Runs in workers."""

from __future__ import annotations

import _thread
from collections.abc import Callable


def start(target: Callable[[], None]) -> None:
    """Start a thread, unless the interpreter is ending.

    ``start_new_thread`` takes no Python lock. ``Thread.start`` takes one, so a handler that calls
    it would wait for ever if it has interrupted another ``Thread.start``. In a gevent worker the
    patched function starts a greenlet.

    :param target: the function that runs in the thread.
    :raises RuntimeError: the system cannot start a thread, for example for lack of memory.
    """
    try:
        _thread.start_new_thread(target, ())
    except RuntimeError as error:
        # The worker got a SIGTERM while its interpreter ends. Python 3.12 and later raise then.
        if "shutdown" not in str(error):
            raise
