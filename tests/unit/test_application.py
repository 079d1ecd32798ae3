"""Callbacks, holds and streams that end, in a process that is not a worker, or that holds the
memory of one."""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from typing import Any

import pytest

import gunicorn_grace
from gunicorn_grace import hold, on_drain, on_lame_duck, until_terminating
from gunicorn_grace.errors import GraceError, UsageError
from gunicorn_grace.shared import memory as shm
from gunicorn_grace.shared.memory import Memory
from gunicorn_grace.shared.phase import Phase
from gunicorn_grace.testing import _Pretended
from gunicorn_grace.worker import duties as duties_module
from gunicorn_grace.worker.duties import Callback, CallbackRunner, Duties, Holds

PATIENCE = 20


@pytest.fixture
def memory() -> Memory:
    """The memory of an instance with one worker: never closed, as a thread that looks out may look
    once more."""
    return _Pretended()


@pytest.fixture
def duties(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Duties]:
    """Those of its worker. It serves."""
    memory.header.phase = Phase.SERVING
    memory.claim(0, age=1)
    made = duties_of(memory)
    monkeypatch.setattr(shm, "attached", memory)
    monkeypatch.setattr(duties_module, "this_workers", made)
    yield made
    made.callbacks._watching = False


def duties_of(memory: Memory) -> Duties:
    log = logging.getLogger("gunicorn.error")
    return Duties(Holds(memory.record(0)), CallbackRunner(memory, log), log)


def named(name: str, calls: list[str] | None = None) -> Callable[[], None]:
    """A function of this name that says when it runs."""

    def function() -> None:
        if calls is not None:
            calls.append(name)

    function.__qualname__ = name
    return function


def names(duties: Duties) -> list[str]:
    """The callbacks that are due, by the names of their functions."""
    return [callback.function.__qualname__ for callback in duties.callbacks.due()]


def holds(memory: Memory) -> int:
    return int(memory.record(0).holds)


# -- registering ----


def test_a_decorator_gives_the_function_back() -> None:
    """With and without parentheses; the deadline is 5 s unless another is given."""
    one, two = named("one"), named("two")
    assert on_lame_duck(one) is one
    assert on_drain(timeout=2)(two) is two
    assert on_drain()(one) is one
    registered = [
        (c.function, c.timeout) for phase in Phase for c in duties_module.registered.get(phase, ())
    ]
    assert registered == [(one, 5.0), (two, 2.0), (one, 5.0)]


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), "5", None, True])
def test_a_deadline_is_a_positive_number_of_seconds(timeout: Any) -> None:
    """Anything else is refused where it is written, with the value and an example."""
    with pytest.raises(
        UsageError, match=r"@on_drain\(timeout=.*must be a number of seconds > 0: try timeout=5"
    ):
        on_drain(timeout=timeout)
    assert not any(duties_module.registered.values())


def test_a_coroutine_function_gets_a_loop_of_its_own(duties: Duties) -> None:
    """In a worker without one. Its exception and its timeout are those of any callback."""
    ran: list[bool] = []

    async def coroutine() -> None:
        await asyncio.sleep(0)
        ran.append(asyncio.get_running_loop().is_running())

    async def fails() -> None:
        raise ValueError("theirs")

    assert on_lame_duck(coroutine) is coroutine
    on_lame_duck(fails)
    callbacks = registered_now(Phase.LAME_DUCK)
    assert duties.callbacks.run(callbacks[0]) is None
    assert ran == [True]
    assert isinstance(duties.callbacks.run(callbacks[1]), ValueError)


def test_a_coroutine_function_runs_in_the_loop_of_an_asgi_worker(duties: Duties) -> None:
    """Beside the requests, with what belongs to that loop."""
    loops: list[object] = []

    async def coroutine() -> None:
        loops.append(asyncio.get_running_loop())

    on_drain(coroutine)
    (callback,) = registered_now(Phase.DRAINING)

    async def serve() -> None:
        duties.callbacks.loop = asyncio.get_running_loop()
        error = await asyncio.to_thread(duties.callbacks.run, callback)
        assert error is None
        assert loops == [asyncio.get_running_loop()]

    asyncio.run(serve())


def registered_now(phase: Phase) -> list[Callback]:
    return duties_module.registered[phase]


def test_what_cannot_be_called_is_refused() -> None:
    """``@on_drain(5)`` for ``@on_drain(timeout=5)``, say."""
    with pytest.raises(UsageError, match="@on_drain got 5, which cannot be called"):
        on_drain(5)  # type: ignore[call-overload]
    assert issubclass(UsageError, GraceError)


