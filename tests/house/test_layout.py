"""DESIGN section 4: who may import whom, asserted from the imports themselves."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple, TypeGuard

import pytest

import gunicorn_grace
from support.paths import DOCS

pytestmark = pytest.mark.once

ROOT = Path(gunicorn_grace.__file__).parent
PACKAGE = "gunicorn_grace"

USERS_NAMES = {
    PACKAGE,
    *(
        f"{PACKAGE}.{name}"
        for name in (
            "conf",
            "wsgi",
            "asgi",
            "flask",
            "prometheus",
            "testing",
            "application",
            "pytest_plugin",
            "cli",
            "__main__",
        )
    ),
}
"""What users import or type."""


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


def room(module: str) -> str:
    """The folder that a module is in: ``gunicorn_grace.shared.memory`` is in ``shared``."""
    parts = module.split(".")
    is_folder = len(parts) > 2 or FILES[module].name == "__init__.py"
    return parts[1] if module != PACKAGE and is_folder else ""


IMPORTS = {
    module: set(imports(module, ast.parse(path.read_text()))) for module, path in FILES.items()
}
OURS = {
    module: {i.target for i in found if i.target.split(".")[0] == PACKAGE} - {module}
    for module, found in IMPORTS.items()
}


def importers(*rooms: str) -> dict[str, set[str]]:
    """For each module in these rooms: the modules of ours that it imports, deferred ones too."""
    return {module: OURS[module] for module in FILES if room(module) in rooms}


def test_the_processes_never_import_each_other() -> None:
    """Code of the arbiter, of a worker and of the probe responder meets in the hooks, and in what
    two of them agree on."""
    processes = ("arbiter", "worker", "responder")
    for own in processes:
        for module, found in importers(own).items():
            assert not {room(t) for t in found} & ({*processes} - {own}), module


def test_shared_imports_errors_alone() -> None:
    """Whatever runs in any process depends on nothing that runs in one of them."""
    for module, found in importers("shared").items():
        assert {t for t in found if room(t) != "shared"} <= {f"{PACKAGE}.errors"}, module


def test_probes_imports_shared_alone() -> None:
    """A probe is answered alike by a worker and by the probe responder: from what both know."""
    for module, found in importers("probes").items():
        others = {t for t in found if room(t) not in ("probes", "shared")}
        assert others <= {f"{PACKAGE}.errors"}, module


def test_gunicorn_is_imported_in_its_processes_alone() -> None:
    """Only the arbiter, a worker and the configuration module know gunicorn's insides. The
    rehearsal asks gunicorn's own parser about the arguments that a user gives to gunicorn."""
    users = {module for module, found in IMPORTS.items() if "gunicorn" in {i.target for i in found}}
    inside = {module for module in users if room(module) in ("arbiter", "worker")}
    assert inside
    assert users - inside == {f"{PACKAGE}.conf", f"{PACKAGE}.rehearsal.command.contenders"}


def test_nothing_imports_the_users_names() -> None:
    """What users import is thin: each name hands over to a room, and no room comes back for it."""
    assert set(FILES) >= USERS_NAMES
    for module, found in OURS.items():
        if module not in USERS_NAMES:
            assert not found & USERS_NAMES, module


def test_the_docs_name_every_room() -> None:
    """A reader finds each folder, and the process in which its files run."""
    page = (DOCS / "architecture/index.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| .+ \|$", page.partition("## Where the code is")[2], re.M)
    assert set(rows) == {room(module) for module in FILES} - {""}


def test_there_is_no_cycle() -> None:
    """Whoever reads the modules in order has read each one before it is needed, deferred imports
    included."""
    try:
        order = list(
            TopologicalSorter(
                {m: found - {PACKAGE} for m, found in OURS.items() if m != PACKAGE}
            ).static_order()
        )
    except CycleError as error:
        pytest.fail(f"imports in a cycle: {error.args[1]}")
    assert set(order) >= set(FILES) - {PACKAGE}


def test_importing_the_package_imports_neither_gunicorn_nor_flask() -> None:
    """An application may ask ``is_terminating()`` where gunicorn is not even installed."""
    code = (
        "import sys, gunicorn_grace as g\n"
        "assert g.phase() is g.Phase.SERVING and not g.is_terminating() and g.seconds_left() is "
        "None\n"
        "assert not {'gunicorn', 'flask', 'werkzeug', 'click'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=ROOT.parent)


REASON = "It has more attributes than a class should, because"


def attributes(of: ast.ClassDef) -> set[str]:
    """The names that a class gives its instances."""
    stores = [n for n in ast.walk(of) if isinstance(n, ast.Attribute)]
    named = {n.target.id for n in of.body if isinstance(n, ast.AnnAssign) if is_name(n.target)}
    return named | {
        n.attr
        for n in stores
        if isinstance(n.ctx, ast.Store) and is_name(n.value) and n.value.id == "self"
    }


def is_name(node: ast.expr) -> TypeGuard[ast.Name]:
    return isinstance(node, ast.Name)


def test_files_and_classes_are_small() -> None:
    """No file over 400 lines, no class over 250 lines, and none over 20 attributes without a reason
    on top of it."""
    for module, path in FILES.items():
        source = path.read_text()
        assert source.count("\n") <= 400, module
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ClassDef):
                assert node.end_lineno is not None
                assert node.end_lineno - node.lineno < 250, (module, node.name)
                explained = REASON in " ".join((ast.get_docstring(node) or "").split())
                assert explained or len(attributes(node)) <= 20, (module, node.name)


