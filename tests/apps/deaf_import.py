"""An application whose import waits where no signal reaches it, as a C library may that retries
system calls."""

from __future__ import annotations

import signal
import time

from speech import say

signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))
say("import begins")
time.sleep(120)
