"""An application whose gthread worker does not get further than handing a request to its threads.

``WHERE`` says where: in front of the thread that it starts for it, or when that thread runs and is
known to nobody yet.
"""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from service import app
from speech import say

__all__ = ["app"]

_start = threading.Thread.start


def _start_no_thread(self: ThreadPoolExecutor) -> None:
    say("submitting")
    time.sleep(60)


def _start_and_wait(self: threading.Thread) -> None:
    _start(self)
    if self.name.startswith("ThreadPoolExecutor"):
        say("submitting")
        time.sleep(60)


if os.environ["WHERE"] == "before":
    ThreadPoolExecutor._adjust_thread_count = _start_no_thread  # type: ignore[attr-defined]
else:
    threading.Thread.start = _start_and_wait  # type: ignore[method-assign]
