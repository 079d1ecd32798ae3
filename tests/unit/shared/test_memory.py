"""The shared memory: its layout, its seals, and that processes see each other's stores whole."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as hyp

from gunicorn_grace.errors import StateError
from gunicorn_grace.shared import cells as layout
from gunicorn_grace.shared import memory as shm
from gunicorn_grace.shared import metrics
from gunicorn_grace.shared.cells import Cell, Header, Record, Text, View
from gunicorn_grace.shared.instances import search
from gunicorn_grace.shared.memory import Memory
from gunicorn_grace.shared.phase import Origin, Phase
from gunicorn_grace.shared.settings import Settings
from gunicorn_grace.worker.counting import _hot_path
from gunicorn_grace.worker.process import WorkerProcess
from support.trials import trials

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="no memfd here")

ROOT = Path(shm.__file__).parents[1]
PATIENCE = 30


def run(code: str, *args: object) -> subprocess.Popen[str]:
    """A process that shares nothing with this one but what it opens: with ``layout``, ``shm``,
    ``S`` and its arguments at hand."""
    prelude = (
        "import os, sys\nfrom gunicorn_grace.shared import cells as layout, memory as shm\n"
        "from gunicorn_grace.shared.memory import Memory as S\n"
    )
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", prelude + code, *map(str, args)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def path(state: Memory) -> str:
    return f"/proc/{os.getpid()}/fd/{state.fd}"


# -- layout and seals ----


def test_every_cell_has_its_own_aligned_place(memory: Memory) -> None:
    """8 bytes for a cell, 256 for a record, on the boundary of a cache line; no two names share a
    cell."""
    header, record = cells_of(Header), cells_of(Record)
    assert sorted(header) == list(range(len(header)))
    assert len(header) <= layout.HEADER_CELLS
    assert sorted(record) == list(range(len(record)))
    assert len(record) <= layout.RECORD_CELLS
    assert (memory.cells.itemsize, memory.cells.format, memory.cells.readonly) == (8, "q", False)
    begins = [memory.record(number).begin for number in range(8)]
    assert begins == list(range(layout.HEADER_CELLS, layout.HEADER_CELLS + 32 * 8, 32))
    assert {8 * begin % 64 for begin in begins} == {0}
    assert begins[-1] + layout.RECORD_CELLS == len(memory.cells)
    assert os.fstat(memory.fd).st_size == len(memory.cells) * 8 == 64 * 8 + 8 * 256
    assert max(Origin) <= layout.ORIGIN_MASK


def cells_of(view: type[View]) -> list[int]:
    """The offsets of a view's cells."""
    names = vars(view).values()
    texts = [
        range(text.offset, text.offset + text.cells) for text in names if isinstance(text, Text)
    ]
    cells = [cell.offset for cell in names if isinstance(cell, Cell)]
    return [*cells, *itertools.chain(*texts)]


def test_what_does_not_fit_a_cell_is_clamped(memory: Memory) -> None:
    """A number that was computed from cells of other processes never raises."""
    memory.header.rate = 1 << 70
    assert memory.header.rate == (1 << 63) - 1
    memory.header.rate = -(1 << 70)
    assert memory.header.rate == -(1 << 63)


