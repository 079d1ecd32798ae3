"""Fail safe: whatever fails in the plugin is logged once, and gunicorn goes on as it would without it.

Any process.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

from ..errors import ConfigurationError

_told: set[str] = set()


def tell_once(name: str, process: Any) -> None:
    """Log that a part of the plugin failed, with its traceback, the first time in this process.

    :param name: what failed: a hook, or a part by its name in the docs.
    :param process: gunicorn's arbiter or worker, which has the log.
    """
    if name not in _told:
        _told.add(name)
        with contextlib.suppress(Exception):
            process.log.exception("gunicorn-grace: its %s hook failed; gunicorn goes on", name)


def guarded(hook: Callable[..., None]) -> Callable[..., None]:
    """Let nothing out of a hook of ours: gunicorn would halt (``post_fork``), or answer 500
    (``pre_request``).

    :raises ConfigurationError: the hook raised it: the user's settings do not go together.
    """

    @functools.wraps(hook)
    def wrapped(*args: Any) -> None:
        try:
            hook(*args)
        except ConfigurationError:
            raise
        except Exception:
            tell_once(hook.__name__, args[0])

    return wrapped
