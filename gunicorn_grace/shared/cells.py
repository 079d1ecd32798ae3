"""The cells of the shared memory by their names: a header, and a record for each worker.

:mod:`gunicorn_grace.shared.memory` describes the layout, and which process writes which cell.
"""

from __future__ import annotations

import operator
from typing import NamedTuple, overload

NS = 1_000_000_000

HEADER_CELLS = 64
RECORD_CELLS = 32

ORIGIN_MASK = 0b111
"""``trigger`` holds the time and, in its three lowest bits (8 ns), the origin, so one store
publishes both."""

LONGEST_WINDOW = 300 * NS

LOWEST, HIGHEST = -(2**63), 2**63 - 1


class Cell:
    """One cell of a view. Reading returns its number. Storing clamps to 64 bits, because a number
    computed from other processes' cells must not raise.

    The hot path does not use a view: it uses ``view.begin + Record.in_flight.offset``.
    """

    __slots__ = ("offset",)

    def __init__(self, offset: int) -> None:
        self.offset: int = offset

    @overload
    def __get__(self, view: None, owner: type) -> Cell: ...
    @overload
    def __get__(self, view: View, owner: type) -> int: ...
    def __get__(self, view: View | None, owner: type) -> Cell | int:
        return self if view is None else view.cells[view.begin + self.offset]

    def __set__(self, view: View, value: int) -> None:
        view.cells[view.begin + self.offset] = min(max(value, LOWEST), HIGHEST)


class Text:
    """Cells that hold a short ASCII text. A longer text is cut.

    A reader must escape the text before it shows it, because any worker can store anything there.
    """

    __slots__ = ("cells", "offset")

    def __init__(self, offset: int, cells: int) -> None:
        self.offset: int = offset
        self.cells: int = cells

    @overload
    def __get__(self, view: None, owner: type) -> Text: ...
    @overload
    def __get__(self, view: View, owner: type) -> str: ...
    def __get__(self, view: View | None, owner: type) -> Text | str:
        if view is None:
            return self
        at = view.begin + self.offset
        return bytes(view.cells[at : at + self.cells]).rstrip(b"\0").decode("ascii", "replace")

    def __set__(self, view: View, value: str) -> None:
        size, at = 8 * self.cells, view.begin + self.offset
        data = value.encode("ascii", "replace")[:size].ljust(size, b"\0")
        view.cells[at : at + self.cells] = memoryview(data).cast("q")


class View:
    """Cells of the memory by name, for code that does not run for every request."""

    __slots__ = ("begin", "cells")

    def __init__(self, cells: memoryview[int], begin: int) -> None:
        self.cells: memoryview[int] = cells
        self.begin: int = begin


class Header(View):
    """The cells that exist once per instance.

    It has more attributes than a class should, because it is the layout of the memory, in one
    place.
    """

    __slots__ = ()

    magic: Cell = Cell(0)
    layout: Cell = Cell(1)
    slot_count: Cell = Cell(2)
    arbiter: Cell = Cell(3)
    """The arbiter's pid."""
    phase: Cell = Cell(4)
    t0: Cell = Cell(5)
    sigterm: Cell = Cell(6)
    trigger: Cell = Cell(7)
    """When a shutdown was triggered, and its origin: see ``ORIGIN_MASK``."""
    consumed: Cell = Cell(8)
    """Triggers up to this time are no longer in force: they were taken back or have expired."""
    undrain: Cell = Cell(9)
    drain: Cell = Cell(10)
    drain_limit: Cell = Cell(11)
    deadline: Cell = Cell(12)
    upgraded: Cell = Cell(13)
    """Whether another arbiter serves the same sockets (SIGUSR2)."""
    http_shut: Cell = Cell(14)
    """Whether ``?down=true`` is disabled until restart."""
    rate: Cell = Cell(15)
    """Requests in 1000 seconds, over the minute before T0."""
    delay: Cell = Cell(16)
    """The longest duration of LAME_DUCK unless late requests extend it, in nanoseconds."""
    delay_over: Cell = Cell(17)
    """The first moment at which a SIGTERM would start draining at once. ``prestop`` waits for
    it."""
    slots_used: Cell = Cell(18)
    """One more than the highest record number ever used."""
    gone_cut_off: Cell = Cell(19)
    late: Cell = Cell(20)
    failed: Cell = Cell(21)
    """Whether the plugin has given up and gunicorn shuts down by itself."""
    boards: Cell = Cell(22)
    """The cell at which the boards begin; 0 without boards."""
    platform: Cell = Cell(23)
    """When the platform last gave a trigger (``prestop`` or ``?down=true``), and its origin, also
    if the shutdown had begun before: see ``ORIGIN_MASK``."""
    operator: Cell = Cell(24)
    """When ``drain`` was last called, also if the shutdown had begun before."""
    end_delay: Cell = Cell(25)
    """When ``end-delay`` was last called."""
    held: Cell = Cell(26)
    """Whether an operator's drain is in force. It lasts until ``undrain``."""
    emptied: Cell = Cell(29)
    """Whether the listeners were sealed, and their accept queues empty, when the workers were
    dismissed."""
    successor: Cell = Cell(30)
    """When another instance last asked this one to end its delay, because it waits for the same
    addresses."""
    told: Cell = Cell(27)
    """When the arbiter got its first SIGTERM. It is set even if ``sigterm`` is not, because another
    arbiter serves the same sockets (SIGUSR2). The other arbiter reads it."""
    switched_off: Cell = Cell(51)
    """Whether the instance is switched off (``grace_enabled``). gunicorn then shuts down by itself,
    and no command can begin a shutdown."""
    handed_over: Cell = Cell(52)
    """Whether another process made the listening sockets and keeps them (systemd). No client is
    then refused while the instance drains."""
    uncounted: Cell = Cell(28)
    """Whether the requests of the workers cannot be counted. The counts then mean nothing."""
    plugin: Text = Text(31, 2)
    """The version of gunicorn-grace in the arbiter."""
    gunicorn: Text = Text(33, 2)
    """The version of gunicorn."""
    application: Text = Text(35, 16)
    """What the arbiter serves, as gunicorn names it."""


