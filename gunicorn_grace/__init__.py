"""gunicorn-grace: a gunicorn service shuts down without losing a request.

Importing this package imports neither gunicorn nor flask, so an application can ask it anything
anywhere; outside gunicorn every answer is that of an instance that serves.
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
    """Switch gunicorn-grace on, from a gunicorn configuration file:
    ``gunicorn_grace.install(globals())``.

    See :func:`gunicorn_grace.conf.install`.
    """
    from .conf import install as conf_install

    conf_install(namespace)


def check(
    name: str, *, kind: Kind | str = "readiness", timeout: float = 0.8, ttl: float = 5.0
) -> Callable[[_Function], _Function]:
    """Register a function as a check: it passes by returning, and fails by raising or by returning ``False``::

        @gunicorn_grace.check("database", timeout=0.5, ttl=5.0)
        def database():
            engine.connect().close()

    It takes no parameters, and runs in a thread of a worker, never twice at once. Call this
    wherever the application is built; outside gunicorn it registers all the same.

    :param name: what probes call it: letters, digits, dots, underscores and hyphens.
    :param kind: which probe it belongs to: ``"readiness"``, ``"liveness"`` or ``"startup"``.
    :param timeout: seconds after which it has failed, whatever it still returns. The default is
        below the 1 s that a Kubernetes probe waits by default (``timeoutSeconds``), so that the
        probe gets an answer that names the check.
    :param ttl: seconds that its result is kept, a failure too.
    :raises CheckError: one of these cannot be, or another function has the name.
    """
    from .probes.checks import registry

    def decorate(function: _Function) -> _Function:
        registry.register(name, function, kind=kind, timeout=timeout, ttl=ttl)
        return function

    return decorate


def phase() -> Phase:
    """The phase of the instance that this process belongs to. Arbiter, worker, or outside: then
    ``SERVING``."""
    return _memory.attached.phase() if _memory.attached else Phase.SERVING


def is_terminating() -> bool:
    """Whether the shutdown has begun. One read of shared memory: cheap enough for a loop."""
    return _memory.attached is not None and _memory.attached.is_terminating()


def seconds_left() -> float | None:
    """Seconds until this process has to be gone; ``None`` while no shutdown has begun or no
    deadline is known."""
    return _memory.attached.seconds_left() if _memory.attached else None
