"""What a worker shows to the probe responder: its heartbeat, and how its checks come out. Worker."""

from __future__ import annotations

import dataclasses
import threading
import time
from typing import Any

from ..probes.checks import Check, Outcome, Registry, Run, registry
from ..shared.agreed import KINDS
from ..shared.board import ENTRIES, HEARTBEAT_CELL, Board
from ..shared.memory import NS, Memory
from ..shared.phase import Kind
from ..shared.settings import Settings

RUN_EVERY = 1.0
"""Seconds between two runs of a check with a ``ttl`` of less: here nobody waits for it, so none is
run for a probe."""

SLACK = 10.0
"""Seconds beyond ``ttl`` and ``timeout`` after which a check's result no longer counts: nobody
looks after it."""

WATCH = 0.05


class Publisher:
    """Runs a worker's checks one after its ``ttl``, and shows the results on its board. In a thread
    of the worker, or a greenlet where gevent has patched those; it reads and writes nothing that
    the worker's requests do.

    :param memory: the shared memory.
    :param board: the worker's board.
    :param log: gunicorn's logger.
    :param readiness_delay: seconds after T0 in which the checks still decide; later nobody needs
        them.
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
        """Show the checks that have come since: applications register them when they like."""
        for check in self._checks:
            key = check.kind, check.name
            if key in self._places:
                continue
            good_for = round((max(check.ttl, RUN_EVERY) + check.timeout + SLACK) * NS)
            cell = self._board.add(check.name, KINDS.index(check.kind), good_for)
            self._places[key] = _Place(cell)
            if cell is None:
                self._log.warning(
                    "gunicorn-grace: the %s check %s does not count at the probe port: there is room for %d checks",
                    check.kind.value,
                    check.name,
                    ENTRIES,
                )

    def step(self) -> float:
        """Begin what is due and show what has come out; returns after how many seconds to look
        again."""
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
        """For ever. An error is logged once, and what it left undone is tried again."""
        failed = False
        while True:
            pause = RUN_EVERY
            try:
                pause = self.step()
            except Exception:
                if not failed:
                    failed = True
                    self._log.exception(
                        "gunicorn-grace: a check cannot be shown to the probe port; tried again"
                    )
            time.sleep(pause)


@dataclasses.dataclass
class _Place:
    """Where the results of a check go, the run under way, and when (registry's clock) the next one
    is due."""

    cell: int | None
    run: Run | None = None
    due: float = 0.0


def publish(worker: Any, memory: Memory, number: int | None, settings: Settings) -> None:
    """Let the probe responder see this worker's heartbeat and checks. Runs in the worker, just
    before it counts as booted, so that nobody takes checks for passed that have not run yet.
    Without a probe port it does nothing."""
    board = None if number is None else memory.board(number)
    if board is None:
        return
    cells, cell, tell_gunicorn = memory.cells, board.begin + HEARTBEAT_CELL, worker.tmp.notify

    def notify() -> None:
        tell_gunicorn()
        cells[cell] = time.monotonic_ns()

    cells[cell] = time.monotonic_ns()
    worker.tmp.notify = notify
    publisher = Publisher(memory, board, worker.log, settings.readiness_delay)
    publisher.add()
    threading.Thread(target=publisher.run, name="gunicorn-grace probe port", daemon=True).start()
