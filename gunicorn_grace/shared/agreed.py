"""Values that two processes of an instance must agree on: signals, descriptors, numbers, times."""

from __future__ import annotations

import signal

from .phase import Kind

POKE = signal.SIGWINCH
"""The arbiter sends this signal to make a worker look at the phase. Workers do not use the signal
for anything else. Its default action is to be ignored (signal(7)), so it does no harm to a worker
class that installs its own handlers."""

RETIRE = signal.SIGUSR2
"""The arbiter sends this signal to make the probe responder answer the requests that have arrived,
accept no more, and exit."""

WORKERS_MARK = "GUNICORN_GRACE_WORKER"
"""The name of an environment variable that workers set. Every process that they start inherits it,
and keeps it as an orphan. So the plugin can refuse a trigger that an attacker makes the application
send."""

HANDED_OVER = "GUNICORN_GRACE_PROBE_FD"
"""The name of an environment variable that an arbiter gives to its successor (SIGUSR2). It holds
the descriptor of the probe port's listener."""

LINGER = 2.0
"""Seconds that an idle connection stays open after draining began. A request that the client sends
at that moment is still answered, with ``Connection: close`` (RFC 9112, section 9.6). gunicorn 27.0
itself lingers for the same time."""

TELL_BEFORE = 1.0
"""Seconds before the drain limit at which a worker logs what it is still doing."""

LISTENER, MEMORY, ARBITER = 3, 4, 5
"""Descriptors that the arbiter passes to the probe responder: the listener, the shared memory, and
a descriptor of the arbiter's process if the kernel has such descriptors (pidfd_open(2)). The
responder closes all others above the standard streams."""

KINDS = tuple(Kind)
"""The kinds of probes. The index of a kind is its number on a board."""
