"""Where code is: the place that a person looks for, not the machinery that waits for it."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from gunicorn_grace.worker import places
from gunicorn_grace.worker.places import UNKNOWN, place_of, what_keeps

pytestmark = pytest.mark.once


def running(target: Callable[[], object], name: str = "worker", **options: Any) -> threading.Thread:
    thread = threading.Thread(target=target, name=name, **options)
    thread.start()
    return thread


def test_a_wait_is_named_by_who_waits() -> None:
    """``threading`` is machinery: the place is the line of the application."""
    go_on = threading.Event()

    def view() -> None:
        go_on.wait()

    thread = running(view)
    assert wait_for(thread, "test_places.py") == in_(view)
    go_on.set()
    thread.join()


def wait_for(thread: threading.Thread, part: str) -> str:
    """The place of a thread, once it is at some part of the code."""
    return until(lambda: place_of(thread.ident), part)


def until(look: Callable[[], str], part: str) -> str:
    deadline = time.monotonic() + 20
    while part not in (place := look()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return place


def in_(function: Any, line: int = 1) -> str:
    code = function.__code__
    return f"{code.co_filename}:{code.co_firstlineno + line} in {code.co_name}"


def test_a_library_is_named_with_the_line_that_called_it() -> None:
    """The driver's place says what it waits for, and the application's who wanted it. A package
    that is the application counts as that, wherever it is installed."""
    got: queue.Queue[int] = queue.Queue()

    def view() -> None:
        got.get()

    thread = running(view)
    place = wait_for(thread, "queue.py")
    assert place.endswith(f", called from {in_(view)}")
    assert "queue.py:" in place.partition(",")[0]
    assert thread.ident is not None
    assert "called from" not in place_of(thread.ident, package="queue")
    got.put(1)
    thread.join()


def test_without_a_stack_it_is_unknown() -> None:
    """A thread that has ended, a greenlet that has not begun."""
    assert place_of(-1) == place_of(SimpleNamespace(gr_frame=None)) == UNKNOWN


async def innermost() -> None:
    await asyncio.sleep(60)


async def numbers() -> AsyncIterator[int]:
    await innermost()
    yield 1


async def plainly() -> None:
    await innermost()


async def through_a_generator() -> None:
    async for _ in numbers():
        pass


async def with_a_limit() -> None:
    await asyncio.wait_for(innermost(), 60)


async def with_others() -> None:
    await asyncio.gather(asyncio.sleep(0), plainly())


async def in_a_task() -> None:
    await asyncio.ensure_future(plainly())


@pytest.mark.parametrize(
    "view",
    [plainly, through_a_generator, with_a_limit, with_others, in_a_task],
    ids=lambda view: str(view.__name__),
)
def test_a_task_is_where_its_innermost_coroutine_waits(view: Callable[[], Awaitable[None]]) -> None:
    """Through async generators, tasks and what gathers them; asyncio's own waits are left out."""

    async def main() -> str:
        task = asyncio.ensure_future(view())
        await asyncio.sleep(0.05)
        place = place_of(task)
        task.cancel()
        return place

    assert asyncio.run(main()) == in_(innermost)


def test_a_task_that_blocks_its_loop_is_where_the_thread_is() -> None:
    """A coroutine that runs does not wait for anything: the stack of the loop's thread is its."""
    found = []
    go_on = threading.Event()

    def block() -> None:
        task = asyncio.current_task()
        running(lambda: look(task), daemon=True)
        go_on.wait()

    def look(task: Any) -> None:
        found.append(until(lambda: place_of(task), "block"))
        go_on.set()

    async def view() -> None:
        block()

    asyncio.run(view())
    assert found == [in_(block, 3)]


def test_a_greenlet_is_where_it_waits_or_runs() -> None:
    """One that waits has its own stack. One that runs is the stack that asks: a signal handler."""
    greenlet = pytest.importorskip("greenlet")
    found: list[str] = []

    def view() -> None:
        greenlet.getcurrent().parent.switch()
        found.append(place_of(greenlet.getcurrent()))

    served = greenlet.greenlet(view)
    served.switch()
    assert place_of(served) == in_(view)
    served.switch()
    assert found == [in_(view, 2)]


def test_threads_that_keep_a_process_are_named() -> None:
    """With the place where they are; not daemons, which the interpreter does not wait for, and no
    idle thread of an executor."""
    go_on = threading.Event()

    def upload() -> None:
        go_on.wait()

    kept, daemon = running(upload, "uploader"), running(upload, "daemon", daemon=True)
    wait_for(kept, "test_places.py")
    named = what_keeps()
    assert f"thread 'uploader' at {in_(upload)}" in named
    assert not any("daemon" in name for name in named)
    go_on.set()
    kept.join()
    daemon.join()


def test_an_error_in_the_search_is_no_error() -> None:
    """The log of a worker that is about to go must not fail for a stack that changes."""

    class Broken:
        @property
        def gr_frame(self) -> Any:
            raise RuntimeError("gone")

    assert place_of(Broken()) == UNKNOWN
    assert places.UNKNOWN == UNKNOWN
