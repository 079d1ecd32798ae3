"""gunicorn-grace: a gunicorn service shuts down without losing a request.

Importing this package imports neither gunicorn nor flask, so an application can use it in any
process. Outside gunicorn every function answers as in an instance that serves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from .application import hold, on_drain, on_lame_duck, until_terminating
from .errors import (
    CheckError,
    ConfigurationError,
    GraceError,
    SettingError,
    StateError,
    TransitionError,
    UnknownSetting,
    UsageError,
)
from .shared import memory as _memory
from .shared.imports import when_imported as _when_imported
from .shared.phase import Phase
from .shared.version import __version__ as __version__

if TYPE_CHECKING:
    from .shared.phase import Kind

_Function = TypeVar("_Function", bound=Callable[[], object])

__all__ = [
    "CheckError",
    "ConfigurationError",
    "GraceError",
    "Phase",
    "SettingError",
    "StateError",
    "TransitionError",
    "UnknownSetting",
    "UsageError",
    "check",
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
    """Enable gunicorn-grace from a gunicorn configuration file:
    ``gunicorn_grace.install(globals())``.

    Runs in the arbiter. See :func:`gunicorn_grace.conf.install`.

    :param namespace: the file's ``globals()``, or a gunicorn ``Config``.
    :raises ConfigurationError: gunicorn is not loading a configuration, and ``namespace`` is not a
        ``Config``.
    :raises SettingError: an environment variable has an invalid value.
    """
    from .conf import install as conf_install

    conf_install(namespace)


def check(
    name: str, *, kind: Kind | str = "readiness", timeout: float = 0.8, ttl: float = 5.0
) -> Callable[[_Function], _Function]:
    """Register a function as a check.

    The check passes by returning, and fails by raising or by returning ``False``::

        @gunicorn_grace.check("database", timeout=0.5, ttl=5.0)
        def database():
            engine.connect().close()

    The function takes no parameters. It runs in a thread of a worker, one run at a time. Register
    it where the application is built; this also works outside gunicorn.

    :param name: the name of the check in probes: letters, digits, dots, underscores and hyphens.
    :param kind: the kind of probe: ``"readiness"``, ``"liveness"`` or ``"startup"``.
    :param timeout: seconds after which the check has failed; a later result is ignored. The default
        is below the 1 s that a Kubernetes probe waits by default (``timeoutSeconds``), so that the
        probe gets an answer that names the check.
    :param ttl: how many seconds a result is kept, including a failure.
    :returns: a decorator that returns the function unchanged.
    :raises CheckError: an argument is invalid, or another function has this name.
    """
    from .probes.checks import registry

    def decorate(function: _Function) -> _Function:
        registry.register(name, function, kind=kind, timeout=timeout, ttl=ttl)
        return function

    return decorate


def phase() -> Phase:
    """Return the phase of the instance that this process belongs to. Runs in the arbiter, in
    workers and in their forked children. Any other process gets ``SERVING``."""
    return _memory.attached.phase() if _memory.attached else Phase.SERVING


def is_terminating() -> bool:
    """Whether the shutdown has begun. The call only reads shared memory, so it is cheap enough for
    a loop. Runs in any process; outside gunicorn it is always false."""
    return _memory.attached is not None and _memory.attached.is_terminating()


def seconds_left() -> float | None:
    """Return the seconds until the deadline, by which this process must have exited; 0 after it.

    ``None`` before a shutdown, and in a shutdown without a known deadline. Runs in any process;
    outside gunicorn it is always ``None``.
    """
    return _memory.attached.seconds_left() if _memory.attached else None


def _adopt(cfg: Any) -> None:
    from .hooks import adopt

    adopt(cfg)


def _watch() -> None:
    from .arbiter.embedding import watch

    watch(_adopt)


_when_imported("gunicorn.app.base", _watch)
