"""Doing something as soon as a module has been imported, by whoever imports it.

A program may import gunicorn after this package or before it, and importing it from here would make
every application import a web server. This file is also read by itself, without its package, in
every Python below ``gunicorn-grace run`` (see ``gunicorn_grace/boot``). So it imports the standard
library alone, and as little of that as it can.

Runs in any process.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any


def when_imported(name: str, action: Callable[[], object]) -> None:
    """Call ``action`` once the module has been executed; now, if it already has.

    An error in the action is printed in one line, because whoever imports that module has nothing
    to do with it.

    :param name: the full name of the module.
    :param action: takes nothing.
    """
    if name in sys.modules:
        _attempt(name, action)
    else:
        sys.meta_path.insert(0, _Finder(name, action))


def _attempt(name: str, action: Callable[[], object]) -> None:
    try:
        action()
    except Exception as error:
        print(
            f"gunicorn-grace: cannot take part in {name}: {type(error).__name__}: {error}",
            file=sys.stderr,
            flush=True,
        )


class _Finder:
    """A finder that finds nothing by itself: it lets the others find the module, and puts the
    action behind its execution."""

    def __init__(self, name: str, action: Callable[[], object]) -> None:
        self._name = name
        self._action = action

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self._name:
            return None
        # It has to go first, because the search below asks all finders again.
        try:
            sys.meta_path.remove(self)
        except ValueError:
            return None  # Another thread is at it.
        import importlib.util

        spec = importlib.util.find_spec(name)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = _Loader(spec.loader, self._action)  # type: ignore[assignment]
        return spec


class _Loader:
    """Somebody else's loader, and the action after it."""

    def __init__(self, loader: Any, action: Callable[[], object]) -> None:
        self._loader = loader
        self._action = action

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        # From here on the module is what it would be without us.
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        _attempt(module.__name__, self._action)
