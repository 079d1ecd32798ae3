"""The memory of the processes of a rehearsal, measured while they run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType

from . import procfs
from .instance import Instance
from .process import MARK


class MemoryWatch:
    """Measures the memory of the processes of a fleet from time to time, in its own thread.

    The kernel needs up to a millisecond to report the memory of one process, and a third of a
    second for a hundred instances. So the thread waits fifty times as long as a measurement took.
    Otherwise it would become a load.

    :param instances: returns the instances at each measurement, because they come and go.

    :ivar samples: ``(time.monotonic(), bytes)`` for each measurement.
    :ivar each: the highest value of each instance, by its ``runtime_dir``.
    """

    def __init__(self, instances: Callable[[], Sequence[Instance]]) -> None:
        self.samples: list[tuple[float, int]] = []
        self.each: dict[str, int] = {}
        self._instances = instances
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory", daemon=True)

    @property
    def peak(self) -> int:
        """The highest memory of all instances together at one measurement, in bytes; 0 without
        ``/proc``."""
        return max((held for _, held in self.samples), default=0)

    def look(self) -> int:
        """Measure now.

        :returns: the memory of all instances together, in bytes.
        """
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
