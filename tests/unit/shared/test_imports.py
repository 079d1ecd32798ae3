"""What is done when somebody imports a module: once, after the module, and without a trace."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest

from gunicorn_grace.shared.imports import when_imported

pytestmark = pytest.mark.once

NAME = "a_module_to_wait_for"


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module that nobody has imported."""
    path = tmp_path / f"{NAME}.py"
    path.write_text("done = True\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    finders = list(sys.meta_path)
    yield path
    sys.modules.pop(NAME, None)
    sys.meta_path[:] = finders


def test_the_action_comes_after_the_module_and_once() -> None:
    """It sees the whole module. The module keeps its own loader, no finder is left, and executing
    it again does nothing."""
    seen: list[bool] = []
    finders = list(sys.meta_path)
    when_imported(NAME, lambda: seen.append(sys.modules[NAME].done))
    assert seen == []
    made = importlib.import_module(NAME)
    assert seen == [True]
    assert isinstance(made.__loader__, SourceFileLoader)
    assert made.__spec__ is not None
    assert made.__spec__.loader is made.__loader__
    assert sys.meta_path == finders
    importlib.reload(made)
    assert seen == [True]


def test_of_a_module_that_is_there_the_action_comes_now() -> None:
    """A program may import gunicorn first, or this package."""
    importlib.import_module(NAME)
    seen: list[str] = []
    when_imported(NAME, lambda: seen.append("now"))
    assert seen == ["now"]


def test_two_may_wait_for_the_same_module() -> None:
    """Both are served: this package waits, and gunicorn-grace run does."""
    seen: list[int] = []
    when_imported(NAME, lambda: seen.append(1))
    when_imported(NAME, lambda: seen.append(2))
    made = importlib.import_module(NAME)
    assert sorted(seen) == [1, 2]
    assert isinstance(made.__loader__, SourceFileLoader)


def test_an_action_that_fails_costs_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """The one who imports the module gets it all the same."""
    when_imported(NAME, lambda: 1 / 0)
    assert importlib.import_module(NAME).done
    assert capsys.readouterr().err.splitlines() == [
        f"gunicorn-grace: cannot take part in {NAME}: ZeroDivisionError: division by zero"
    ]


def test_a_module_that_is_missing_or_fails_raises_what_it_raises(module: Path) -> None:
    """And the action is not called."""
    seen: list[int] = []
    when_imported("nowhere_at_all", lambda: seen.append(1))
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("nowhere_at_all")
    module.write_text("raise LookupError('mine')\n")
    when_imported(NAME, lambda: seen.append(1))
    with pytest.raises(LookupError, match="mine"):
        importlib.import_module(NAME)
    assert seen == []
