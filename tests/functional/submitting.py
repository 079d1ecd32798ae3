"""An application whose gthread worker hands no request to a thread: submitting it, with its lock, does not end."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from service import app
from speech import say

__all__ = ["app"]


def _start_no_thread(self: ThreadPoolExecutor) -> None:
    say("submitting")
    time.sleep(60)


ThreadPoolExecutor._adjust_thread_count = _start_no_thread  # type: ignore[attr-defined]
