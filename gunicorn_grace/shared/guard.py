"""Fail safe: an error inside the plugin is logged once, and gunicorn goes on without that part.

Runs in any process.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

from ..errors import ConfigurationError

_told: set[str] = set()


def tell_once(name: str, process: Any) -> None:
    """Log the first failure of a part of the plugin in this process, with its traceback.

    :param name: the part that failed: a hook, or a part by its name in the docs.
    :param process: gunicorn's arbiter or worker, which owns the log.
    """
    if name not in _told:
        _told.add(name)
        with contextlib.suppress(Exception):
            process.log.exception("gunicorn-grace: the %s hook failed; gunicorn goes on", name)


def guarded(hook: Callable[..., None]) -> Callable[..., None]:
    """Wrap one of the plugin's hooks so that it raises nothing but :exc:`ConfigurationError`.

    After another exception gunicorn would halt (``post_fork``) or answer 500 (``pre_request``). A
    ``ConfigurationError`` passes, because the user's settings contradict each other and gunicorn
    must not start.
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
