"""The configuration of the plain contender: the user's own file, in which the plugin does nothing.

It is used as ``gunicorn -c python:gunicorn_grace.rehearsal.command.plain``. Without it, gunicorn
would load ``gunicorn.conf.py`` of the working directory, and that file may load the plugin. If
plain gunicorn had no configuration at all, the number and class of its workers would differ too.

This module runs inside gunicorn, so it imports only the standard library and this package. Its
globals become gunicorn's settings, so every name of its own begins with an underscore.
"""

from __future__ import annotations

import importlib as _importlib
import os as _os
import runpy as _runpy
import sys as _sys
import types as _types

from ...arbiter import embedding as _embedding

#: The environment variable with the path of the user's file.
_VARIABLE = "REHEARSAL_CONFIG"


def _load(path: str) -> dict[str, object]:
    """Return the globals of a configuration file or module (``python:name``). The plugin does
    nothing in it."""
    package = _sys.modules["gunicorn_grace"]  # This module is a part of it.

    silent = _types.ModuleType("gunicorn_grace.conf")
    silent.__dict__["install"] = lambda namespace: None
    before: dict[str, object] = {
        name: package.__dict__[name] for name in ("conf", "install") if name in package.__dict__
    }
    loaded = _sys.modules.get(silent.__name__)
    _sys.modules[silent.__name__] = silent
    package.__dict__.update(conf=silent, install=silent.__dict__["install"])
    try:
        if path.startswith("python:"):
            return dict(vars(_importlib.import_module(path.removeprefix("python:"))))
        return dict(_runpy.run_path(path.removeprefix("file:"), run_name="__config__"))
    finally:
        del package.__dict__["conf"], package.__dict__["install"], _sys.modules[silent.__name__]
        package.__dict__.update(before)
        if loaded is not None:
            _sys.modules[silent.__name__] = loaded


_embedding.leave_off()
_path = _os.environ.get(_VARIABLE) or "gunicorn.conf.py"
if _os.environ.get(_VARIABLE) or _os.path.exists(_path):
    globals().update(
        {name: value for name, value in _load(_path).items() if not name.startswith("_")}
    )
