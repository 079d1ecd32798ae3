"""The other arbiter that has the same listening sockets, after SIGUSR2. Runs in the arbiter.

SIGUSR2 makes gunicorn execute a successor, which inherits the sockets. Each of the two arbiters
knows only the pid of the other one. If an arbiter is told to stop while the other one serves, no
client is refused, so it drains at once and seals nothing. But the other one may have been told to
stop too, by a signal to the process group, and then it does not go on serving. So each arbiter
reads in the shared memory of the other one whether that was told to stop. It never writes there.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

from ..errors import StateError
from ..shared import memory as shm
from ..shared.memory import Memory
from ..shared.phase import Phase


class Counterpart:
    """The other arbiter, if there is one.

    :param arbiter: gunicorn's arbiter.
    :param memory: the shared memory of this instance.
    """

    def __init__(self, arbiter: Any, memory: Memory) -> None:
        self._arbiter = arbiter
        self._own = memory
        self._pid = 0
        self._memory: Memory | None = None

    def is_there(self) -> bool:
        """Whether gunicorn knows another arbiter. A signal handler may call this."""
        return bool(self._arbiter.reexec_pid or self._arbiter.master_pid)

    def serves(self) -> bool:
        """Whether the other arbiter goes on serving: it exists, and was not told to stop.

        If its memory cannot be read, it counts as serving, as in plain gunicorn. It also counts as
        serving while an operator drains it, because a drained instance still serves its sockets.
        """
        if not self.is_there():
            return False
        seen = self._look()
        if seen is None:
            return True
        header = seen.header
        if header.told or header.phase >= Phase.DRAINING:
            return False
        return bool(header.held) or not seen.is_terminating()

    def has_the_sockets(self) -> bool:
        """Whether the other arbiter still takes connections from the sockets, even if it was told
        to stop."""
        if not self.is_there():
            return False
        seen = self._look()
        return seen is None or seen.header.phase < Phase.DRAINING

    def _look(self) -> Memory | None:
        pid = self._arbiter.reexec_pid or self._arbiter.master_pid
        if pid != self._pid:
            if self._memory is not None:
                self._memory.close()
            self._pid, self._memory = pid, None
        if self._memory is None:
            # A successor has no memory while it boots, so each call looks again.
            with contextlib.suppress(OSError):
                self._memory = self._find(pid)
        return self._memory

    def _find(self, pid: int) -> Memory | None:
        own = os.fstat(self._own.fd) if self._own.shared_by_name else None
        folder = f"/proc/{pid}/fd"
        for name in os.listdir(folder):
            path = f"{folder}/{name}"
            # StateError: a damaged memory, or one of another version. The right one may follow.
            with contextlib.suppress(OSError, StateError):
                if os.readlink(path).startswith(shm.LINK):
                    found = os.stat(path)
                    # A forked child that has not executed the successor yet still holds our memory.
                    if own is None or found.st_ino != own.st_ino:
                        seen = Memory.open(path)
                        if seen.header.arbiter == pid:
                            return seen
                        seen.close()
        return None
