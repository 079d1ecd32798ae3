"""gunicorn-grace: a gunicorn service shuts down without losing a request.

Importing this package imports neither gunicorn nor flask, so an application can ask it anything anywhere; outside
gunicorn every answer is that of an instance that serves.
"""

from __future__ import annotations

from typing import Any

from . import state as _state
from .application import hold, on_drain, on_lame_duck, until_terminating
from .errors import (
    ConfigurationError,
    GraceError,
    SettingError,
    StateError,
    TransitionError,
    UnknownSetting,
    UsageError,
)
from .phase import Phase

__version__ = "0.1.0"

__all__ = [
    "ConfigurationError",
    "GraceError",
    "Phase",
    "SettingError",
    "StateError",
    "TransitionError",
    "UnknownSetting",
    "UsageError",
    "hold",
    "install",
    "is_terminating",
    "on_drain",
    "on_lame_duck",
    "phase",
    "seconds_left",
    "until_terminating",
]


def install(namespace: Any) -> None:
    """Switch gunicorn-grace on, from a gunicorn configuration file: ``gunicorn_grace.install(globals())``.

    See :func:`gunicorn_grace.conf.install`.
    """
    from .conf import install as conf_install

    conf_install(namespace)


def phase() -> Phase:
    """The phase of the instance that this process belongs to. Arbiter, worker, or outside: then ``SERVING``."""
    return _state.current.phase() if _state.current else Phase.SERVING


def is_terminating() -> bool:
    """Whether the shutdown has begun. One read of shared memory: cheap enough for a loop."""
    return _state.current is not None and _state.current.is_terminating()


def seconds_left() -> float | None:
    """Seconds until this process has to be gone; ``None`` while no shutdown has begun or no deadline is known."""
    return _state.current.seconds_left() if _state.current else None
