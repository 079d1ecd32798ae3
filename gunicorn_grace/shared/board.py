"""The board of a worker: the newest results of the application's checks, for the probe responder.

The responder is a separate process and cannot run the checks itself. A board begins with two cells:
the worker's heartbeat and the number of entries. Each entry holds one check and its newest result.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

HEARTBEAT_CELL, ENTRIES_CELL = range(2)
"""When the worker last sent gunicorn a heartbeat, and how many entries are valid."""

ENTRIES = 32
"""The maximum number of checks on a board."""

NAME_BYTES = 64
NAME_CELLS = NAME_BYTES // 8
ENTRY_KIND, ENTRY_GOOD_FOR, ENTRY_RESULT = NAME_CELLS, NAME_CELLS + 1, NAME_CELLS + 2
"""Cells of an entry after the check's name in UTF-8: the kind of probe, how long a result is valid
(ns), and the result. The result cell holds the time of the result and, in its lowest bit, whether
the check passed, so one store publishes both. The worker writes the name, the kind and the validity
once, before it counts the entry, so no reader sees them half written."""

BOARD_HEAD, ENTRY_CELLS = 8, NAME_CELLS + 4
BOARD_CELLS = BOARD_HEAD + ENTRIES * ENTRY_CELLS

TRIES = 3
"""How many times a reader reads a board whose owner changes during the read."""


class Entry(NamedTuple):
    """A check on a board.

    :ivar name: the check's name.
    :ivar kind: the number of its kind of probe.
    :ivar good_for: how long a result is valid, in nanoseconds.
    :ivar known: when the result came, in monotonic nanoseconds; 0 before the first result.
    :ivar passed: whether the check passed.
    """

    name: str
    kind: int
    good_for: int
    known: int
    passed: bool


class Board:
    """The board of one worker.

    :param cells: the shared memory.
    :param begin: the cell at which the board begins.
    :param age: the cell that changes when the board passes to another worker.
    """

    def __init__(self, cells: memoryview[int], begin: int, *, age: int) -> None:
        self.cells = cells
        self.begin = begin
        self._age = age

    @property
    def heartbeat(self) -> int:
        """When the worker last sent gunicorn a heartbeat, in monotonic nanoseconds."""
        return self.cells[self.begin + HEARTBEAT_CELL]

    def entries(self) -> list[Entry]:
        """Return the worker's checks. Runs in any process."""
        cells, found = self.cells, []
        for _ in range(TRIES):
            before = cells[self._age]
            count = min(max(cells[self.begin + ENTRIES_CELL], 0), ENTRIES)
            found = [
                self._entry(self.begin + BOARD_HEAD + index * ENTRY_CELLS) for index in range(count)
            ]
            if cells[self._age] == before:  # No other worker took the board.
                break
        return found

    def _entry(self, entry: int) -> Entry:
        cells = self.cells
        name = b"".join(
            cells[entry + cell].to_bytes(8, sys.byteorder, signed=True)
            for cell in range(NAME_CELLS)
        )
        result = cells[entry + ENTRY_RESULT]
        return Entry(
            name.rstrip(b"\0").decode("utf-8", "replace"),
            cells[entry + ENTRY_KIND],
            cells[entry + ENTRY_GOOD_FOR],
            result & ~1,
            bool(result & 1),
        )

    def add(self, name: str, kind: int, good_for: int) -> int | None:
        """Add a check whose result is not known yet. Runs in the worker, in one thread.

        :param name: the check's name.
        :param kind: the number of its kind of probe.
        :param good_for: how long a result is valid, in nanoseconds.
        :returns: the cell for its results (see :data:`ENTRY_RESULT`); ``None`` when the board is
            full or the name is too long.
        """
        cells, encoded = self.cells, name.encode()
        count = cells[self.begin + ENTRIES_CELL]
        if not 0 <= count < ENTRIES or len(encoded) > NAME_BYTES:
            return None
        entry = self.begin + BOARD_HEAD + count * ENTRY_CELLS
        padded = encoded.ljust(NAME_BYTES, b"\0")
        for cell in range(NAME_CELLS):
            cells[entry + cell] = int.from_bytes(
                padded[8 * cell : 8 * cell + 8], sys.byteorder, signed=True
            )
        cells[entry + ENTRY_KIND], cells[entry + ENTRY_GOOD_FOR] = kind, good_for
        cells[entry + ENTRY_RESULT] = 0
        cells[self.begin + ENTRIES_CELL] = count + 1  # Last: a reader that counts it sees the rest.
        return entry + ENTRY_RESULT
