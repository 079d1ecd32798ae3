"""Every exception of this package, under one root.

A caller can catch :class:`GraceError` and be sure to have caught all that is ours; each exception
keeps its evidence as attributes, and its message holds the value, the limit and the way out, in one
line.
"""

from __future__ import annotations

from typing import Any


class GraceError(Exception):
    """Root of all exceptions raised by gunicorn-grace."""


class SettingError(GraceError, ValueError):
    """A setting has a value that it cannot have.

    :param name: the setting, or the environment variable that gave the value.
    :param value: the value as it was given.
    :param problem: what is wrong, the limit included.
    :param fix: what to write instead.
    """

    def __init__(self, name: str, value: Any, problem: str, fix: str) -> None:
        super().__init__(f"{name} = {value!r} {problem}: {fix}")
        self.name = name
        self.value = value


class UnknownSetting(GraceError, AttributeError):
    """A configuration file assigns a ``grace_*`` name that no setting has.

    An ``AttributeError`` as well, because gunicorn asks its configuration for names with
    ``hasattr``.
    """

    def __init__(self, name: str, nearest: str | None) -> None:
        hint = (
            f"did you mean {nearest}?"
            if nearest
            else "see docs/settings.md for the names there are"
        )
        super().__init__(f"unknown setting {name}: {hint}")
        self.name = name
        self.nearest = nearest


class ConfigurationError(GraceError, RuntimeError):
    """Settings that are fine one by one do not go together.

    A ``RuntimeError`` as well: gunicorn prints those in one line and ends (``BaseApplication.run``,
    22.0 to 27.0).
    """


class CheckError(GraceError, ValueError):
    """A check that is registered has a name, a function or a number that it cannot have."""


class TransitionError(GraceError):
    """The lifecycle was asked for a step that its table does not have."""

    def __init__(self, current: Any, wanted: Any) -> None:
        super().__init__(f"no transition from {current!s} to {wanted!s}")
        self.current = current
        self.wanted = wanted


class StateError(GraceError):
    """The shared memory is not there, is not ours, or is of another layout."""


class UsageError(GraceError, RuntimeError):
    """An application or a test calls something of ours with what it cannot take, or where it cannot
    be."""
