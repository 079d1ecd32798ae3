"""DESIGN section 4: who may import whom, asserted from the imports themselves."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

import gunicorn_grace

pytestmark = pytest.mark.once

ROOT = Path(gunicorn_grace.__file__).parent
PACKAGE = "gunicorn_grace"

FLOORS = (
    {"errors", "phase"},
    {"settings", "state", "application"},
    {"lifecycle", "checks", "trigger", "metrics", "report"},
    {
        "listener",
        "probes",
        "connections",
        "worker_classes",
        "worker",
        "arbiter",
        "notify",
        "probe_port",
        "responder",
    },
    {"conf", "wsgi", "asgi", "flask", "prometheus"},
    {"operate", "rehearsal", "cli"},
)
FLOOR = {module: number for number, modules in enumerate(FLOORS) for module in modules}
FACADE = PACKAGE
"""``__init__``: beside the ladder. What it imports on import is of floor 0 or 1."""

BESIDE = {"testing", "pytest_plugin", "__main__"}
"""Beside the ladder as well: no module may import them."""


class Import(NamedTuple):
    target: str
    """A module of ours by its full name, or the top level name of somebody else's."""
    deferred: bool
    """Whether it is executed when a function is called, not when the module is imported."""


FILES = {
    ".".join((PACKAGE, *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for path in sorted(ROOT.rglob("*.py"))
}


def is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def imports(module: str, node: ast.AST, deferred: bool = False) -> Iterator[Import]:
    """Every import below a node, but for those that only a type checker sees."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and is_type_checking(child.test):
            for other in child.orelse:
                yield from imports(module, ast.Module([other], []), deferred)
        elif isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(resolve(alias.name), deferred)
        elif isinstance(child, ast.ImportFrom):
            base = child.module or ""
            if child.level:
                parts = (
                    module.split(".")
                    if FILES[module].name == "__init__.py"
                    else module.split(".")[:-1]
                )
                base = ".".join(
                    [*parts[: len(parts) - child.level + 1], *filter(None, [child.module])]
                )
            for alias in child.names:
                yield Import(resolve(f"{base}.{alias.name}", base), deferred)
        else:
            inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from imports(module, child, deferred or inside)


def resolve(name: str, base: str | None = None) -> str:
    if name.split(".")[0] != PACKAGE:
        return name.split(".")[0]
    return name if name in FILES or base is None else base


def unit(module: str) -> str:
    """The rung of the ladder that a module is: ``gunicorn_grace.rehearsal.load`` is
    ``rehearsal``."""
    return module.split(".")[1] if "." in module else FACADE


IMPORTS = {
    module: set(imports(module, ast.parse(path.read_text()))) for module, path in FILES.items()
}
OURS = {
    module: {i.target for i in found if i.target.split(".")[0] == PACKAGE} - {module}
    for module, found in IMPORTS.items()
}


def test_every_module_has_a_floor() -> None:
    """No module stands outside the ladder by accident."""
    assert {unit(module) for module in FILES} - {FACADE} - BESIDE <= set(FLOOR)


@pytest.mark.parametrize("module", [m for m in FILES if m != FACADE and unit(m) not in BESIDE])
def test_a_module_imports_only_from_its_own_floor_or_below(module: str) -> None:
    """Imports go down, those within functions too; the package itself is good for its version
    alone."""
    above = {
        target
        for target in OURS[module] - {FACADE}
        if unit(target) in BESIDE or FLOOR[unit(target)] > FLOOR[unit(module)]
    }
    assert not above
    tree = ast.walk(ast.parse(FILES[module].read_text()))
    relative = [
        node
        for node in tree
        if isinstance(node, ast.ImportFrom) and node.level and node.module is None
    ]
    names = {alias.name for node in relative for alias in node.names}
    assert {name for name in names if not any(file.endswith(f".{name}") for file in FILES)} <= {
        "__version__"
    }


def test_there_is_no_cycle() -> None:
    """Whoever reads the modules in order has read each one before it is needed, deferred imports
    included."""
    try:
        order = list(
            TopologicalSorter(
                {m: found - {FACADE} for m, found in OURS.items() if m != FACADE}
            ).static_order()
        )
    except CycleError as error:
        pytest.fail(f"imports in a cycle: {error.args[1]}")
    assert set(order) >= set(FILES) - {FACADE}


def test_the_package_itself_imports_the_lowest_floors_only() -> None:
    """``import gunicorn_grace`` executes floors 0 and 1; ``install`` and ``check`` reach higher
    when called."""
    eager = {
        unit(i.target)
        for i in IMPORTS[FACADE]
        if not i.deferred and i.target.split(".")[0] == PACKAGE
    }
    assert {FLOOR[name] for name in eager - {FACADE}} <= {0, 1}
    assert {i.target for i in IMPORTS[FACADE] if i.deferred} <= {
        f"{PACKAGE}.conf",
        f"{PACKAGE}.checks",
    }


@pytest.mark.parametrize("module", [m for m in FILES if FLOOR.get(unit(m), 9) < 3])
def test_the_lower_floors_know_no_framework(module: str) -> None:
    """Up to the lifecycle nothing imports flask, werkzeug or click; gunicorn is met by
    ``settings``, when asked."""
    others = {i for i in IMPORTS[module] if i.target in {"flask", "werkzeug", "click", "gunicorn"}}
    allowed = {Import("gunicorn", True)} if unit(module) == "settings" else set()
    assert others <= allowed


def test_importing_the_package_imports_neither_gunicorn_nor_flask() -> None:
    """An application may ask ``is_terminating()`` where gunicorn is not even installed."""
    code = (
        "import sys, gunicorn_grace as g\n"
        "assert g.phase() is g.Phase.SERVING and not g.is_terminating() and g.seconds_left() is None\n"
        "assert not {'gunicorn', 'flask', 'werkzeug', 'click'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=ROOT.parent)


def test_what_a_worker_loads_is_no_framework() -> None:
    """Django's workers hold neither Flask nor werkzeug, nor the test client that comes with any
    part of the latter."""
    code = (
        "import sys, gunicorn_grace.conf, gunicorn_grace.wsgi, gunicorn_grace.asgi\n"
        "assert not {'flask', 'werkzeug', 'click', 'h11', 'yaml'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=ROOT.parent)


def test_the_ladder_sees_deferred_and_hides_type_checking_imports() -> None:
    """The parser of this file is right: what it would miss, the tests above could not prove."""
    source = (
        "from typing import TYPE_CHECKING\n"
        "from . import state as st, __version__\n"
        "from .rehearsal.load import x\n"
        "if TYPE_CHECKING:\n    from . import cli\nelse:\n    from . import errors\n"
        "class C:\n    def f(self):\n        from ..elsewhere import conf\n        import gunicorn.config\n"
        "def g():\n    from gunicorn_grace import wsgi\n"
    )
    found = set(imports(f"{PACKAGE}.worker", ast.parse(source)))
    assert {i.target for i in found if not i.deferred} == {
        "typing",
        f"{PACKAGE}.state",
        PACKAGE,
        f"{PACKAGE}.rehearsal.load",
        f"{PACKAGE}.errors",
    }
    assert {i.target for i in found if i.deferred} == {"elsewhere", "gunicorn", f"{PACKAGE}.wsgi"}
