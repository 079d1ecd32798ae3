"""What two processes of an instance have to agree on: signals, descriptors, numbers, durations."""

from __future__ import annotations

import signal

from .phase import Kind

POKE = signal.SIGWINCH
"""The signal by which the arbiter tells a worker to look at the phase. Workers ignore it otherwise,
and its default is to be ignored (signal(7)), so it does not harm a worker class with handlers of
its own."""

RETIRE = signal.SIGUSR2
"""The signal by which the arbiter tells the probe responder to answer what has come, take no more,
and end."""

LINGER = 2.0
"""Seconds that an idle connection is kept open after draining began, so that a request which its
client is just sending is answered, with ``Connection: close`` (RFC 9112, section 9.6). gunicorn
27.0 lingers as long itself."""

LISTENER, MEMORY = 3, 4
"""Descriptors that the arbiter gives to the probe responder, which closes all others."""

KINDS = tuple(Kind)
"""The kinds of probes by their numbers on a board."""
