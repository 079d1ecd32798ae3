"""Every Python below ``gunicorn-grace run`` executes this module when it starts.

Python imports a module of this name if there is one on its path (see ``site`` in Python's
documentation). ``ddtrace-run`` and ``opentelemetry-instrument`` use the same mechanism. This module
waits until gunicorn is imported, and then switches the plugin on as ``import gunicorn_grace.conf``
does. A Python that never imports gunicorn runs only a few lines of the plugin.

Then this module executes the ``sitecustomize`` that Python would have found without it. That file
may belong to another tool of this kind, which in turn looks for the next one. The next one can be
this module again.
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
    # The file is loaded by its path. The package may be missing here, and importing it would cost
    # every Python time.
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
        sys.modules[NAME] = module  # Other code that imports this name expects that module.
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
