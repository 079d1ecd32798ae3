"""The shared memory: its layout, its seals, and that processes see each other's stores whole."""

from __future__ import annotations

import contextlib
import fcntl
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

from gunicorn_grace.arbiter.lifecycle import Origin
from gunicorn_grace.errors import StateError
from gunicorn_grace.shared import memory as st
from gunicorn_grace.shared.memory import State
from gunicorn_grace.shared.phase import Phase
from gunicorn_grace.shared.settings import Settings
from gunicorn_grace.worker.process import Seat, _hot_path
from support.trials import trials

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="no memfd here")

ROOT = Path(st.__file__).parents[1]
PATIENCE = 30


def run(code: str, *args: object) -> subprocess.Popen[str]:
    """A process that shares nothing with this one but what it opens: with ``st``, ``S`` and its
    arguments at hand."""
    prelude = "import os, sys\nfrom gunicorn_grace.shared import memory as st\nfrom gunicorn_grace.shared.memory import State as S\n"
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", prelude + code, *map(str, args)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def path(state: State) -> str:
    return f"/proc/{os.getpid()}/fd/{state.fd}"


# -- layout and seals ----


def test_every_cell_has_its_own_aligned_place(memory: State) -> None:
    """8 bytes a cell, 64 a slot, on the boundary of a cache line; no two names share a cell."""
    names = (
        "MAGIC VERSION SLOT_COUNT ARBITER PHASE T0 SIGTERM TRIGGER CONSUMED UNDRAIN DRAIN DRAIN_LIMIT DEADLINE "
        "UPGRADED HTTP_SHUT RATE DELAY DELAY_OVER SLOTS_USED GONE_LAST_ARRIVAL GONE_CUT_OFF LATE FAILED BOARDS"
    )
    header = [getattr(st, name) for name in names.split(" ")]
    assert sorted(header) == list(range(len(header)))
    assert len(header) <= st.HEADER_CELLS
    assert (memory.cells.itemsize, memory.cells.format, memory.cells.readonly) == (8, "q", False)
    begins = [*map(memory.slot, range(8)), *map(memory.meter, range(8))]
    assert begins == list(range(st.HEADER_CELLS, st.HEADER_CELLS + 16 * 8, 8))
    assert {8 * begin % 64 for begin in begins} == {0}
    assert begins[-1] + st.METER_CELLS == len(memory.cells)
    assert os.fstat(memory.fd).st_size == len(memory.cells) * 8 == 64 * 8 + 8 * 128