def test_a_callback_is_named_by_function_file_and_line() -> None:
    """A partial by what it wraps, a method by its function, an object by its class."""

    class Pool:
        def close(self) -> None: ...

        def __call__(self) -> None: ...

    line = Pool.close.__code__.co_firstlineno
    for function, wanted in (
        (Pool().close, f"Pool.close ({__file__}:{line})"),
        (
            functools.partial(functools.partial(Pool.close), Pool()),
            f"Pool.close ({__file__}:{line})",
        ),
        (Pool(), f"Pool (of {__name__})"),
        (threading.Event().set, "Event.set ("),
        (os.getpid, "getpid (of builtins)"),
    ):
        on_drain(function)
        shown = str(duties_module.registered[Phase.DRAINING][-1])
        assert shown.startswith("on_drain callback ")
        assert wanted in shown


# -- what is due ----


@pytest.fixture
def registered() -> None:
    """Two callbacks for each phase, registered in turns."""
    for name in ("a", "b"):
        on_drain(named(f"drain {name}"))
        on_lame_duck(named(f"lame duck {name}"))


LAME_DUCK = ["lame duck a", "lame duck b"]
DRAIN = ["drain a", "drain b"]


@pytest.mark.parametrize(
    ("phase", "wanted"),
    [
        (Phase.STARTING, []),
        (Phase.SERVING, []),
        (Phase.LAME_DUCK, LAME_DUCK),
        (Phase.DRAINING, LAME_DUCK + DRAIN),
        (Phase.STOPPED, []),
    ],
)
@pytest.mark.usefixtures("registered")
def test_what_is_due_in_each_phase(
    duties: Duties, memory: Memory, phase: Phase, wanted: list[str]
) -> None:
    """In the order of registration; on_drain after on_lame_duck, however late that began; nothing
    after Ctrl-C."""
    memory.header.phase = phase
    assert names(duties) == wanted


@pytest.mark.parametrize("cell", ["sigterm", "trigger"])
@pytest.mark.usefixtures("registered")
def test_they_are_due_before_the_arbiter_takes_the_shutdown_up(
    duties: Duties, memory: Memory, cell: str
) -> None:
    """From the store in the signal handler on, or from the trigger's."""
    setattr(memory.header, cell, 1)
    assert names(duties) == LAME_DUCK


@pytest.mark.parametrize("phase", [Phase.LAME_DUCK, Phase.DRAINING, Phase.STOPPED])
@pytest.mark.usefixtures("registered")
def test_a_worker_that_leaves_in_a_shutdown_runs_all(
    duties: Duties, memory: Memory, phase: Phase
) -> None:
    """Also when it leaves before the drain (``max_requests``), or by gunicorn's own halt."""
    memory.header.phase = phase
    duties.callbacks.leave()
    assert names(duties) == LAME_DUCK + DRAIN


@pytest.mark.usefixtures("registered")
def test_a_worker_that_leaves_in_a_reload_runs_none(duties: Duties) -> None:
    """The instance goes on."""
    duties.callbacks.leave()
    assert names(duties) == []


@pytest.mark.usefixtures("registered")
def test_where_another_arbiter_serves_on_there_is_no_lame_duck(
    duties: Duties, memory: Memory
) -> None:
    """SIGUSR2: whoever takes the address out of a directory would take the new one out."""
    memory.header.upgraded, memory.header.phase = 1, Phase.DRAINING
    assert names(duties) == DRAIN


@pytest.mark.usefixtures("registered")
def test_each_runs_once_a_shutdown(duties: Duties, memory: Memory) -> None:
    """What has run is not due again, until the shutdown was taken back and another has begun; one
    that was taken back while a callback ran does not count for the next."""
    memory.header.phase = Phase.LAME_DUCK
    first, second = duties.callbacks.due()
    assert duties.callbacks.run(first) is None
    assert duties.callbacks.due() == [second]
    taken_back = threading.Event()

    def taken_back_meanwhile() -> None:
        memory.header.consumed = 7
        taken_back.set()

    second.function = taken_back_meanwhile
    assert duties.callbacks.run(second) is None
    assert taken_back.is_set()
    assert duties.callbacks.due() == [first, second]


# -- running ----


@pytest.mark.parametrize(
    "error", [ValueError("x"), SystemExit(3), KeyboardInterrupt(), GeneratorExit()]
)
def test_whatever_a_callback_raises_is_its_outcome(duties: Duties, error: BaseException) -> None:
    """It ends neither this thread nor the process."""

    def function() -> None:
        raise error

    on_drain(function)
    assert duties.callbacks.run(duties_module.registered[Phase.DRAINING][0]) is error


