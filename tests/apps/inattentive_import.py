"""An application whose import does not notice the first SIGTERM."""

from __future__ import annotations

import signal
import time

from speech import say

signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
say("import begins")
signal.sigwait([signal.SIGTERM])
say("the signal is lost")
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
time.sleep(120)