class Lost(NamedTuple):
    """How many requests are lost, counted by the progress of each request.

    :ivar in_flight: the application was serving the request.
    :ivar pipelined: the request waited behind one in flight, on the same connection.
    :ivar half_read: the worker had read a part of the request.
    :ivar not_begun: the worker had accepted the connection and had not begun the request.
    :ivar accept_queue: the connection was in an accept queue, and no worker had accepted it.
    """

    in_flight: int = 0
    pipelined: int = 0
    half_read: int = 0
    not_begun: int = 0
    accept_queue: int = 0

    def total(self) -> int:
        """Return how many requests are lost in all."""
        return sum(self)

    def plus(self, other: Lost) -> Lost:
        """Return the sum of both, for each kind."""
        return Lost(*map(operator.add, self, other))

    def minus(self, other: Lost) -> Lost:
        """Return what was added since ``other``, an earlier state."""
        return Lost(*map(operator.sub, self, other))


class Record(View):
    """The cells that exist once per worker. ``requests`` and ``since_t0`` are sums over all workers
    that have used this record, one after another.

    It has more attributes than a class should, because it is the layout of the memory, in one
    place.
    """

    __slots__ = ("number",)

    pid: Cell = Cell(0)
    age: Cell = Cell(1)
    booted: Cell = Cell(2)
    in_flight: Cell = Cell(3)
    requests: Cell = Cell(4)
    since_t0: Cell = Cell(5)
    last_arrival: Cell = Cell(6)
    holds: Cell = Cell(7)

    claimed: Cell = Cell(8)
    dismissed: Cell = Cell(9)
    """When the arbiter dismissed the worker for the first time."""
    term_seen: Cell = Cell(10)
    """When the worker last handled a SIGTERM. It stores this before it checks whether it may
    leave."""
    cut_off: Cell = Cell(11)
    longest: Cell = Cell(12)
    """The longest request since ``window`` began, in nanoseconds."""
    longest_before: Cell = Cell(13)
    """The longest request of the window before."""
    window: Cell = Cell(14)
    empty_since: Cell = Cell(15)
    """Since when this worker's own accept queues (``reuse_port``) have been empty."""

    waiting: Cell = Cell(16)
    """Connections that the worker has accepted, with a request that no thread or greenlet has
    begun. During a shutdown the number is at most 0.2 s old. Otherwise it is 0."""
    half_read: Cell = Cell(17)
    """Requests of which the worker has read only a part, too little to serve them."""
    pipelined: Cell = Cell(18)
    """Requests that wait behind one in flight, on the same connection."""
    uncounted: Cell = Cell(19)
    """Whether the worker's requests cannot be counted. Its numbers then mean nothing."""
    queued: Cell = Cell(20)
    """Connections in the worker's own accept queues (``reuse_port``)."""
    may_shut: Cell = Cell(21)
    """Whether the arbiter may shut the listening sockets without an error in this worker."""
    requests_before: Cell = Cell(22)
    """The value of ``requests`` when the worker got this record."""
    since_t0_before: Cell = Cell(23)
    """The value of ``since_t0`` when the worker got this record, or when the last shutdown was
    taken back."""
    requests_at_look: Cell = Cell(24)
    """The value of ``requests`` when the worker last counted ``waiting``."""

    def __init__(self, cells: memoryview[int], begin: int, number: int) -> None:
        super().__init__(cells, begin)
        self.number: int = number

    @classmethod
    def private(cls) -> Record:
        """Make a record outside the shared memory, for a worker without a slot. The hot path then
        needs no branch."""
        return cls(memoryview(bytearray(8 * RECORD_CELLS)).cast("q"), 0, -1)

    def would_lose(self) -> Lost:
        """Return what would be lost if the worker ended now, or what was lost when it was
        interrupted."""
        # A worker that hangs no longer updates `waiting`. The requests that it has begun since its
        # last look are in flight, and must not count twice.
        begun = max(self.requests - self.requests_at_look, 0)
        return Lost(
            in_flight=max(self.in_flight, self.cut_off, 0),
            pipelined=max(self.pipelined, 0),
            half_read=max(self.half_read, 0),
            not_begun=max(self.waiting - begun, 0),
            accept_queue=max(self.queued, 0),
        )
