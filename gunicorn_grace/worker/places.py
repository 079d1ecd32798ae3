"""Finds the place in the code that a request has reached, for the log line about a request that
does not end. Runs in workers.

The innermost frame of a stack is seldom useful. In a signal handler it is the handler itself, under
gevent it is the hub's switch, and in an asyncio task it is a wait in the loop. So the place is the
innermost frame outside the packages in :data:`MACHINERY`. If that frame belongs to a library, such
as a database driver, the innermost frame of the application is named too.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

MACHINERY = frozenset(
    {
        "anyio",
        "asyncio",
        "concurrent",
        "eventlet",
        "gevent",
        "greenlet",
        "gunicorn",
        "gunicorn_grace",
        "selectors",
        "threading",
        "tornado",
        "uvicorn",
        "uvicorn_worker",
        "uvloop",
    }
)
"""Packages that run an application and wait for it. A frame of theirs is named only if the stack
has no other."""

LONGEST = 1000
"""The largest number of frames of a stack, and of coroutines that await each other, that are
searched."""

UNKNOWN = "an unknown place"

_STANDARD_LIBRARY = (os.path.join(os.path.dirname(os.__file__), ""), "<frozen ")
_PACKAGES = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")


def place_of(owner: Any, package: str = "") -> str:
    """Return the place that the code of a request has reached: file, line and function. Returns
    :data:`UNKNOWN` if it cannot be found.

    :param owner: what serves the request: the thread's number, the greenlet, or the asyncio task.
    :param package: the package of the application, which may be installed among the libraries.
    """
    try:
        return _place(list(_frames_of(owner)), package)
    except Exception:
        # Another thread goes on running, and may change its stack during the search.
        return UNKNOWN


def _place(frames: list[FrameType], package: str) -> str:
    """Name the place of a stack, innermost frame first."""
    frames = _of_the_worker(frames)
    outside = [frame for frame in frames if _package(frame) not in MACHINERY]
    if not outside:
        # gunicorn reads a request or sends a response.
        inside = [frame for frame in frames if _package(frame) == "gunicorn"] or frames
        return _named(inside[0]) if inside else UNKNOWN
    place = _named(outside[0])
    if _is_library(outside[0], package):
        callers = (frame for frame in outside if not _is_library(frame, package))
        caller = next(callers, None)
        if caller is not None:
            return f"{place}, called from {_named(caller)}"
    return place


def _of_the_worker(frames: list[FrameType]) -> list[FrameType]:
    """Return the frames up to gunicorn's outermost one. The others only show how gunicorn was
    started."""
    outermost = [n for n, frame in enumerate(frames) if _package(frame) == "gunicorn"][-1:]
    return frames[: outermost[0] + 1] if outermost else frames


def _package(frame: FrameType) -> str:
    name = frame.f_globals.get("__name__")
    return name.partition(".")[0] if isinstance(name, str) else ""


def _is_library(frame: FrameType, package: str) -> bool:
    if package and _package(frame) == package:
        return False
    file = frame.f_code.co_filename
    return file.startswith(_STANDARD_LIBRARY) or any(name in file for name in _PACKAGES)


def _named(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"


def _frames_of(owner: Any) -> Iterator[FrameType]:
    if isinstance(owner, int):
        return _outwards(sys._current_frames().get(owner))
    if hasattr(owner, "get_coro"):
        return _frames_of_task(owner)
    frame = getattr(owner, "gr_frame", None)
    if frame is None and owner is current_greenlet():
        # A signal handler has interrupted this greenlet, and a running greenlet has no gr_frame.
        frame = sys._getframe()
    return _outwards(frame)


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    for _ in range(LONGEST):
        if frame is None:
            return
        yield frame
        frame = frame.f_back


def current_greenlet() -> Any:
    """Return the running greenlet; ``None`` if nothing has imported greenlet."""
    greenlet: Any = sys.modules.get("greenlet")
    return greenlet.getcurrent() if greenlet is not None else None


# -- asyncio ----


def _frames_of_task(task: Any) -> Iterator[FrameType]:
    """Return the frames of an asyncio task and of the coroutines that it waits for, innermost
    first."""
    if getattr(task.get_coro(), "cr_running", False):
        # It does not wait. It runs in the thread of the loop, which is the main thread.
        return _outwards(sys._current_frames().get(threading.main_thread().ident or 0))
    frames: list[FrameType] = []
    inner = task.get_coro()
    for _ in range(LONGEST):
        frame = _read(inner, "frame")
        if frame is not None:
            frames.append(frame)
        inner = _read(inner, "await", "yieldfrom") or _behind(inner, frames[-1:])
        if inner is None:
            break
    thread = _thread_behind(frames[-1]) if frames else None
    if thread is not None:
        frames += reversed(list(_outwards(sys._current_frames().get(thread.ident or 0))))
    return iter(frames[::-1])


def _read(inner: Any, *names: str) -> Any:
    """Return the first of these attributes that a coroutine, a generator or an async generator has.

    :param names: the names without their prefix, such as ``frame`` for ``cr_frame``.
    """
    for prefix in ("cr", "gi", "ag"):
        for name in names:
            value = getattr(inner, f"{prefix}_{name}", None)
            if value is not None:
                return value
    return None


def _behind(inner: Any, last: list[FrameType]) -> Any:
    """Return the coroutine that runs behind an awaitable which does not name it; ``None`` if there
    is none. The awaitable may be a task, a ``gather`` (the first task that is not done), an
    ``asend`` (its generator), or, before Python 3.12, a ``wait_for`` (its task)."""
    found = [inner, *gc.get_referents(inner)] if _read(inner, "frame") is None else []
    found += [frame.f_locals.get("fut") for frame in last if frame.f_code.co_name == "wait_for"]
    for one in found:
        for child in getattr(one, "_children", None) or [one]:
            if hasattr(child, "get_coro") and not child.done():
                return child.get_coro()
        if one is not inner and _read(one, "frame") is not None:
            return one
    return None


def _thread_behind(frame: FrameType) -> threading.Thread | None:
    """Return the thread that a coroutine of anyio waits for; ``None`` if it waits for none. anyio
    runs the plain functions of Starlette and FastAPI in threads."""
    worker = frame.f_locals.get("worker") if _package(frame) == "anyio" else None
    return worker if isinstance(worker, threading.Thread) else None


# -- what keeps a worker without a request ----


def what_keeps(package: str = "") -> list[str]:
    """Return the names of the threads and greenlets that keep this process from ending, each with
    its place.

    :param package: the package of the application.
    """
    stacks = sys._current_frames()
    main = threading.main_thread()
    kept: list[str] = []

    def note(name: str, frame: FrameType | None, *, is_only_a_handler: bool) -> None:
        frames = _of_the_worker(list(_outwards(frame)))
        is_busy = any(_package(frame) not in MACHINERY for frame in frames)
        if is_busy or not is_only_a_handler:
            kept.append(f"{name} at {_place(frames, package)}")

    for thread in threading.enumerate():
        if thread is not main and not thread.daemon and thread.ident in stacks:
            # An idle thread of an executor ends by itself at the exit.
            idles = _package(stacks[thread.ident]) == "concurrent"
            note(f"thread {thread.name!r}", stacks[thread.ident], is_only_a_handler=idles)
    for greenlet in _greenlets():
        note(f"greenlet {_name(greenlet)!r}", greenlet.gr_frame, is_only_a_handler=True)
    if main.ident in stacks:
        note("the main thread", stacks[main.ident], is_only_a_handler=True)
    return kept


def _greenlets() -> list[Any]:
    """Return the greenlets in which gunicorn handles a connection."""
    module: Any = sys.modules.get("greenlet")
    if module is None:
        return []
    found = [thing for thing in gc.get_objects() if isinstance(thing, module.greenlet)]
    return [
        greenlet
        for greenlet in found
        if greenlet.gr_frame is not None
        and any(_package(frame) == "gunicorn" for frame in _outwards(greenlet.gr_frame))
        and greenlet.parent is not None
    ]


def _name(greenlet: Any) -> str:
    return str(getattr(greenlet, "name", "") or type(greenlet).__name__)