def loaded_by(code: str) -> set[str]:
    """The modules that a process has after it has executed this."""
    command = [sys.executable, "-W", "error", "-c", f"import sys\n{code}\nprint(*sys.modules)"]
    done = subprocess.run(command, check=True, cwd=ROOT.parent, capture_output=True, text=True)
    return set(done.stdout.split())


def test_an_arbiter_and_a_worker_load_only_what_they_run() -> None:
    """No framework, no HTTP server, no mail parser, no command and no rehearsal: they would be in
    every process of every instance."""
    gunicorns = loaded_by("import gunicorn.arbiter, gunicorn.workers.sync")
    loaded = loaded_by(
        "import gunicorn.arbiter, gunicorn.workers.sync\n"
        "import gunicorn_grace.conf, gunicorn_grace.wsgi, gunicorn_grace.asgi"
    )
    more = {name.split(".")[0] for name in loaded - gunicorns}
    assert not more & {"flask", "werkzeug", "click", "h11", "yaml", "http", "email"}
    rooms = {name.split(".")[1] for name in loaded if name.startswith(f"{PACKAGE}.")}
    assert not rooms & {"responder", "operate", "rehearsal", "cli"}


def test_the_responder_loads_neither_gunicorn_nor_the_other_processes() -> None:
    """It is a small process of its own."""
    loaded = loaded_by("import gunicorn_grace.responder.process")
    assert not {name.split(".")[0] for name in loaded} & {"gunicorn", "flask", "werkzeug", "click"}
    rooms = {name.split(".")[1] for name in loaded if name.startswith(f"{PACKAGE}.")}
    assert not rooms & {"arbiter", "operate", "rehearsal", "hooks", "conf"}


def test_the_parser_sees_deferred_and_hides_type_checking_imports() -> None:
    """The parser of this file is right: what it would miss, the tests above could not prove."""
    source = (
        "from typing import TYPE_CHECKING\n"
        "from . import cli as st, __version__\n"
        "from .shared.memory import x\n"
        "if TYPE_CHECKING:\n    from . import asgi\nelse:\n    from . import errors\n"
        "class C:\n    def f(self):\n        from ..elsewhere import conf\n        import "
        "gunicorn.config\n"
        "def g():\n    from gunicorn_grace import wsgi\n"
    )
    found = set(imports(f"{PACKAGE}.conf", ast.parse(source)))
    assert {i.target for i in found if not i.deferred} == {
        "typing",
        f"{PACKAGE}.cli",
        PACKAGE,
        f"{PACKAGE}.shared.memory",
        f"{PACKAGE}.errors",
    }
    assert {i.target for i in found if i.deferred} == {"elsewhere", "gunicorn", f"{PACKAGE}.wsgi"}


ARCHITECTURE = sorted((DOCS / "architecture").glob("*.md"))


@pytest.mark.parametrize("page", ARCHITECTURE, ids=lambda page: page.stem)
def test_the_walks_lead_along_files_and_names_that_exist(page: Path) -> None:
    """Each file, folder and method that the pages on the architecture name is there."""
    text = page.read_text(encoding="utf-8")
    roots = (ROOT, DOCS.parent)
    files = re.findall(r"`((?:[\w-]+/)*[\w-]+\.py|(?:tests|docs)/[\w/-]+|[\w-]+/[\w/-]*)`", text)
    theirs = {"arbiter.py", "config.py", "workers/", "http/", "asgi/", "dirty/"}
    assert [f for f in files if f not in theirs and not any((r / f).exists() for r in roots)] == []
    source = "\n".join(path.read_text(encoding="utf-8") for path in ROOT.rglob("*.py"))
    for owner, name in re.findall(r"`([A-Z]\w+)\.(\w+)`", text):
        # Two classes may have one name, in two processes.
        bodies = re.findall(rf"^class {owner}\b.*?(?=^\S|\Z)", source, re.M | re.S)
        is_there = re.compile(rf"\b(def {name}\b|self\.{name}\b|{name}:)")
        assert any(map(is_there.search, bodies)), (owner, name)
