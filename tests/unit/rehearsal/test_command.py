"""How the command is interrupted."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

HOLDS_THE_SIGNAL_UP = """
import signal, sys, time, weakref
from gunicorn_grace.rehearsal.command.command import _interruptible

class Thing:
    pass

thing = Thing()
gone = weakref.ref(thing, lambda _: signal.raise_signal({number}))
try:
    with _interruptible():
        del thing
        time.sleep(30)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_an_interrupt_within_a_callback_is_not_lost(number: signal.Signals) -> None:
    """Python drops what a weak reference's callback raises: the interrupt comes again, and is not
    shown."""
    code = HOLDS_THE_SIGNAL_UP.format(number=int(number))
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=20
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