def test_the_memory_is_sealed_against_resizing(memory: Memory) -> None:
    """No process of ours can pull the mapping from under another one (SIGBUS), nor take the seals
    off."""
    seals = fcntl.fcntl(memory.fd, fcntl.F_GET_SEALS)
    assert seals == fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    for size in (0, 64, 1 << 20):
        with pytest.raises(PermissionError):
            os.ftruncate(memory.fd, size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(memory.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


def test_a_new_memory_belongs_to_the_process_that_made_it(memory: Memory) -> None:
    """It says which arbiter, which layout, that nothing has begun and that no worker is there; exec
    closes it."""
    header = memory.header
    assert (header.arbiter, header.layout, header.slot_count) == (
        os.getpid(),
        shm.LAYOUT,
        8,
    )
    assert memory.phase() is Phase.STARTING
    assert not memory.is_terminating()
    assert memory.t0() == 0
    assert memory.seconds_left() is None
    assert list(memory.records()) == []
    assert not os.get_inheritable(memory.fd)
    assert os.readlink(path(memory)).startswith(shm.LINK)


def test_closing_gives_every_descriptor_back() -> None:
    """Opened and closed, in good and in bad cases, this process holds as many descriptors as
    before."""
    before = len(os.listdir("/proc/self/fd"))
    made = Memory.create(slots=1)
    Memory.open(path(made)).close()
    made.header.layout = 99
    with contextlib.suppress(StateError):
        Memory.open(path(made))
    made.close()
    assert len(os.listdir("/proc/self/fd")) == before


# -- processes ----


def test_a_fork_shares_the_mapping() -> None:
    """What a forked worker stores, the arbiter reads, and the other way round."""
    process = run(
        "s = S.create(2); r, w = os.pipe(); r2, w2 = os.pipe()\n"
        "if not (pid := os.fork()):\n"
        "    s.record(1).in_flight = 7; os.write(w, b'x'); os.read(r2, 1)\n"
        "    os._exit(s.header.phase)\n"
        "os.read(r, 1); print(s.record(1).in_flight); s.header.phase = 3; os.write(w2, b'x')\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    out, _ = process.communicate(timeout=PATIENCE)
    assert out.split() == ["7", "3"]


def test_another_process_opens_it_by_its_link(memory: Memory) -> None:
    """A process that was told nothing finds ``/proc/<pid>/fd/<n>``, and both read what the other
    one stored."""
    memory.header.phase = Phase.SERVING
    with run(
        "from gunicorn_grace.shared.instances import search\n"
        "s = search(int(sys.argv[1])).instances[0].memory\n"
        "print(s.phase(), s.header.arbiter); s.trigger(3); s.close()",
        os.getpid(),
    ) as process:
        out, _ = process.communicate(timeout=PATIENCE)
    assert out.split() == ["SERVING", str(os.getpid())]
    assert memory.phase() is Phase.LAME_DUCK
    assert memory.header.trigger & layout.ORIGIN_MASK == Origin.PRESTOP


def test_a_mapping_is_found_once_however_many_hold_it(memory: Memory) -> None:
    """Arbiter, workers and duplicates link to one memory, which is one instance."""
    twin = os.dup(memory.fd)
    try:
        found = search(os.getpid())
        found.close()
        assert [instance.pid for instance in found.instances] == [os.getpid()]
    finally:
        os.close(twin)


def test_no_read_is_torn(memory: Memory) -> None:
    """While another process stores two patterns that differ in every byte, each read is one of
    both."""
    patterns = {0x1111111111111111, 0x6E6E6E6E6E6E6E6E}
    cell = memory.record(3).begin + Record.last_arrival.offset
    stop = memory.record(4).begin
    memory.cells[cell] = min(patterns)
    seen: set[int] = set()
    with run(
        "s = S.open(sys.argv[1]); a, b, cell, stop = map(int, sys.argv[2:]); c = s.cells; "
        "print('go', flush=True)\n"
        "for _ in range(50_000_000):\n"
        "    c[cell] = a; c[cell] = b\n"
        "    if c[stop]: break\n",
        path(memory),
        *patterns,
        cell,
        stop,
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "go\n"
        cells = memory.cells
        for _ in range(50):
            for _ in range(200_000):
                seen.add(cells[cell])
            if len(seen) > 1:  # Else the writer had no turn meanwhile.
                break
        still_writing = writer.poll() is None
        cells[stop] = 1
    assert still_writing, "the writer was done first: nothing was proved"
    assert seen == patterns


def test_racing_triggers_leave_one_that_is_whole(memory: Memory) -> None:
    """Four processes trigger at the same moment: at least one began it, and the cell is the store
    of one of them."""
    origins = [Origin.HTTP, Origin.PRESTOP, Origin.DRAIN, Origin.HTTP]
    before = time.monotonic_ns() & ~layout.ORIGIN_MASK
    racers = [
        run(
            "s = S.open(sys.argv[1]); print('up', flush=True); sys.stdin.readline()\n"
            "print(int(s.trigger(int(sys.argv[2]))))",
            path(memory),
            int(origin),
        )
        for origin in origins
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "up\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    began = [int(racer.communicate(timeout=PATIENCE)[0]) for racer in racers]
    winner = memory.header.trigger
    assert sum(began) >= 1
    assert Origin(winner & layout.ORIGIN_MASK) in [
        origin for origin, won in zip(origins, began, strict=True) if won
    ]
    assert before <= memory.t0() <= time.monotonic_ns()
    assert not memory.trigger(Origin.DRAIN)
    assert memory.header.trigger == winner


# -- the trigger ----


def test_the_first_trigger_wins(memory: Memory) -> None:
    """One store holds the moment and who it was; a second one changes neither."""
    assert memory.trigger(Origin.PRESTOP, 8_000_001)
    assert not memory.trigger(Origin.DRAIN, 9_000_000)
    assert memory.header.trigger == 8_000_000 | Origin.PRESTOP
    assert memory.t0() == pytest.approx(8_000_001, abs=8)


def test_a_consumed_trigger_does_not_count(memory: Memory) -> None:
    """Taken back or expired, it is as if it never was, and another one can come."""
    memory.header.phase = Phase.SERVING
    memory.trigger(Origin.DRAIN, 8_000_000)
    memory.header.consumed = 9_000_000
    assert not memory.is_triggered()
    assert not memory.is_terminating()
    assert memory.phase() is Phase.SERVING
    assert memory.t0() == 0
    assert memory.trigger(Origin.PRESTOP, 10_000_000)
    assert memory.is_triggered()


@pytest.mark.parametrize("cell", ["sigterm", "trigger"])
def test_it_terminates_before_the_arbiter_looks(memory: Memory, cell: str) -> None:
    """A store by a signal handler or a trigger turns every process's answer at once; never ready
    stays never ready."""
    setattr(memory.header, cell, 8_000)
    assert memory.phase() is Phase.STARTING
    memory.header.phase = Phase.SERVING
    assert memory.is_terminating()
    assert memory.phase() is Phase.LAME_DUCK
    assert memory.t0() == 8_000
    assert not memory.trigger(Origin.HTTP)


def test_t0_is_the_earlier_and_then_what_the_arbiter_took_up(memory: Memory) -> None:
    """A SIGTERM after the trigger starts nothing anew."""
    memory.header.trigger, memory.header.sigterm = 8_000, 9_000
    assert memory.t0() == 8_000
    memory.header.t0 = 7_000
    assert memory.t0() == 7_000


def test_seconds_left_never_goes_below_zero(memory: Memory) -> None:
    """Time to the deadline, and 0 once it has passed."""
    memory.header.deadline = time.monotonic_ns() + 100 * layout.NS
    left = memory.seconds_left()
    assert left is not None
    assert 0 < left <= 100
    memory.header.deadline = 1
    assert memory.seconds_left() == 0


# -- slots ----


def test_a_record_is_clean_when_claimed_and_listed_while_it_is(memory: Memory) -> None:
    """A worker finds nothing of its predecessor but the totals, to count on; neighbours keep what
    is theirs."""
    record = memory.record(3)
    for cell in range(layout.HEADER_CELLS, len(memory.cells)):
        memory.cells[cell] = 99
    record.claimed = 0
    record.requests = record.since_t0 = 98
    before = memory.cells.tolist()
    memory.claim(3, age=12)
    mine = set(range(record.begin, record.begin + layout.RECORD_CELLS))
    changed = {i for i, value in enumerate(memory.cells) if value != before[i]}
    kept = {record.begin + cell.offset for cell in (Record.requests, Record.since_t0)}
    assert changed == mine - kept | {Header.slots_used.offset}
    assert {i: memory.cells[i] for i in mine - kept if memory.cells[i]} == {
        record.begin + Record.age.offset: 12,
        record.begin + Record.claimed.offset: 1,
        record.begin + Record.requests_before.offset: 98,
        record.begin + Record.since_t0_before.offset: 98,
    }
    assert 3 in [claimed.number for claimed in memory.records()]


def test_no_sum_goes_back_while_workers_come_and_go(memory: Memory) -> None:
    """Another process that sums all the time never sees a total shrink, nor one that was not
    reached yet, however many workers are claimed, counted and freed meanwhile."""
    watcher = run(
        "s = S.open(sys.argv[1]); last = looks = 0\n"
        "print('ready', flush=True)\n"
        "while not s.header.failed:\n"
        "    low = s.header.drain; now = s.total_ever(layout.Record.requests); high = "
        "s.header.delay\n"
        "    assert last <= now and low <= now <= high, (last, low, now, high); last = now; looks "
        "+= 1\n"
        "print(looks, last)",
        path(memory),
    )
    assert watcher.stdout is not None
    assert watcher.stdout.readline() == "ready\n"
    header = memory.header
    for age in range(3000):
        number = age % 3
        memory.claim(number, age)
        record = memory.record(number)
        for _ in range(4):
            # Any two cells that nothing else uses here: what may be seen, and what must be.
            header.delay += 1
            record.requests += 1
            header.drain += 1
        record.claimed = 0
    header.failed = 1
    out, _ = watcher.communicate(timeout=PATIENCE)
    looks, last = map(int, out.split())
    assert watcher.returncode == 0
    assert looks > 10
    assert last <= 12_000 == memory.total_ever(Record.requests)


def test_t0_as_a_unix_time(memory: Memory) -> None:
    """The monotonic T0 on the wall clock; nothing while no shutdown has begun."""
    assert memory.t0_unix() is None
    before = time.time()
    memory.header.sigterm = time.monotonic_ns()
    told = memory.t0_unix()
    assert told is not None
    assert before - 0.1 <= told <= time.time() + 0.1


class Bare:
    """A request of no server."""

    path = "/"

    def should_close(self) -> bool:
        return False


class Preempted:
    """The memory, giving up the interpreter between each load and the store that follows: what a
    free-threaded build, or an unlucky switch, does once in a million times."""

    def __init__(self, cells: Any) -> None:
        self.cells = cells

    def __getitem__(self, index: int) -> int:
        value = int(self.cells[index])
        time.sleep(0)
        return value

    def __setitem__(self, index: int, value: int) -> None:
        self.cells[index] = value


@pytest.mark.parametrize("number", [5, None], ids=["slot", "no-slot"])
def test_threads_of_a_worker_count_exactly(memory: Memory, number: int | None) -> None:
    """8 threads begin and end 50 requests each: none is lost or counted twice, and none is left in
    flight."""

    memory.claim(5, age=1)
    ours = WorkerProcess(memory, number, Settings(), log=None)
    record = ours.record
    record.cells = Preempted(record.cells)  # type: ignore[assignment]
    begin, end, _ = _hot_path(
        ours.counter, memory, record, ours.shedding, threading.get_ident, threaded=True
    )
    memory.header.sigterm = time.monotonic_ns()
    start = threading.Barrier(8)

    def serve() -> None:
        start.wait(PATIENCE)
        for _ in range(50):
            request = Bare()
            begin(request)
            end(request)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=serve) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    finally:
        sys.setswitchinterval(interval)
    assert [record.in_flight, record.requests, record.since_t0] == [0, 400, 400]
    assert ours.counter.in_flight == {}
    if number is None:
        assert memory.record(5).requests == 0


# -- what is not ours ----


@contextlib.contextmanager
def foreign(content: bytes) -> Iterator[str]:
    """A memory of our name that holds something else."""
    fd = os.memfd_create(shm.NAME, os.MFD_CLOEXEC)
    try:
        os.write(fd, content)
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def image(change: Callable[[memoryview], object] = lambda cells: None) -> bytes:
    made = Memory.create(slots=2)
    try:
        change(made.cells)
        return made.cells.tobytes()
    finally:
        made.close()


def put(cell: Cell, value: int) -> Callable[[memoryview], object]:
    return lambda cells: cells.__setitem__(cell.offset, value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", r"0 bytes < 512 bytes"),
        (image()[:504], r"504 bytes < 512 bytes"),
        (bytes(4096), r"not the memory of gunicorn-grace"),
        (bytes(range(1, 256)) * 4, r"not the memory of gunicorn-grace"),
        (image()[:513], r"2 slots do not fit into 513 bytes"),
        (image()[:1016], r"2 slots do not fit into 1016 bytes"),
        (image(put(Header.layout, 9)), r"layout 9, but this command knows 3"),
        (image(put(Header.slot_count, -1)), r"damaged"),
        (image(put(Header.slot_count, 1 << 60)), r"damaged"),
        (image(put(Header.slot_count, 3)), r"3 slots do not fit into 1024 bytes"),
        (image(put(Header.phase, 17)), r"damaged"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_ours_is_refused(content: bytes, says: str) -> None:
    """Truncated, foreign, of another version or damaged: one error of ours, which names the file
    and the numbers."""
    with foreign(content) as file, pytest.raises(StateError, match=says) as caught:
        Memory.open(file)
    assert file in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_memory_that_the_kernel_does_not_map_is_refused() -> None:
    """A descriptor that may not be written to stands for it. It is closed, and the one line names
    the file."""
    memory = Memory.create(slots=1)
    path = f"/proc/self/fd/{memory.fd}"
    fd = os.open(path, os.O_RDONLY)
    with pytest.raises(StateError, match=f"{path}: cannot be mapped: Permission denied"):
        Memory.mapped(fd, path)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    memory.close()


def use(file: str) -> None:
    """All that the CLI would do with a memory."""
    try:
        memory = Memory.open(file)
    except StateError:
        return
    memory.phase()
    memory.t0()
    memory.is_terminating()
    memory.seconds_left()
    metrics.read(memory)
    for record in memory.records():
        board = memory.board(record.number)
        if board is not None:
            board.entries()
    memory.close()


@trials(150)
@given(
    content=hyp.one_of(
        hyp.binary(max_size=600),
        hyp.integers(0, 1100).map(lambda size: image()[:size]),
        hyp.binary(min_size=600, max_size=700).map(lambda tail: image()[:32] + tail),
        hyp.dictionaries(
            hyp.integers(0, 95), hyp.integers(-(1 << 63), (1 << 63) - 1), max_size=4
        ).map(lambda cells: image(lambda view: [view.__setitem__(i, v) for i, v in cells.items()])),
    )
)
def test_no_garbage_crashes_a_reader(content: bytes) -> None:
    """Random bytes, truncations and random cells are read or refused with StateError; nothing else
    comes out."""
    with foreign(content) as file:
        use(file)


@pytest.mark.parametrize("view", [Header, Record])
def test_no_two_names_share_a_cell(view: type) -> None:
    """Each name of a header and of a record has a cell of its own, and all of them fit in."""
    offsets = cells_of(view)
    assert len(set(offsets)) == len(offsets)
    assert max(offsets) < (layout.HEADER_CELLS if view is Header else layout.RECORD_CELLS)
