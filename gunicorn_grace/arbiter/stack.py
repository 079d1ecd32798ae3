"""Who called: the gunicorn application or the arbiter that is further up the stack.

Configuration files and hooks are executed somewhere below gunicorn, and are not told by which
application or arbiter. Runs in the arbiter, and in a worker for code of the application's.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

_LOADS = ("do_load_config", "__init__", "reload")
"""The methods of ``gunicorn.app.base.BaseApplication`` that load a configuration (22.0 to 27.0). A
subclass may override the first."""


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def loading_application() -> tuple[Any, FrameType] | None:
    """Return the application that is loading its configuration, and gunicorn's innermost frame in
    it; ``None`` if none is.

    ``BaseApplication.run`` is on the stack of the arbiter and of every worker, and loads nothing.
    """
    innermost: FrameType | None = None
    for frame in _frames():
        module = frame.f_globals.get("__name__")
        if module == "gunicorn.arbiter":
            return None
        if module == "gunicorn.app.base":
            app = frame.f_locals.get("self")
            if getattr(app, "cfg", None) is not None:
                innermost = innermost or frame
                if frame.f_code.co_name in _LOADS:
                    return app, innermost
    return None


def running_arbiter() -> Any:
    """Return the arbiter below which this code runs, in its process or in a worker that it has
    forked; ``None`` if there is none."""
    for frame in _frames():
        if frame.f_globals.get("__name__") == "gunicorn.arbiter":
            found = frame.f_locals.get("self")
            if hasattr(found, "WORKERS"):
                return found
    return None


def has_plugin(arbiter: Any) -> bool:
    """Whether the plugin is in the arbiter, on or switched off."""
    return hasattr(arbiter, "grace") or hasattr(arbiter, "grace_off")


def has_started(arbiter: Any) -> bool:
    """Whether the arbiter has installed its signal handlers, so that the plugin can no longer take
    its place in it. A worker's arbiter has started."""
    pid = getattr(arbiter, "pid", None)
    return pid is not None and (
        pid != os.getpid() or signal.getsignal(signal.SIGTERM) == arbiter.signal
    )