def test_one_that_overruns_is_left_to_itself(duties: Duties, memory: Memory) -> None:
    """Its deadline is its outcome, it is not due again, and its thread goes on to its end."""
    let_go, ended = threading.Event(), threading.Event()

    @on_lame_duck(timeout=0.01)
    def slow() -> None:
        let_go.wait(PATIENCE)
        ended.set()

    memory.header.phase = Phase.LAME_DUCK
    (callback,) = duties.callbacks.due()
    outcome = duties.callbacks.run(callback)
    assert isinstance(outcome, TimeoutError)
    assert "slow (" in str(outcome)
    assert "overran its timeout of 0.01 s" in str(outcome)
    assert duties.callbacks.due() == []
    let_go.set()
    assert ended.wait(PATIENCE)


def test_the_thread_that_looks_out_runs_what_is_due(
    duties: Duties, memory: Memory, caplog: pytest.LogCaptureFixture
) -> None:
    """It begins with the boot or with the first registration, whichever is later, and there is one;
    an error of a callback is logged once with its traceback, a TimeoutError of its own like any
    other."""
    calls: list[str] = []
    ended = threading.Event()
    memory.header.phase = Phase.LAME_DUCK
    on_lame_duck(named("before the boot", calls))
    threads = threading.active_count()
    duties.callbacks.booted()

    @on_lame_duck
    def fails() -> None:
        raise TimeoutError("the application's own")

    on_lame_duck(named("while serving", calls))
    on_lame_duck(ended.set)
    assert ended.wait(PATIENCE)
    assert calls == ["before the boot", "while serving"]
    assert duties.callbacks._watching
    # The one that looks out, and a callback's that is just ending.
    assert threading.active_count() <= threads + 2
    (record,) = [r for r in caplog.records if r.exc_info]
    assert "fails (" in record.getMessage()
    assert "failed" in record.getMessage()


def test_without_callbacks_nobody_looks_out(duties: Duties, memory: Memory) -> None:
    """Nothing registered, no thread; and none before the boot."""
    duties.callbacks.booted()
    assert not duties.callbacks._watching
    other = duties_of(memory)
    on_drain(named("one"))
    assert duties.callbacks._watching
    other.callbacks.watch()
    assert not other.callbacks._watching


