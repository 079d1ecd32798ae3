"""The memory that all processes of one instance share: who is where, and how far the shutdown is.

Without it each worker would know of a shutdown only when its own SIGTERM came, which is when it
stops serving.

Layout: signed 64-bit integers in the machine's byte order, each 8-byte aligned. Times are
CLOCK_MONOTONIC nanoseconds (one clock for every process of a machine, and no administrator can set
it); 0 means "never". A header of 64 cells, then a slot of 8 cells (64 bytes, a cache line) for each
worker, then a meter of 8 cells for each worker; and with a probe port (``grace_probe_bind``), where
``BOARDS`` says, a board for each worker: what its own threads know and the probe responder, another
process, cannot. ``LAYOUT`` counts when a cell changes its place or its meaning; what is appended
leaves it as it is.

Atomicity: an item of a ``memoryview`` cast to ``"q"`` is loaded and stored by one ``memcpy`` of a
constant 8 bytes (CPython, ``Objects/memoryobject.c``, ``unpack_single`` and ``pack_single``), which
compilers turn into one aligned load or store; x86-64 and arm64 guarantee that those never tear. No
lock spans processes, so a process that dies in between leaves every cell either as it was or as it
should be. What needs more than one cell is written so that each order of reading is right: see
``TRIGGER``.

Who writes what (one writer for each cell at each time):

=====================================  ======================================================================
cells                                  writer
=====================================  ======================================================================
``MAGIC`` .. ``ARBITER``, settings     arbiter, before the first fork; the settings again on SIGHUP
``SIGTERM``                            arbiter, in the real signal handler: one store
``TRIGGER``                            whoever triggers: a worker or the CLI. Only ever set, never cleared
``UNDRAIN``                            the CLI
``LATE``                               the worker that logs the first late request (two that race both log theirs);
                                       the arbiter clears it when it goes back to SERVING
``CONSUMED`` and all other header      arbiter, in its main loop
``PID`` .. ``HOLDS`` of a slot         arbiter when it claims the slot, the worker while it lives
``DISMISSED``, ``CLAIMED`` (meter)     arbiter
``TERM_SEEN`` .. of a meter            the worker
``SHOWN`` of a board                   arbiter when it claims the slot, the worker while it lives
all else of a board                    the worker
=====================================  ======================================================================

The arbiter frees the slot of a dead worker from ``child_exit``. ``REQUESTS`` and ``SINCE_T0`` stay
in it, and the next worker of the slot counts on from there. So each of them only ever grows, and a
sum over all slots that were ever used never goes back, whoever reads it, whenever, and whichever
process has just died. Were they moved into the header, a reader in another process could meet them
there and in the slot, or in neither.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from ..errors import StateError
from .phase import Phase

NAME = "gunicorn-grace"
LINK = f"/memfd:{NAME}"
"""What ``/proc/<pid>/fd/*`` of every process of an instance links to (memfd_create(2))."""

MAGIC_NUMBER = int.from_bytes(b"ggrace\0\1", sys.byteorder)
LAYOUT = 1
SLOTS = 1024
"""Workers that can be counted at a time. 128 KiB in all, with boards 3 MiB more, of which only what
is used takes memory."""

NS = 1_000_000_000

(
    MAGIC,
    VERSION,
    SLOT_COUNT,
    ARBITER,
    PHASE,
    T0,
    SIGTERM,
    TRIGGER,
    CONSUMED,
    UNDRAIN,
    DRAIN,
    DRAIN_LIMIT,
    DEADLINE,
    UPGRADED,
    HTTP_SHUT,
    RATE,
    DELAY,
    DELAY_OVER,
    SLOTS_USED,
    GONE_LAST_ARRIVAL,
    GONE_CUT_OFF,
    LATE,
    FAILED,
    BOARDS,
) = range(24)
"""Cells of the header. RATE is requests per 1000 seconds; DELAY is how long LAME_DUCK lasts at the
most if no late request extends it (ns); DELAY_OVER is when a SIGTERM would first have drained at
once: what ``prestop`` waits for; SLOTS_USED is one more than the highest number that a worker's
slot ever had; BOARDS is where the boards begin, 0 where there are none."""

HEADER_CELLS = 64
SLOT_CELLS = METER_CELLS = 8

PID, AGE, BOOTED, IN_FLIGHT, REQUESTS, SINCE_T0, LAST_ARRIVAL, HOLDS = range(8)
"""Cells of a slot. REQUESTS and SINCE_T0 are of all workers that had it, one after another."""

CLAIMED, DISMISSED, TERM_SEEN, CUT_OFF, LONGEST, LONGEST_BEFORE, WINDOW, EMPTY_SINCE = range(
    METER_CELLS
)
"""Cells of a meter. DISMISSED is when the arbiter first told the worker to go (ns), TERM_SEEN when
the worker last handled a SIGTERM: before the other, it asks whether it is to go. LONGEST is the
longest request (ns) since WINDOW began, LONGEST_BEFORE the one before. EMPTY_SINCE is when the
accept queues of a worker that has its own (``reuse_port``) were last seen to become empty."""

HEARTBEAT, SHOWN = range(2)
"""Cells of a board, before its entries: when the worker last told gunicorn that it lives, and how
many entries count.
"""

ENTRIES = 32
"""Checks that a board has room for."""

NAME_BYTES = 64
ENTRY_NAME, ENTRY_KIND, ENTRY_GOOD_FOR, ENTRY_RESULT = (
    0,
    NAME_BYTES // 8,
    NAME_BYTES // 8 + 1,
    NAME_BYTES // 8 + 2,
)
"""Cells of an entry: the check's name in UTF-8, the kind of probe that asks for it, for how long a
result of it counts (ns), and the result: the time, and in its lowest bit whether the check passed:
one store tells both. The first three are written before SHOWN counts the entry and never again, so
no reader sees them half written."""

BOARD_HEAD, ENTRY_CELLS = 8, NAME_BYTES // 8 + 4
BOARD_CELLS = BOARD_HEAD + ENTRIES * ENTRY_CELLS

ORIGIN_MASK = 0b111
"""TRIGGER holds the time and, in its three lowest bits (8 ns), who triggered: one store tells
both."""

LONGEST_WINDOW = 300 * NS


class Shown(NamedTuple):
    """An entry of a board.

    :ivar kind: the number of its kind of probe.
    :ivar good_for: how long a result counts, nanoseconds.
    :ivar known: when the result came; 0 while there is none.
    """

    name: str
    kind: int
    good_for: int
    known: int
    passed: bool


def _terminating(cells: memoryview[int]) -> Callable[[], bool]:
    # A closure over local names: every request asks twice.
    phase, lame_duck, sigterm, trigger, consumed = (
        PHASE,
        int(Phase.LAME_DUCK),
        SIGTERM,
        TRIGGER,
        CONSUMED,
    )

    def is_terminating() -> bool:
        return cells[phase] >= lame_duck or cells[sigterm] != 0 or cells[trigger] > cells[consumed]

    return is_terminating


def _occupy_standard_streams() -> None:
    """Where the server was started with its standard streams closed, the memory (and the duplicate
    that ``mmap`` makes) would take their descriptors, and what something prints would land in
    it."""
    with contextlib.suppress(OSError):
        while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
            os.set_inheritable(fd, True)
        os.close(fd)


class State:
    """The shared memory of one instance, mapped into this process.

    :param fd: the memory's file descriptor, or -1 for an anonymous mapping where there is no memfd.
    :raises StateError: the memory is not one of ours (too short, wrong magic, another layout).
    """

    def __init__(self, fd: int, map_: mmap.mmap) -> None:
        self.fd = fd
        self._map = map_
        if len(map_) < HEADER_CELLS * 8:
            raise StateError(
                f"shared memory of {len(map_)} bytes < {HEADER_CELLS * 8} bytes of a header"
            )
        self.cells = memoryview(map_)[: len(map_) // 8 * 8].cast("q")
        self.is_booted_worker = False
        """Whether this process is a worker that has booted: it may have no slot to say so in."""
        self.is_terminating = _terminating(self.cells)
        """Whether the shutdown has begun, seen from any process and at once: also before the
        arbiter's loop knows."""

    @classmethod
    def create(cls, slots: int = SLOTS, *, boards: bool = False) -> State:
        """Make the memory. Runs in the arbiter, before the first fork; workers inherit the mapping.

        :param boards: whether workers have to tell a probe responder what they know: 3 KiB more for
            each that does.
        """
        places = HEADER_CELLS + slots * (SLOT_CELLS + METER_CELLS)
        size = (places + boards * slots * BOARD_CELLS) * 8
        _occupy_standard_streams()
        fd = -1
        if hasattr(os, "memfd_create"):
            with contextlib.suppress(OSError):
                fd = os.memfd_create(NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        if fd >= 0:
            os.ftruncate(fd, size)
            fcntl.fcntl(
                fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            )
        state = cls(fd, mmap.mmap(fd, size))
        cells = state.cells
        cells[VERSION], cells[SLOT_COUNT], cells[ARBITER] = LAYOUT, slots, os.getpid()
        cells[BOARDS] = places if boards else 0
        cells[MAGIC] = MAGIC_NUMBER  # Last: who sees it sees the rest.
        return state

    @classmethod
    def open(cls, path: str) -> State:
        """Map the memory of another process, found as ``/proc/<pid>/fd/<n>``.

        :raises StateError: it is not ours, or of another version.
        :raises OSError: it cannot be opened.
        """
        return cls.mapped(os.open(path, os.O_RDWR | os.O_CLOEXEC), path)

    @classmethod
    def mapped(cls, fd: int, path: str) -> State:
        """The same with the memory's descriptor, which is closed when it is refused.

        :param path: what messages call it.
        """
        size = os.fstat(fd).st_size
        if size < HEADER_CELLS * 8:
            os.close(fd)
            raise StateError(
                f"{path}: {size} bytes < {HEADER_CELLS * 8} bytes of a header: not gunicorn-grace"
            )
        state = cls(fd, mmap.mmap(fd, size))
        problem = state._problem(size)
        if problem:
            state.close()
            raise StateError(f"{path}: {problem}")
        return state

    def _problem(self, size: int) -> str | None:
        cells = self.cells
        slots = cells[SLOT_COUNT]
        if cells[MAGIC] != MAGIC_NUMBER:
            return "not the memory of gunicorn-grace, or damaged"
        if cells[VERSION] != LAYOUT:
            return f"layout {cells[VERSION]}, this command knows {LAYOUT}: use the instance's own"
        if slots <= 0 or (HEADER_CELLS + slots * (SLOT_CELLS + METER_CELLS)) * 8 > size:
            return f"{slots} slots do not fit into {size} bytes: damaged"
        boards = cells[BOARDS]
        if boards and (boards < HEADER_CELLS or (boards + slots * BOARD_CELLS) * 8 > size):
            return f"{slots} boards from cell {boards} on do not fit into {size} bytes: damaged"
        if cells[PHASE] not in set(Phase):
            return f"{cells[PHASE]} is no phase: damaged"
        return None

    def close(self) -> None:
        """Give the mapping back. Only for processes that opened it; an instance keeps it until it
        ends."""
        self.cells.release()
        self._map.close()
        if self.fd >= 0:
            os.close(self.fd)

    @property
    def shared_by_name(self) -> bool:
        """Whether other processes can find the memory: not where it is an anonymous mapping."""
        return self.fd >= 0

    # -- reading: any process ----

    def is_triggered(self) -> bool:
        """Whether a trigger is in force. One that came before ``CONSUMED`` was taken back or has
        expired."""
        cells = self.cells
        return cells[TRIGGER] > cells[CONSUMED]

    def phase(self) -> Phase:
        """The phase. What the arbiter takes up only at its next look, up to a second later, already
        counts: that a worker has booted, a signal, a trigger."""
        phase = Phase(self.cells[PHASE])
        if phase is Phase.STARTING and (
            self.is_booted_worker or any(self.cells[s + BOOTED] for _, s, _ in self.slots())
        ):
            phase = Phase.SERVING
        if phase is Phase.SERVING and self.is_terminating():
            return Phase.LAME_DUCK
        return phase

    def t0(self) -> int:
        """When the shutdown began, in nanoseconds; 0 while it has not."""
        cells = self.cells
        if cells[T0]:
            return cells[T0]
        began = [t for t in (cells[SIGTERM], cells[TRIGGER] if self.is_triggered() else 0) if t]
        return min(began, default=0)

    def seconds_left(self) -> float | None:
        """Seconds until the process has to be gone; ``None`` while no deadline is known."""
        deadline = self.cells[DEADLINE]
        return max(0.0, (deadline - time.monotonic_ns()) / NS) if deadline else None

    def t0_unix(self) -> float | None:
        """When the shutdown began, as a Unix time in seconds; ``None`` while it has not.

        Worked out anew from the monotonic clock: where the wall clock is set meanwhile, this moves
        with it."""
        t0 = self.t0()
        return round(time.time() - (time.monotonic_ns() - t0) / NS, 3) if t0 else None

    def total(self, cell: int) -> int:
        """The sum of a slot's cell over the workers there are."""
        return sum(self.cells[slot + cell] for _, slot, _ in self.slots())

    def total_ever(self, cell: int) -> int:
        """The sum of ``REQUESTS`` or ``SINCE_T0`` over all workers there ever were. It never goes
        back."""
        used = min(self.cells[SLOTS_USED], self.cells[SLOT_COUNT])
        return sum(self.cells[self.slot(number) + cell] for number in range(used))

    def slots(self) -> Iterator[tuple[int, int, int]]:
        """For each claimed slot: its number, where its cells begin, and where its meter's begin."""
        # One strided copy: 1024 looks in Python take 0.2 ms, and a probe responder makes them for
        # each probe.
        claimed = self.cells[
            self.meter(0) + CLAIMED : self.meter(self.cells[SLOT_COUNT]) : METER_CELLS
        ].tolist()
        for number, is_claimed in enumerate(claimed):
            if is_claimed:
                yield number, self.slot(number), self.meter(number)

    def cut_off(self, number: int) -> int:
        """How many requests would be lost if the worker of a slot ended now, or were when it was
        interrupted."""
        return max(
            self.cells[self.slot(number) + IN_FLIGHT], self.cells[self.meter(number) + CUT_OFF]
        )

    def slot(self, number: int) -> int:
        """Where the cells of slot ``number`` begin."""
        return HEADER_CELLS + number * SLOT_CELLS

    def meter(self, number: int) -> int:
        """Where the cells of the meter of slot ``number`` begin."""
        return HEADER_CELLS + self.cells[SLOT_COUNT] * SLOT_CELLS + number * METER_CELLS

    def board(self, number: int) -> int | None:
        """Where the board of slot ``number`` begins; ``None`` where there are no boards."""
        begin = self.cells[BOARDS]
        return begin + number * BOARD_CELLS if begin else None

    def shown(self, number: int) -> list[Shown]:
        """What the worker of slot ``number`` tells of its checks. Any process."""
        board = self.board(number)
        if board is None:
            return []
        cells, age = self.cells, self.slot(number) + AGE
        while True:
            before = cells[age]
            entries = [
                self._entry(board + BOARD_HEAD + index * ENTRY_CELLS)
                for index in range(min(max(cells[board + SHOWN], 0), ENTRIES))
            ]
            if cells[age] == before:  # Otherwise the slot was given to another worker meanwhile.
                return entries

    def _entry(self, entry: int) -> Shown:
        cells = self.cells
        name = b"".join(
            cells[entry + cell].to_bytes(8, sys.byteorder, signed=True)
            for cell in range(ENTRY_KIND)
        )
        result = cells[entry + ENTRY_RESULT]
        return Shown(
            name.rstrip(b"\0").decode("utf-8", "replace"),
            cells[entry + ENTRY_KIND],
            cells[entry + ENTRY_GOOD_FOR],
            result & ~1,
            bool(result & 1),
        )

    # -- writing ----

    def trigger(self, origin: int, now: int | None = None) -> bool:
        """Begin the shutdown. Runs in a worker or in the CLI.

        The first trigger wins. Two that race may both store: both then mean "now", and the arbiter
        takes up one.

        :returns: whether this call began it; ``False`` when it had begun before.
        """
        if self.is_terminating():
            return False
        now = time.monotonic_ns() if now is None else now
        self.cells[TRIGGER] = (now & ~ORIGIN_MASK) | origin
        return True

    def claim(self, number: int, age: int) -> None:
        """Give a slot to a worker that is about to be forked. Arbiter."""
        cells, slot, meter = self.cells, self.slot(number), self.meter(number)
        kept = (slot + REQUESTS, slot + SINCE_T0)
        for cell in (*range(slot, slot + SLOT_CELLS), *range(meter + 1, meter + METER_CELLS)):
            if cell not in kept:
                cells[cell] = 0
        board = self.board(number)
        if board is not None:
            cells[board + SHOWN] = cells[board + HEARTBEAT] = 0
        cells[slot + AGE] = age
        cells[SLOTS_USED] = max(cells[SLOTS_USED], number + 1)
        cells[meter + CLAIMED] = 1

    def show(self, number: int, name: str, kind: int, good_for: int) -> int | None:
        """Add a check to the board of slot ``number``, its result unknown. The worker, in one
        thread.

        :param good_for: nanoseconds for which a result counts.
        :returns: the cell that its results go to (see :data:`ENTRY_NAME`); ``None`` when there is
            no room for it, in the board or for the name.
        """
        board, encoded, cells = self.board(number), name.encode(), self.cells
        if board is None or cells[board + SHOWN] >= ENTRIES or len(encoded) > NAME_BYTES:
            return None
        entry = board + BOARD_HEAD + cells[board + SHOWN] * ENTRY_CELLS
        padded = encoded.ljust(NAME_BYTES, b"\0")
        for cell in range(ENTRY_KIND):
            cells[entry + cell] = int.from_bytes(
                padded[8 * cell : 8 * cell + 8], sys.byteorder, signed=True
            )
        cells[entry + ENTRY_KIND], cells[entry + ENTRY_GOOD_FOR], cells[entry + ENTRY_RESULT] = (
            kind,
            good_for,
            0,
        )
        cells[board + SHOWN] += 1  # Last: who counts it sees the rest.
        return entry + ENTRY_RESULT

    def free(self, number: int) -> int:
        """Take a dead worker's slot back, its totals kept. Arbiter.

        :returns: how many requests died with the worker: those in flight, or those that it counted
            as cut off itself.
        """
        cells, slot = self.cells, self.slot(number)
        cut_off = self.cut_off(number)
        cells[self.meter(number) + CLAIMED] = 0
        cells[GONE_LAST_ARRIVAL] = max(cells[GONE_LAST_ARRIVAL], cells[slot + LAST_ARRIVAL])
        cells[GONE_CUT_OFF] += cut_off
        return cut_off


current: State | None = None
"""The memory of the instance that this process belongs to; ``None`` outside gunicorn."""


def instances(proc: str = "/proc") -> list[str]:
    """The memories of all instances that this user may open, one ``/proc/<pid>/fd/<n>`` each. Linux
    only."""
    found: dict[tuple[int, int], str] = {}
    for pid in filter(str.isdigit, os.listdir(proc)):
        with contextlib.suppress(OSError):
            for fd in os.listdir(f"{proc}/{pid}/fd"):
                path = f"{proc}/{pid}/fd/{fd}"
                with contextlib.suppress(OSError):
                    if os.readlink(path).startswith(LINK):
                        stat = os.stat(path)
                        found.setdefault((stat.st_dev, stat.st_ino), path)
    return list(found.values())
