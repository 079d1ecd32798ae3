"""Finding the gunicorn application or the arbiter that is further up the call stack.

gunicorn executes configuration files and hooks without telling them which application or arbiter
does so. Runs in the arbiter, and in a worker if the application's code calls it.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

_LOADS = ("do_load_config", "__init__", "reload")
"""The methods of ``gunicorn.app.base.BaseApplication`` that load a configuration (22.0 to 27.0). If
a subclass overrides the first one, the others are still on the stack."""


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def loading_application() -> tuple[Any, FrameType] | None:
    """Return the application that is loading its configuration, and gunicorn's innermost frame in
    it; ``None`` if no application is.

    ``BaseApplication.run`` is on the stack of the arbiter and of every worker, but does not load a
    configuration, so it does not count.
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
    """Return the arbiter object on the call stack; ``None`` if there is none. In a worker that is
    the inherited copy of the arbiter."""
    for frame in _frames():
        if frame.f_globals.get("__name__") == "gunicorn.arbiter":
            found = frame.f_locals.get("self")
            if hasattr(found, "WORKERS"):
                return found
    return None


def has_plugin(arbiter: Any) -> bool:
    """Whether the plugin has been started in the arbiter, be it on or switched off."""
    return hasattr(arbiter, "grace") or hasattr(arbiter, "grace_off")


def has_started(arbiter: Any) -> bool:
    """Whether the arbiter has installed its signal handlers. The plugin can then no longer be
    started in it. In a worker this is always true."""
    pid = getattr(arbiter, "pid", None)
    return pid is not None and (
        pid != os.getpid() or signal.getsignal(signal.SIGTERM) == arbiter.signal
    )
