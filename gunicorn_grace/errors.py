"""All exceptions of this package, with a common base class.

Catching :class:`GraceError` catches every exception of the package. Each exception keeps the facts
as attributes. Its message is one line with the value, the limit and the remedy.
"""

from __future__ import annotations

from typing import Any


class GraceError(Exception):
    """Base class of all exceptions raised by gunicorn-grace."""


class SettingError(GraceError, ValueError):
    """A setting has an invalid value.

    :ivar name: the setting, or the environment variable that gave the value.
    :ivar value: the value as it was given.
    :param problem: the fault, including the limit.
    :param fix: the remedy.
    """

    def __init__(self, name: str, value: Any, problem: str, fix: str) -> None:
        super().__init__(f"{name} = {value!r} {problem}: {fix}")
        self.name: str = name
        self.value = value


class UnknownSetting(GraceError, AttributeError):
    """A configuration file assigns a ``grace_*`` name that does not exist.

    It is also an ``AttributeError``, because gunicorn uses ``hasattr`` to look for names in its
    configuration.

    :ivar name: the unknown name.
    :ivar nearest: the most similar setting; ``None`` if there is no similar one.
    """

    def __init__(self, name: str, nearest: str | None) -> None:
        hint = (
            f"did you mean {nearest}?"
            if nearest
            else "see docs/reference/settings.md for the list of settings"
        )
        super().__init__(f"unknown setting {name}: {hint}")
        self.name: str = name
        self.nearest = nearest


class ConfigurationError(GraceError, RuntimeError):
    """Settings that are valid one by one contradict each other.

    It is also a ``RuntimeError``, because gunicorn prints those in one line and exits
    (``BaseApplication.run``, 22.0 to 27.0).
    """


class CheckError(GraceError, ValueError):
    """A check is registered with an invalid name, function or number."""


class TransitionError(GraceError):
    """The transition table does not contain the wanted transition.

    :ivar current: the current phase.
    :ivar wanted: the phase that was asked for.
    """

    def __init__(self, current: Any, wanted: Any) -> None:
        super().__init__(f"no transition from {current!s} to {wanted!s}")
        self.current = current
        self.wanted = wanted


class StateError(GraceError):
    """The shared memory is missing, does not belong to gunicorn-grace, or has another layout."""


class UsageError(GraceError, RuntimeError):
    """An application or a test calls the package with an invalid argument or in the wrong
    place."""
