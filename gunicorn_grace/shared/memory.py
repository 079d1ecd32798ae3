"""The memory that all processes of one instance share: the workers and the shutdown's progress.

Without it, each worker would learn of a shutdown only from its own SIGTERM, which already tells it
to stop serving.

Layout: signed 64-bit integers in the machine's byte order, each 8-byte aligned. Times are
CLOCK_MONOTONIC nanoseconds; 0 means "never". All processes of a machine share this clock, and no
administrator can set it. A header of 64 cells comes first
(:class:`~gunicorn_grace.shared.cells.Header`), then one record of 32 cells for each worker
(:class:`~gunicorn_grace.shared.cells.Record`). A record is 256 bytes, four cache lines, and the
hot path writes only the first. With a probe port (``grace_probe_bind``) a board for each worker
follows (:mod:`gunicorn_grace.shared.board`). ``LAYOUT`` goes up when a cell's place or meaning
changes; appending a cell does not change it.

Atomicity: an item of a ``memoryview`` cast to ``"q"`` is loaded and stored by one ``memcpy`` of a
constant 8 bytes (CPython, ``Objects/memoryobject.c``, ``unpack_single`` and ``pack_single``), which
compilers turn into one aligned load or store. x86-64 and arm64 guarantee that such a load or store
never tears. No lock spans processes, so a process that dies in between leaves every cell with its
old or its new value. A value that needs more than one cell is written in such a way that a reader
may read the cells in any order: see ``trigger``.

Writers (one writer for each cell at each time):

=====================================  =============================================================
cells                                  writer
=====================================  =============================================================
``magic`` .. ``arbiter``, settings     arbiter, before the first fork; the settings again on SIGHUP
``switched_off``                       arbiter, before the first fork
``told``                               arbiter, in the real signal handler
``sigterm``                            arbiter, in the real signal handler; in its main loop if
                                       another arbiter served when the signal came
``trigger``                            the worker or command that triggers. Processes only set it;
                                       the arbiter clears a value that cannot be a trigger
``platform``, ``operator``             the worker or command that triggers
``undrain``, ``end_delay``             the command
``successor``                          the arbiter of a new instance at the same addresses
``late``                               the worker that logs the first late request (two that race
                                       both log theirs); the arbiter clears it when it goes back to
                                       SERVING
``consumed`` and the rest of a header  arbiter, in its main loop
``pid`` .. ``holds`` of a record       arbiter when it claims the record, the worker while it lives
``claimed``, ``dismissed``             arbiter; ``requests_before`` and ``since_t0_before`` too
``term_seen`` .. ``empty_since``       the worker; ``uncounted`` and ``may_shut`` too
``waiting`` .. ``queued``              the worker: see :mod:`gunicorn_grace.worker.waiting`;
                                       ``requests_at_look`` too
``entries`` of a board                 arbiter when it claims the record, the worker while it lives
other cells of a board                 the worker
=====================================  =============================================================

Any process of the instance can store anything in any cell. So the arbiter keeps its decisions in
its own attributes. The cells that it writes are output only: it bases no decision on them, and it
stores them again when they differ. The cells that other processes write are input: the arbiter
reads each once, checks it, and uses it as a number.

The arbiter frees the record of a dead worker from ``child_exit``. ``requests`` and ``since_t0``
stay in it, and the next worker of the record continues the count. So each count only grows, and the
sum over all records that were ever used never decreases, for every reader and after every crash. If
the counts were moved into the header, a reader in another process could find them in both places or
in neither.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import sys
import time
from collections.abc import Callable, Iterator

from ..errors import StateError
from .board import BOARD_CELLS, ENTRIES_CELL, HEARTBEAT_CELL, Board
from .cells import HEADER_CELLS, NS, ORIGIN_MASK, RECORD_CELLS, Cell, Header, Record
from .phase import Origin, Phase

NAME = "gunicorn-grace"
LINK = f"/memfd:{NAME}"
"""Target of the ``/proc/<pid>/fd/*`` link to the memory in any of its processes
(memfd_create(2))."""

MAGIC_NUMBER = int.from_bytes(b"ggrace\0\1", sys.byteorder)
LAYOUT = 3
SLOTS = 1024
"""How many workers can be counted at the same time. This takes 256 KiB in all, and 3 MiB more with
boards; only the part in use occupies memory."""


def _terminating(cells: memoryview[int]) -> Callable[[], bool]:
    # A closure over local names, because every request calls it twice.
    phase, sigterm = Header.phase.offset, Header.sigterm.offset
    trigger, consumed = Header.trigger.offset, Header.consumed.offset
    lame_duck = int(Phase.LAME_DUCK)

    def is_terminating() -> bool:
        return cells[phase] >= lame_duck or cells[sigterm] != 0 or cells[trigger] > cells[consumed]

    return is_terminating


def _mapping(fd: int, size: int, path: str) -> mmap.mmap:
    try:
        return mmap.mmap(fd, size)
    except OSError as error:
        os.close(fd)
        raise StateError(f"{path}: cannot be mapped: {error.strerror}") from error


def _occupy_standard_streams() -> None:
    """Open the standard streams that are closed at start. Otherwise the memory, and the duplicate
    that ``mmap`` makes, would get their descriptors, and output would be written into it."""
    with contextlib.suppress(OSError):
        while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
            os.set_inheritable(fd, True)
        os.close(fd)


class Memory:
    """The shared memory of one instance, mapped into this process.

    :ivar slot_count: the number of records. It is fixed when the memory is mapped, so that a cell
        overwritten later cannot mislead a reader.
    :ivar boards: the cell at which the boards begin, fixed in the same way; 0 without boards.
    :ivar holder: the arbiter's number in this process's /proc, if a command has found the memory
        through the arbiter; otherwise 0. The pid in the memory belongs to the arbiter's own PID
        namespace, and any worker may overwrite it.
    :ivar is_booted_worker: whether this process is a worker that has booted. A worker without a
        slot cannot say so in the shared memory.
    :ivar is_inherited: whether this process is a child that the application has forked in a worker.
        Such a child reads the memory and writes nothing into it.
    :ivar is_terminating: returns whether the shutdown has begun. Every process sees the beginning
        at once, even before the arbiter's loop does.

    :param fd: the memory's file descriptor, or -1 for an anonymous mapping, used without memfd.
    :param mapping: the mapped memory.
    :param slots: the number of records.
    :param boards: the cell at which the boards begin; 0 without boards.
    """

    def __init__(self, fd: int, mapping: mmap.mmap, slots: int, boards: int = 0) -> None:
        self.fd = fd
        self._mapping = mapping
        self.cells: memoryview[int] = memoryview(mapping)[: len(mapping) // 8 * 8].cast("q")
        self.header: Header = Header(self.cells, 0)
        self.slot_count = slots
        self.boards = boards
        self.holder = 0
        self.is_booted_worker = False
        self.is_inherited = False
        self.is_terminating: Callable[[], bool] = _terminating(self.cells)

    @classmethod
    def create(cls, slots: int = SLOTS, *, boards: bool = False) -> Memory:
        """Create the memory. Runs in the arbiter, before the first fork; workers inherit the
        mapping.

        :param slots: how many workers can be counted at the same time.
        :param boards: whether workers publish their checks for a probe responder. This takes 3 KiB
            more for each worker that does.
        """
        places = HEADER_CELLS + slots * RECORD_CELLS
        size = (places + boards * slots * BOARD_CELLS) * 8
        _occupy_standard_streams()
        fd = -1
        if hasattr(os, "memfd_create"):
            with contextlib.suppress(OSError):
                fd = os.memfd_create(NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        if fd >= 0:
            os.ftruncate(fd, size)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        memory = cls(fd, mmap.mmap(fd, size), slots, places if boards else 0)
        memory.publish_layout()
        return memory

    @classmethod
    def open(cls, path: str) -> Memory:
        """Map the memory of another process. Runs in commands and in the arbiter.

        :param path: the memory as ``/proc/<pid>/fd/<n>``.
        :raises StateError: the memory is not gunicorn-grace's, or another version's.
        :raises OSError: the memory cannot be opened.
        """
        return cls.mapped(os.open(path, os.O_RDWR | os.O_CLOEXEC), path)

    @classmethod
    def mapped(cls, fd: int, path: str) -> Memory:
        """Map the memory behind a descriptor. The descriptor is closed if the memory is refused.

        :param fd: the descriptor. The new object owns it.
        :param path: the name of the memory in error messages.
        :raises StateError: the memory is not gunicorn-grace's, or another version's, or not mapped.
        """
        size = os.fstat(fd).st_size
        if size < HEADER_CELLS * 8:
            os.close(fd)
            raise StateError(
                f"{path}: {size} bytes < {HEADER_CELLS * 8} bytes of a header: not gunicorn-grace"
            )
        memory = cls(fd, _mapping(fd, size, path), 0)
        slots, boards = memory.header.slot_count, memory.header.boards
        problem = _problem(memory.header, slots, boards, size)
        if problem:
            memory.close()
            raise StateError(f"{path}: {problem}")
        memory.slot_count, memory.boards = slots, boards
        return memory

    def has_its_layout(self) -> bool:
        """Whether the cells by which other processes recognize this memory still have the values
        that the arbiter stored. Runs in the arbiter."""
        header = self.header
        stored = header.magic, header.layout, header.slot_count, header.arbiter, header.boards
        return stored == (MAGIC_NUMBER, LAYOUT, self.slot_count, os.getpid(), self.boards)

    def publish_layout(self) -> None:
        """Store the cells by which other processes recognize this memory. Runs in the arbiter."""
        header = self.header
        header.layout, header.slot_count, header.arbiter = LAYOUT, self.slot_count, os.getpid()
        header.boards = self.boards
        header.magic = MAGIC_NUMBER  # Last, so that a process that sees it also sees the rest.

    def close(self) -> None:
        """Unmap the memory. Only a process that opened it may call this. An instance's own
        processes keep it until they end."""
        self.cells.release()
        self._mapping.close()
        if self.fd >= 0:
            os.close(self.fd)

    @property
    def shared_by_name(self) -> bool:
        """Whether other processes can find the memory. An anonymous mapping cannot be found."""
        return self.fd >= 0

    # -- reading: any process ----

    def is_triggered(self) -> bool:
        """Whether a trigger is in force. A trigger from before ``consumed`` was taken back or has
        expired."""
        return self.header.trigger > self.header.consumed

    def phase(self) -> Phase:
        """Return the current phase.

        A booted worker, a signal or a trigger counts at once. The arbiter itself notices it only in
        the next pass of its loop, up to a second later.
        """
        phase = Phase(min(max(self.header.phase, Phase.STARTING), Phase.STOPPED))
        if phase is Phase.STARTING and (
            self.is_booted_worker or any(record.booted for record in self.records())
        ):
            phase = Phase.SERVING
        if phase is Phase.SERVING and self.is_terminating():
            return Phase.LAME_DUCK
        return phase

    def t0(self) -> int:
        """Return when the shutdown began, in monotonic nanoseconds; 0 before it has begun."""
        header = self.header
        if header.t0:
            return header.t0
        began = [t for t in (header.sigterm, header.trigger if self.is_triggered() else 0) if t]
        return min(began, default=0)

    def seconds_left(self) -> float | None:
        """Return the seconds until the deadline, by which this process must have exited; 0 after
        it, and ``None`` without a known deadline."""
        deadline = self.header.deadline
        return max(0.0, (deadline - time.monotonic_ns()) / NS) if deadline else None

    def t0_unix(self) -> float | None:
        """Return when the shutdown began, as a Unix time in seconds; ``None`` before it has begun.

        The time is computed from the monotonic clock at each call, so it changes when the wall
        clock is set.
        """
        t0 = self.t0()
        return unix_time(t0) if t0 else None

    def total(self, cell: Cell) -> int:
        """Sum a cell over the current workers."""
        return sum(self.cells[record.begin + cell.offset] for record in self.records())

    def total_ever(self, cell: Cell) -> int:
        """Sum ``requests`` or ``since_t0`` over all past and current workers. The sum never
        decreases."""
        used = min(max(self.header.slots_used, 0), self.slot_count)
        first = HEADER_CELLS + cell.offset
        return sum(self.cells[first : HEADER_CELLS + used * RECORD_CELLS : RECORD_CELLS].tolist())

    def records(self) -> Iterator[Record]:
        """Return the records that are in use."""
        return map(self.record, self.claimed_numbers())

    def claimed_numbers(self) -> list[int]:
        """Return the numbers of the records that are marked as claimed."""
        # One strided copy is made, because 1024 reads in Python take 0.2 ms and the probe responder
        # does this for each probe.
        first, end = HEADER_CELLS + Record.claimed.offset, self._end_of_records()
        claimed = self.cells[first:end:RECORD_CELLS].tolist()
        return [number for number, is_claimed in enumerate(claimed) if is_claimed]

    def _end_of_records(self) -> int:
        return HEADER_CELLS + self.slot_count * RECORD_CELLS

    def record(self, number: int) -> Record:
        """Return the record with this number."""
        return Record(self.cells, HEADER_CELLS + number * RECORD_CELLS, number)

    def board(self, number: int) -> Board | None:
        """Return the board of a worker; ``None`` without boards."""
        if not self.boards:
            return None
        return Board(
            self.cells,
            self.boards + number * BOARD_CELLS,
            age=self.record(number).begin + Record.age.offset,
        )

    # -- writing ----

    def trigger(self, origin: Origin, now: int | None = None) -> bool:
        """Begin the shutdown. Runs in a worker or in a command.

        The first trigger wins. If two triggers race, both may be stored. Both then mean "now", and
        the arbiter acts on one of them. A trigger also says who wants the shutdown, and this counts
        even if another trigger had begun it: a platform's trigger starts the platform's clock, and
        an operator's drain does not expire. So each kind also stores into its own cell.

        :param origin: who begins the shutdown.
        :param now: the time of the trigger in monotonic nanoseconds; the current time by default.
        :returns: whether this call began the shutdown. It never does in a child forked by a worker.
        """
        if self.is_inherited:
            return False
        begins = not self.is_terminating()
        now = time.monotonic_ns() if now is None else now
        value = (now & ~ORIGIN_MASK) | origin
        # `trigger` first: without it, the other cells have no effect.
        if begins:
            self.header.trigger = value
        if origin is Origin.DRAIN:
            self.header.operator = now
        else:
            self.header.platform = value
        return begins

    def claim(self, number: int, age: int) -> None:
        """Assign a record to a worker that is about to be forked. Runs in the arbiter.

        :param number: the number of the record.
        :param age: gunicorn's serial number of the worker.
        """
        cells, record = self.cells, self.record(number)
        kept = (Record.requests.offset, Record.since_t0.offset, Record.claimed.offset)
        for cell in range(RECORD_CELLS):
            if cell not in kept:
                cells[record.begin + cell] = 0
        if self.boards:
            begin = self.boards + number * BOARD_CELLS
            cells[begin + ENTRIES_CELL] = cells[begin + HEARTBEAT_CELL] = 0
        record.requests_before, record.since_t0_before = record.requests, record.since_t0
        record.age = age
        self.header.slots_used = max(self.header.slots_used, number + 1)
        record.claimed = 1


def _problem(header: Header, slots: int, boards: int, size: int) -> str | None:
    if header.magic != MAGIC_NUMBER:
        return "not the memory of gunicorn-grace, or damaged"
    if header.layout != LAYOUT:
        return (
            f"layout {header.layout}, but this command knows {LAYOUT}: "
            "use the command of the instance's version"
        )
    if slots <= 0 or (HEADER_CELLS + slots * RECORD_CELLS) * 8 > size:
        return f"{slots} slots do not fit into {size} bytes: damaged"
    if boards and (boards < HEADER_CELLS or (boards + slots * BOARD_CELLS) * 8 > size):
        return f"{slots} boards from cell {boards} on do not fit into {size} bytes: damaged"
    if header.phase not in set(Phase):
        return f"{header.phase} is not a phase: damaged"
    return None


def unix_time(moment: int) -> float:
    """Convert a moment of the monotonic clock, in nanoseconds, to a Unix time in seconds."""
    return round(time.time() - (time.monotonic_ns() - moment) / NS, 3)


attached: Memory | None = None
"""The memory of the instance that this process belongs to; ``None`` outside gunicorn, and in an
instance that is switched off."""

is_switched_off = False
"""Whether this process belongs to an instance that is switched off (``grace_enabled``)."""
