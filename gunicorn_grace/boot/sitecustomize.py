"""What every Python below ``gunicorn-grace run`` executes when it starts.

Python imports a module of this name, if there is one on its path (see ``site`` in its
documentation). ``ddtrace-run`` and ``opentelemetry-instrument`` come in by the same door. This one
waits for gunicorn. Where gunicorn is imported, the plugin is switched on as by ``import
gunicorn_grace.conf``; a Python that does not import it has nothing of the plugin but a few lines.

Then the ``sitecustomize`` is executed that Python would have found without this one. It may belong
to another tool of this kind, which in turn looks for the next: that can be this one again.
"""

import importlib
import os
import sys
from importlib.machinery import PathFinder, SourceFileLoader

HERE = os.path.dirname(os.path.abspath(__file__))
NAME = "sitecustomize"
WAITS_FOR = "gunicorn.app.base"


def _switch_on() -> None:
    try:
        importlib.import_module("gunicorn_grace.conf")
    except ModuleNotFoundError as error:
        if error.name != "gunicorn_grace":
            raise
        print(
            "gunicorn-grace run: gunicorn runs without it, because the package is not installed "
            f"for {sys.executable}: install it there",
            file=sys.stderr,
            flush=True,
        )


def _wait() -> None:
    # By its path: the package may be missing here, and would cost every Python its import.
    path = os.path.join(os.path.dirname(HERE), "shared", "imports.py")
    name = "_gunicorn_grace_imports"
    code = SourceFileLoader(name, path).get_code(name)
    assert code is not None
    module = {"__name__": name}
    exec(code, module)
    module["when_imported"](WAITS_FOR, _switch_on)  # type: ignore[operator]


def _is_here(entry: str) -> bool:
    return os.path.abspath(entry) == HERE


def _go_on(executed: "list[str]") -> None:
    """Execute the next ``sitecustomize`` of the path, each one once."""
    places = [number for number, entry in enumerate(sys.path) if _is_here(entry)]
    for entry in sys.path[places[-1] + 1 if places else 0 :]:
        spec = PathFinder.find_spec(NAME, [entry])
        if spec is None or spec.loader is None or spec.origin in executed or _is_here(entry):
            continue
        executed.append(str(spec.origin))
        module = type(sys)(NAME)
        module.__spec__, module.__loader__ = spec, spec.loader
        module.__file__ = spec.origin
        sys.modules[NAME] = module  # It is the one that others mean by the name.
        spec.loader.exec_module(module)
        return


_state = sys.__dict__
if "_gunicorn_grace_run" not in _state:
    _state["_gunicorn_grace_run"] = []
    if sys.version_info >= (3, 10):  # noqa: UP036 - it runs in whatever Python is below.
        try:
            _wait()
        except Exception as _problem:
            print(f"gunicorn-grace run: {_problem}", file=sys.stderr, flush=True)
_go_on(_state["_gunicorn_grace_run"])
