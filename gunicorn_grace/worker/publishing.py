"""Publishes a worker's heartbeat and the results of its checks for the probe responder. Runs in
workers."""

from __future__ import annotations

import dataclasses
import threading
import time
from typing import Any

from ..probes.checks import Check, Outcome, Registry, Run, registry
from ..shared.agreed import KINDS
from ..shared.board import ENTRIES, HEARTBEAT_CELL, Board
from ..shared.cells import NS
from ..shared.memory import Memory
from ..shared.phase import Kind
from ..shared.settings import Settings

RUN_EVERY = 1.0
"""The shortest interval between two runs of a check, in seconds. A smaller ``ttl`` has no effect at
the probe port, because checks run in the background there and not for each probe."""

SLACK = 10.0
"""Seconds beyond ``ttl`` and ``timeout`` after which a check's result is stale, because no worker
updates it any more."""

WATCH = 0.05
"""Seconds between two looks at a check that is running."""


class Publisher:
    """Runs each of a worker's checks again after its ``ttl``, or after :data:`RUN_EVERY` if that is
    longer, and publishes the results on the worker's board.

    It runs in a thread of the worker, or in a greenlet if gevent has patched threads. It shares no
    data with the worker's requests.

    :param memory: the shared memory.
    :param board: the worker's board.
    :param log: gunicorn's logger.
    :param readiness_delay: for how many seconds after T0 the checks still count. They are not run
        after that.
    :param checks: the checks of this process.
    """

    def __init__(
        self,
        memory: Memory,
        board: Board,
        log: Any,
        readiness_delay: float,
        checks: Registry = registry,
    ) -> None:
        self._memory = memory
        self._board = board
        self._log = log
        self._readiness_delay = round(readiness_delay * NS)
        self._checks = checks
        self._places: dict[tuple[Kind, str], _Place] = {}

    def add(self) -> None:
        """Add new checks to the board, because an application may register them at any time."""
        for check in self._checks:
            key = check.kind, check.name
            if key in self._places:
                continue
            good_for = round((max(check.ttl, RUN_EVERY) + check.timeout + SLACK) * NS)
            cell = self._board.add(check.name, KINDS.index(check.kind), good_for)
            self._places[key] = _Place(cell)
            if cell is None:
                self._log.warning(
                    "gunicorn-grace: the %s check %s does not count at the probe port: "
                    "there is room for %d checks",
                    check.kind.value,
                    check.name,
                    ENTRIES,
                )

    def step(self) -> float:
        """Start the checks that are due and publish new results.

        :returns: after how many seconds to call this again.
        """
        self.add()
        t0 = self._memory.t0()
        if t0 and time.monotonic_ns() - t0 >= self._readiness_delay:
            return RUN_EVERY
        now, pause = self._checks.clock(), RUN_EVERY
        for check in self._checks:
            place = self._places[check.kind, check.name]
            if place.cell is None:
                continue
            if place.run is None and now >= place.due:
                for begun in self._checks.begin(check.kind, only=check.name):
                    if isinstance(begun, Outcome):
                        self._show(check, place, begun)
                    else:
                        place.run = begun
            if place.run is not None and place.run.is_known():
                self._show(check, place, place.run.outcome())
            pause = min(pause, WATCH if place.run is not None else max(0.0, place.due - now))
        return pause

    def _show(self, check: Check, place: _Place, outcome: Outcome) -> None:
        assert place.cell is not None
        place.run = None
        place.due = self._checks.clock() + max(check.ttl, RUN_EVERY)
        self._memory.cells[place.cell] = time.monotonic_ns() & ~1 | outcome.passed

    def run(self) -> None:
        """Call :meth:`step` for the life of the worker. An error is logged once, and the step is
        tried again."""
        failed = False
        while not self._memory.is_inherited:  # A greenlet goes on in a child (gevent).
            pause = RUN_EVERY
            try:
                pause = self.step()
            except Exception:
                if not failed:
                    failed = True
                    self._log.exception(
                        "gunicorn-grace: cannot publish a check for the probe port; trying again"
                    )
            time.sleep(pause)


@dataclasses.dataclass
class _Place:
    """The state of one check.

    :ivar cell: the cell for its results; ``None`` if the board has no room for it.
    :ivar run: the run under way.
    :ivar due: when the next run is due, on the registry's clock.
    """

    cell: int | None
    run: Run | None = None
    due: float = 0.0


def publish(worker: Any, memory: Memory, number: int | None, settings: Settings) -> None:
    """Publish this worker's heartbeat and checks for the probe responder.

    It runs in the worker, in ``post_worker_init``. The checks have to be on the board before the
    worker counts as booted. Otherwise the responder would take a check that has not run yet for one
    that does not exist. Without a probe port this does nothing.

    :param worker: gunicorn's worker.
    :param memory: the shared memory.
    :param number: the number of the worker's slot; ``None`` when all slots are taken.
    :param settings: the settings in use.
    """
    board = None if number is None else memory.board(number)
    if board is None:
        return
    cells, cell, tell_gunicorn = memory.cells, board.begin + HEARTBEAT_CELL, worker.tmp.notify

    def notify() -> None:
        tell_gunicorn()
        if not memory.is_inherited:
            cells[cell] = time.monotonic_ns()

    cells[cell] = time.monotonic_ns()
    worker.tmp.notify = notify
    publisher = Publisher(memory, board, worker.log, settings.readiness_delay)
    publisher.add()
    threading.Thread(target=publisher.run, name="gunicorn-grace probe port", daemon=True).start()