def test_without_a_thread_to_be_had_the_worker_leaves(
    duties: Duties,
    memory: Memory,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Callbacks that will never run do not keep it; the log says so."""

    def none_left(*args: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(duties_module._thread, "start_new_thread", none_left)
    on_drain(named("one"))
    duties.callbacks.booted()
    memory.header.phase = Phase.DRAINING
    assert duties.callbacks.due()
    assert duties.left() == []
    assert "callbacks will not run" in caplog.text


# -- holds ----


def test_a_hold_counts_while_it_is_held(duties: Duties, memory: Memory) -> None:
    """Nested, twice of one name, and given back after an error; the slot's cell has the number."""
    with hold("one"), hold("one"):
        assert holds(memory) == 2
        assert [left.split(" for ")[0] for left in duties.left()] == ["hold 'one'"] * 2
    assert holds(memory) == 0

    def fails() -> None:
        with hold("two"):
            assert holds(memory) == 1
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert holds(memory) == 0
    assert duties.left() == []


def test_a_hold_decorates_a_function(duties: Duties, memory: Memory) -> None:
    """It is held for as long as each call lasts."""

    @hold("work")
    def work() -> int:
        return holds(memory)

    assert [work(), work(), holds(memory)] == [1, 1, 0]


def test_threads_count_together(duties: Duties, memory: Memory) -> None:
    """No store of one overwrites that of another: 8 threads, 2000 holds each, and the last count is
    right."""
    inside, go = threading.Barrier(9), threading.Event()

    def work(number: int) -> None:
        for _ in range(2000):
            with hold("short"):
                pass
        with hold(f"long {number}"):
            inside.wait(PATIENCE)
            go.wait(PATIENCE)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    inside.wait(PATIENCE)
    assert holds(memory) == 8
    go.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert holds(memory) == 0


@pytest.mark.filterwarnings(
    "ignore:.*multi-threaded, use of fork:DeprecationWarning"
)  # Python 3.12 and later
def test_a_child_of_the_worker_leaves_its_count_alone(duties: Duties, memory: Memory) -> None:
    """A process that the application forks: neither a hold of its own nor the end of an inherited
    one counts."""
    with hold("the parent's"):
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                with hold("the child's"):
                    during = holds(memory)
                duties.holds.give_back(object())
                os.write(writer, bytes([during, holds(memory)]))
            finally:
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            assert pipe.read() == b"\1\1"
        os.waitpid(pid, 0)
        assert holds(memory) == 1
    assert holds(memory) == 0


def test_many_holds_are_one_line(duties: Duties, caplog: pytest.LogCaptureFixture) -> None:
    """Twenty are named, the others counted; a name with a line break stays on its line; with none
    left, no line."""
    duties.tell_left("now")
    assert not caplog.records
    held = [duties.holds.take(f"upload\n{number}") for number in range(23)]
    duties.tell_left("now")
    (record,) = caplog.records
    line = record.getMessage()
    assert line.startswith(
        "gunicorn-grace: left now: 23 holds and 0 callbacks: hold 'upload\\n0' for 0.0 s, "
    )
    assert line.endswith(" and 3 more")
    assert "\n" not in line
    for token in held:
        duties.holds.give_back(token)


# -- streams ----


class Closable:
    """An iterable that counts how often it is closed."""

    def __init__(self, *items: int) -> None:
        self.items = iter(items)
        self.closed = 0

    def __iter__(self) -> Iterator[int]:
        return self.items

    def close(self) -> None:
        self.closed += 1


def test_a_stream_ends_with_its_iterable(duties: Duties) -> None:
    """While nothing is shut down it changes nothing."""
    assert list(until_terminating([1, 2, 3])) == [1, 2, 3]
    assert list(until_terminating(iter(()))) == []


@pytest.mark.parametrize("at", [Phase.LAME_DUCK, Phase.DRAINING])
def test_a_stream_ends_at_its_phase_and_closes_its_iterable(
    duties: Duties, memory: Memory, at: Phase
) -> None:
    """The item that was asked for before is not lost; then it ends, for good, and what it wraps is
    closed once."""
    inner = Closable(*range(9))
    stream = until_terminating(inner, at)
    assert next(stream) == 0
    memory.header.phase = Phase.LAME_DUCK
    if at is Phase.DRAINING:
        assert next(stream) == 1
        memory.header.phase = Phase.DRAINING
    assert inner.closed == 0
    assert list(stream) == []
    memory.header.phase = Phase.SERVING
    assert list(stream) == []
    assert inner.closed == 1


def test_an_item_that_comes_after_t0_is_not_lost(duties: Duties, memory: Memory) -> None:
    """A stream that waits at T0 sends what it has waited for."""

    def waits() -> Iterator[int]:
        memory.header.sigterm = 1
        yield 1
        yield 2

    assert list(until_terminating(waits())) == [1]


def test_a_stream_that_is_closed_before_its_first_item_closes_its_iterable() -> None:
    """A client that was gone at once: servers then call ``close`` alone. Twice is as once."""
    inner = Closable(1)
    stream: Any = until_terminating(inner)
    stream.close()
    stream.close()
    assert inner.closed == 1
    assert list(stream) == []


def test_an_asynchronous_stream_ends_at_t0_and_closes_its_iterable(
    duties: Duties, memory: Memory
) -> None:
    """The item that it waits for at T0 is not lost; one that begins later has none."""
    closed: list[int] = []

    async def numbers() -> AsyncIterator[int]:
        try:
            for number in itertools.count():
                if number == 2:
                    memory.header.sigterm = 1
                yield number
        finally:
            closed.append(1)

    async def collect() -> list[int]:
        return [number async for number in until_terminating(numbers())]

    assert asyncio.run(collect()) == [0, 1, 2]
    assert closed == [1]
    assert asyncio.run(collect()) == []


def test_an_asynchronous_stream_ends_with_its_iterable() -> None:
    """As in an instance that serves."""

    async def numbers() -> AsyncIterator[int]:
        yield 1
        yield 2

    async def collect() -> list[int]:
        stream = until_terminating(numbers())
        assert isinstance(stream, AsyncIterable), "Starlette looks for that"
        return [number async for number in stream]

    assert asyncio.run(collect()) == [1, 2]


def test_a_stream_ends_in_a_phase_of_the_shutdown() -> None:
    """Another phase is refused, with those that there are."""
    with pytest.raises(UsageError, match=r"at=SERVING\) must be LAME_DUCK or DRAINING"):
        until_terminating([], at=Phase.SERVING)


# -- outside gunicorn ----


def test_outside_gunicorn_all_is_as_in_serving() -> None:
    """Callbacks are registered and never run, holds do nothing, streams go to their end; nothing of
    gunicorn or Flask is imported, and no thread begins."""
    code = (
        "import sys, threading, gunicorn_grace as g\n"
        "g.on_lame_duck(sys.exit)\n"
        "g.on_drain(timeout=1)(sys.exit)\n"
        "with g.hold('work'):\n"
        "    assert list(g.until_terminating(range(3))) == [0, 1, 2]\n"
        "assert threading.active_count() == 1\n"
        "assert not {'gunicorn', 'flask', 'werkzeug'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_all_of_it_is_in_the_package() -> None:
    """``gunicorn_grace.hold`` and its like are what an application imports."""
    for name in ("on_lame_duck", "on_drain", "hold", "until_terminating", "UsageError"):
        assert name in gunicorn_grace.__all__
        assert hasattr(gunicorn_grace, name)
