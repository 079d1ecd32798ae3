"""What the processes of a rehearsal hold in memory, read while they run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType

from . import procfs
from .instance import Instance
from .process import MARK


class MemoryWatch:
    """Looks from time to time at what the processes of a fleet hold in memory, from a thread of its
    own.

    Reading the memory of one process takes the kernel up to a millisecond, of a hundred instances a
    third of a second: so it rests fifty times as long as a look took, or it would be a load of its
    own.

    :param instances: asked for at every look, for instances come and go.

    :ivar samples: ``(time.monotonic(), bytes)`` for each look.
    :ivar each: the most that was seen of each instance, by its ``runtime_dir``.
    """

    def __init__(self, instances: Callable[[], Sequence[Instance]]) -> None:
        self.samples: list[tuple[float, int]] = []
        self.each: dict[str, int] = {}
        self._instances = instances
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory", daemon=True)

    @property
    def peak(self) -> int:
        """The most that all instances held together at one look, bytes; 0 where there is no
        ``/proc``."""
        return max((held for _, held in self.samples), default=0)

    def look(self) -> int:
        """One look, now; bytes."""
        wanted = {str(instance.runtime_dir) for instance in self._instances()}
        total = 0
        for value, pids in procfs.marked_by_value(MARK).items():
            if value in wanted:
                held = sum(map(procfs.memory, pids))
                self.each[value] = max(self.each.get(value, 0), held)
                total += held
        self.samples.append((time.monotonic(), total))
        return total

    def _run(self) -> None:
        while True:
            began = time.monotonic()
            self.look()
            if self._end.wait(max(1.0, 50 * (time.monotonic() - began))):
                return

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end.set()
        self._thread.join()