def test_the_memory_is_sealed_against_resizing(memory: State) -> None:
    """No process of ours can pull the mapping from under another one (SIGBUS), nor take the seals
    off."""
    seals = fcntl.fcntl(memory.fd, fcntl.F_GET_SEALS)
    assert seals == fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    for size in (0, 64, 1 << 20):
        with pytest.raises(PermissionError):
            os.ftruncate(memory.fd, size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(memory.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


def test_a_new_memory_belongs_to_the_process_that_made_it(memory: State) -> None:
    """It says which arbiter, which layout, that nothing has begun and that no worker is there; exec
    closes it."""
    cells = memory.cells
    assert (cells[st.ARBITER], cells[st.VERSION], cells[st.SLOT_COUNT]) == (
        os.getpid(),
        st.LAYOUT,
        8,
    )
    assert memory.phase() is Phase.STARTING
    assert not memory.is_terminating()
    assert memory.t0() == 0
    assert memory.seconds_left() is None
    assert list(memory.slots()) == []
    assert not os.get_inheritable(memory.fd)
    assert os.readlink(path(memory)).startswith(st.LINK)


def test_closing_gives_every_descriptor_back() -> None:
    """Opened and closed, in good and in bad cases, this process holds as many descriptors as
    before."""
    before = len(os.listdir("/proc/self/fd"))
    made = State.create(slots=1)
    State.open(path(made)).close()
    made.cells[st.VERSION] = 99
    with contextlib.suppress(StateError):
        State.open(path(made))
    made.close()
    assert len(os.listdir("/proc/self/fd")) == before


# -- processes ----


def test_a_fork_shares_the_mapping() -> None:
    """What a forked worker stores, the arbiter reads, and the other way round."""
    process = run(
        "s = S.create(2); r, w = os.pipe(); r2, w2 = os.pipe()\n"
        "if not (pid := os.fork()):\n"
        "    s.cells[s.slot(1) + st.IN_FLIGHT] = 7; os.write(w, b'x'); os.read(r2, 1)\n"
        "    os._exit(s.cells[st.PHASE])\n"
        "os.read(r, 1); print(s.cells[s.slot(1) + st.IN_FLIGHT]); s.cells[st.PHASE] = 3; os.write(w2, b'x')\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    out, _ = process.communicate(timeout=PATIENCE)
    assert out.split() == ["7", "3"]


def test_another_process_opens_it_by_its_link(memory: State) -> None:
    """A process that was told nothing finds ``/proc/<pid>/fd/<n>``, and both read what the other
    one stored."""
    memory.cells[st.PHASE] = Phase.SERVING
    with run(
        "mine = [p for p in st.instances() if p.startswith(sys.argv[1])]\n"
        "(path,) = [p for p in mine if os.stat(p).st_ino == int(sys.argv[2])]\n"
        "s = S.open(path); print(s.phase(), s.cells[st.ARBITER]); s.trigger(3); s.close()",
        f"/proc/{os.getpid()}/",
        os.fstat(memory.fd).st_ino,
    ) as process:
        out, _ = process.communicate(timeout=PATIENCE)
    assert out.split() == ["SERVING", str(os.getpid())]
    assert memory.phase() is Phase.LAME_DUCK
    assert memory.cells[st.TRIGGER] & st.ORIGIN_MASK == Origin.PRESTOP


def test_a_mapping_is_found_once_however_many_hold_it(memory: State) -> None:
    """Arbiter, workers and duplicates link to one memory, which is one instance."""
    twin = os.dup(memory.fd)
    inode = os.fstat(memory.fd).st_ino
    try:
        mine = [p for p in st.instances() if p.startswith(f"/proc/{os.getpid()}/")]
        assert [os.stat(p).st_ino for p in mine].count(inode) == 1
    finally:
        os.close(twin)


def test_no_read_is_torn(memory: State) -> None:
    """While another process stores two patterns that differ in every byte, each read is one of
    both."""
    patterns = {0x1111111111111111, 0x6E6E6E6E6E6E6E6E}
    cell = memory.slot(3) + st.LAST_ARRIVAL
    stop = memory.slot(4)
    memory.cells[cell] = min(patterns)
    seen: set[int] = set()
    with run(
        "s = S.open(sys.argv[1]); a, b, cell, stop = map(int, sys.argv[2:]); c = s.cells; print('go', flush=True)\n"
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


def test_racing_triggers_leave_one_that_is_whole(memory: State) -> None:
    """Four processes trigger at the same moment: at least one began it, and the cell is the store
    of one of them."""
    origins = [Origin.HTTP, Origin.PRESTOP, Origin.DRAIN, Origin.HTTP]
    before = time.monotonic_ns() & ~st.ORIGIN_MASK
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
    winner = memory.cells[st.TRIGGER]
    assert sum(began) >= 1
    assert Origin(winner & st.ORIGIN_MASK) in [
        origin for origin, won in zip(origins, began, strict=True) if won
    ]
    assert before <= memory.t0() <= time.monotonic_ns()
    assert not memory.trigger(Origin.DRAIN)
    assert memory.cells[st.TRIGGER] == winner


# -- the trigger ----


def test_the_first_trigger_wins(memory: State) -> None:
    """One store holds the moment and who it was; a second one changes neither."""
    assert memory.trigger(Origin.PRESTOP, 8_000_001)
    assert not memory.trigger(Origin.DRAIN, 9_000_000)
    assert memory.cells[st.TRIGGER] == 8_000_000 | Origin.PRESTOP
    assert memory.t0() == pytest.approx(8_000_001, abs=8)


def test_a_consumed_trigger_does_not_count(memory: State) -> None:
    """Taken back or expired, it is as if it never was, and another one can come."""
    memory.cells[st.PHASE] = Phase.SERVING
    memory.trigger(Origin.DRAIN, 8_000_000)
    memory.cells[st.CONSUMED] = 9_000_000
    assert not memory.is_triggered()
    assert not memory.is_terminating()
    assert memory.phase() is Phase.SERVING
    assert memory.t0() == 0
    assert memory.trigger(Origin.PRESTOP, 10_000_000)
    assert memory.is_triggered()


@pytest.mark.parametrize("cell", [st.SIGTERM, st.TRIGGER])
def test_it_terminates_before_the_arbiter_looks(memory: State, cell: int) -> None:
    """A store by a signal handler or a trigger turns every process's answer at once; never ready
    stays never ready."""
    memory.cells[cell] = 8_000
    assert memory.phase() is Phase.STARTING
    memory.cells[st.PHASE] = Phase.SERVING
    assert memory.is_terminating()
    assert memory.phase() is Phase.LAME_DUCK
    assert memory.t0() == 8_000
    assert not memory.trigger(Origin.HTTP)


def test_t0_is_the_earlier_and_then_what_the_arbiter_took_up(memory: State) -> None:
    """A SIGTERM after the trigger starts nothing anew."""
    memory.cells[st.TRIGGER], memory.cells[st.SIGTERM] = 8_000, 9_000
    assert memory.t0() == 8_000
    memory.cells[st.T0] = 7_000
    assert memory.t0() == 7_000


def test_seconds_left_never_goes_below_zero(memory: State) -> None:
    """Time to the deadline, and 0 once it has passed."""
    memory.cells[st.DEADLINE] = time.monotonic_ns() + 100 * st.NS
    left = memory.seconds_left()
    assert left is not None
    assert 0 < left <= 100
    memory.cells[st.DEADLINE] = 1
    assert memory.seconds_left() == 0


# -- slots ----


def test_a_slot_is_clean_when_claimed_and_listed_while_it_is(memory: State) -> None:
    """A worker finds nothing of its predecessor but the totals, to count on; neighbours keep what
    is theirs."""
    for number in range(8):
        for begin in (memory.slot(number), memory.meter(number)):
            for cell in range(begin, begin + 8):
                memory.cells[cell] = 99
    before = memory.cells.tolist()
    memory.claim(3, age=12)
    mine = {
        *range(memory.slot(3), memory.slot(3) + 8),
        *range(memory.meter(3), memory.meter(3) + 8),
    }
    changed = {i for i, value in enumerate(memory.cells) if value != before[i]}
    kept = {memory.slot(3) + st.REQUESTS, memory.slot(3) + st.SINCE_T0}
    assert changed == mine - kept | {st.SLOTS_USED}
    assert {i: memory.cells[i] for i in mine - kept if memory.cells[i]} == {
        memory.slot(3) + st.AGE: 12,
        memory.meter(3) + st.CLAIMED: 1,
    }
    assert (3, memory.slot(3), memory.meter(3)) in list(memory.slots())


def test_the_totals_outlive_the_worker(memory: State) -> None:
    """Requests, those since T0, the last arrival and what was cut off are counted once for each
    worker, dead or not."""
    for number, (in_flight, cut_off, requests, since, last) in enumerate(
        [(2, 0, 10, 4, 500), (0, 3, 5, 0, 300), (1, 1, 1, 1, 400)]
    ):
        memory.claim(number, age=number)
        slot, meter = memory.slot(number), memory.meter(number)
        memory.cells[slot + st.IN_FLIGHT], memory.cells[meter + st.CUT_OFF] = in_flight, cut_off
        memory.cells[slot + st.REQUESTS], memory.cells[slot + st.SINCE_T0] = requests, since
        memory.cells[slot + st.LAST_ARRIVAL] = last
    assert [memory.free(number) for number in range(3)] == [2, 3, 1]
    assert [memory.cells[c] for c in (st.GONE_LAST_ARRIVAL, st.GONE_CUT_OFF)] == [500, 6]
    assert list(memory.slots()) == []
    assert (memory.total_ever(st.REQUESTS), memory.total_ever(st.SINCE_T0)) == (16, 5)
    assert memory.total(st.REQUESTS) == 0


def test_a_worker_counts_on_from_those_before_it(memory: State) -> None:
    """The next worker of a slot adds to the slot's totals; the sum over the slots is that over all
    workers."""
    for age in (1, 2, 3):
        memory.claim(2, age)
        seat = Seat(memory, 2, Settings(), log=None)
        for number in range(age):
            request = Bare()
            seat.begin(request)
            if number:
                seat.end(request)
        assert memory.free(2) == 1
    assert memory.total_ever(st.REQUESTS) == 1 + 2 + 3
    assert memory.cells[st.SLOTS_USED] == 3
    assert memory.cells[st.GONE_CUT_OFF] == 3


def test_no_sum_goes_back_while_workers_come_and_go(memory: State) -> None:
    """Another process that sums all the time never sees a total shrink, nor one that was not
    reached yet, however many workers are claimed, counted and freed meanwhile."""
    watcher = run(
        "s = S.open(sys.argv[1]); last = looks = 0\n"
        "print('ready', flush=True)\n"
        "while not s.cells[st.FAILED]:\n"
        "    low = s.cells[st.DRAIN]; now = s.total_ever(st.REQUESTS); high = s.cells[st.DELAY]\n"
        "    assert last <= now and low <= now <= high, (last, low, now, high); last = now; looks += 1\n"
        "print(looks, last)",
        path(memory),
    )
    assert watcher.stdout is not None
    assert watcher.stdout.readline() == "ready\n"
    cells = memory.cells
    for age in range(3000):
        number = age % 3
        memory.claim(number, age)
        slot = memory.slot(number)
        for _ in range(4):
            cells[st.DELAY] += (
                1  # Any two cells that nothing else uses here: what may be seen, and what must be.
            )
            cells[slot + st.REQUESTS] += 1
            cells[st.DRAIN] += 1
        memory.free(number)
    cells[st.FAILED] = 1
    out, _ = watcher.communicate(timeout=PATIENCE)
    looks, last = map(int, out.split())
    assert watcher.returncode == 0
    assert looks > 10
    assert last <= 12_000 == memory.total_ever(st.REQUESTS)


def test_t0_as_a_unix_time(memory: State) -> None:
    """The monotonic T0 on the wall clock; nothing while no shutdown has begun."""
    assert memory.t0_unix() is None
    before = time.time()
    memory.cells[st.SIGTERM] = time.monotonic_ns()
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
def test_threads_of_a_worker_count_exactly(memory: State, number: int | None) -> None:
    """8 threads begin and end 50 requests each: none is lost or counted twice, and none is left in
    flight."""

    memory.claim(5, age=1)
    seat = Seat(memory, number, Settings(), log=None)
    seat.cells_own = Preempted(seat.cells_own)  # type: ignore[assignment]
    seat.begin, seat.end = _hot_path(seat, threading.get_ident, threaded=True)
    memory.cells[st.SIGTERM] = time.monotonic_ns()
    start = threading.Barrier(8)

    def serve() -> None:
        start.wait(PATIENCE)
        for _ in range(50):
            request = Bare()
            seat.begin(request)
            seat.end(request)

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
    own, slot = seat.cells_own, seat.slot
    assert [own[slot + cell] for cell in (st.IN_FLIGHT, st.REQUESTS, st.SINCE_T0)] == [0, 400, 400]
    assert seat.in_flight == {}
    if number is None:
        assert memory.cells[memory.slot(5) + st.REQUESTS] == 0


# -- what is not ours ----


@contextlib.contextmanager
def foreign(content: bytes) -> Iterator[str]:
    """A memory of our name that holds something else."""
    fd = os.memfd_create(st.NAME, os.MFD_CLOEXEC)
    try:
        os.write(fd, content)
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def image(change: Callable[[memoryview], object] = lambda cells: None) -> bytes:
    made = State.create(slots=2)
    try:
        change(made.cells)
        return made.cells.tobytes()
    finally:
        made.close()


def put(index: int, value: int) -> Callable[[memoryview], object]:
    return lambda cells: cells.__setitem__(index, value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", r"0 bytes < 512 bytes"),
        (image()[:504], r"504 bytes < 512 bytes"),
        (bytes(4096), r"not the memory of gunicorn-grace"),
        (bytes(range(1, 256)) * 4, r"not the memory of gunicorn-grace"),
        (image()[:513], r"2 slots do not fit into 513 bytes"),
        (image()[:760], r"2 slots do not fit into 760 bytes"),
        (image(put(st.VERSION, 2)), r"layout 2, this command knows 1"),
        (image(put(st.SLOT_COUNT, -1)), r"damaged"),
        (image(put(st.SLOT_COUNT, 1 << 60)), r"damaged"),
        (image(put(st.SLOT_COUNT, 3)), r"3 slots do not fit into 768 bytes"),
        (image(put(st.PHASE, 17)), r"damaged"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_ours_is_refused(content: bytes, says: str) -> None:
    """Truncated, foreign, of another version or damaged: one error of ours, which names the file
    and the numbers."""
    with foreign(content) as file, pytest.raises(StateError, match=says) as caught:
        State.open(file)
    assert file in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def use(file: str) -> None:
    """All that the CLI would do with a memory."""
    try:
        state = State.open(file)
    except StateError:
        return
    state.phase()
    state.t0()
    state.is_terminating()
    state.seconds_left()
    list(state.slots())
    state.close()


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


def test_names_of_cells_do_not_collide() -> None:
    """The cells of a slot are eight, those of a meter no more, and the origins fit beside the time
    of a trigger."""
    slot = [
        st.PID,
        st.AGE,
        st.BOOTED,
        st.IN_FLIGHT,
        st.REQUESTS,
        st.SINCE_T0,
        st.LAST_ARRIVAL,
        st.HOLDS,
    ]
    meter = [
        st.CLAIMED,
        st.DISMISSED,
        st.TERM_SEEN,
        st.CUT_OFF,
        st.LONGEST,
        st.LONGEST_BEFORE,
        st.WINDOW,
    ]
    assert sorted(slot) == list(range(st.SLOT_CELLS))
    assert sorted(meter) == list(range(st.METER_CELLS - 1))
    assert max(Origin) <= st.ORIGIN_MASK
