"""Act as soon as any code has imported a certain module.

A program may import gunicorn after this package or before it. If this package imported gunicorn,
every application would import a web server. Every Python below ``gunicorn-grace run`` also executes
this file by itself, without its package (see ``gunicorn_grace/boot``). So the file imports only the
standard library, and as little of it as possible.

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
    """Call ``action`` once the module has been executed, or at once if it already has been.

    An error in the action is printed in one line and not raised, because the code that imports the
    module is not to blame for it.

    :param name: the full name of the module.
    :param action: a function without parameters.
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
    """A finder that lets the other finders find the module, and has the action run after the
    module's execution."""

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
            return None  # Another thread has just removed it, and does the rest.
        import importlib.util

        spec = importlib.util.find_spec(name)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = _Loader(spec.loader, self._action)  # type: ignore[assignment]
        return spec


class _Loader:
    """Another loader, with the action after its work."""

    def __init__(self, loader: Any, action: Callable[[], object]) -> None:
        self._loader = loader
        self._action = action

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        # The module must look as it would without us.
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        _attempt(module.__name__, self._action)
