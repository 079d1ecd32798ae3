"""The other arbiter that has the same listening sockets, after SIGUSR2. Runs in the arbiter.

SIGUSR2 makes gunicorn execute a successor, which inherits the sockets. Each of the two knows the
other one by its pid alone. An arbiter that is told to stop while the other one serves has nobody to
turn away: it drains at once and seals nothing. But the other one may have been told to stop as
well, by a signal to the process group. Whoever was told to stop is nobody's successor. So each of
them reads the shared memory of the other one, which says so. It never writes there.
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
    """The other arbiter, where there is one.

    :param arbiter: gunicorn's arbiter.
    :param memory: the shared memory of this instance.
    """

    def __init__(self, arbiter: Any, memory: Memory) -> None:
        self._arbiter = arbiter
        self._own = memory
        self._pid = 0
        self._memory: Memory | None = None

    def is_there(self) -> bool:
        """Whether gunicorn knows another arbiter. A signal handler may ask this."""
        return bool(self._arbiter.reexec_pid or self._arbiter.master_pid)

    def serves(self) -> bool:
        """Whether the other one goes on serving: it is there, and was not told to stop. One that
        cannot be read is taken to serve, as gunicorn takes it. An operator's drain does not count,
        because what is drained serves its sockets."""
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
        """Whether the other one still takes connections from the sockets, told to stop or not."""
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
            # A successor that still boots has none, so this asks again.
            with contextlib.suppress(OSError, StateError):
                self._memory = self._find(pid)
        return self._memory

    def _find(self, pid: int) -> Memory | None:
        own = os.fstat(self._own.fd) if self._own.shared_by_name else None
        folder = f"/proc/{pid}/fd"
        for name in os.listdir(folder):
            path = f"{folder}/{name}"
            with contextlib.suppress(OSError):
                if os.readlink(path).startswith(shm.LINK):
                    found = os.stat(path)
                    # A child that has not yet executed the successor has ours.
                    if own is None or found.st_ino != own.st_ino:
                        seen = Memory.open(path)
                        if seen.header.arbiter == pid:
                            return seen
                        seen.close()
        return None
