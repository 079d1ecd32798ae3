"""The configuration module: ``gunicorn -c python:gunicorn_grace.conf app:app``.

There are three ways to enable the plugin. All of them call :func:`install`, which adds the plugin's
settings to the gunicorn ``Config`` that is being loaded, and its hooks in front of the user's:

- ``-c python:gunicorn_grace.conf`` names this module, which also loads the ``gunicorn.conf.py`` of
  the working directory. gunicorn reads only one configuration file, so with ``-c`` it would ignore
  ``gunicorn.conf.py``.
- a configuration file with ``from gunicorn_grace.conf import *``: the import is enough, and it adds
  no names to the file.
- ``gunicorn_grace.install(globals())`` in a configuration file.

A program that starts gunicorn in Python reads no configuration file. It imports this module before
it makes its application, or calls ``gunicorn_grace.install(self.cfg)`` in ``load_config``.

gunicorn turns every global of a configuration module that has the name of a setting into that
setting. So this module must not have such a global by accident, and a test checks this. Runs in the
arbiter.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from types import FrameType
from typing import Any

from . import hooks as _hooks
from .arbiter import embedding as _embedding
from .arbiter import stack as _stack
from .errors import ConfigurationError, GraceError

__all__: list[str] = []


def install(namespace: Any = None) -> None:
    """Enable gunicorn-grace for the gunicorn that is loading its configuration.

    Call it from a configuration file, ``gunicorn_grace.install(globals())``, or with the ``Config``
    of an embedded gunicorn (``BaseApplication.load_config``: ``gunicorn_grace.install(self.cfg)``).
    It also works in the hook ``on_starting``. A later call changes nothing, and a line in the log
    says so. A second call changes nothing. Runs in the arbiter.

    :param namespace: the file's ``globals()``, or a gunicorn ``Config``.
    :raises ConfigurationError: gunicorn is not loading a configuration, and ``namespace`` is not a
        ``Config``.
    :raises SettingError: an environment variable has an invalid value.
    """
    found = _stack.loading_application()
    arbiter = _stack.running_arbiter() if found is None else None
    if arbiter is not None:
        if _stack.has_plugin(arbiter):
            return
        if _stack.has_started(arbiter):
            _embedding.tell_too_late(arbiter)
            return
    if hasattr(namespace, "settings"):
        cfg = namespace
    elif found is not None:
        cfg = found[0].cfg
    elif arbiter is not None:
        cfg = arbiter.cfg
    else:
        raise ConfigurationError(
            "gunicorn_grace.install() found no gunicorn that is loading its configuration: "
            "call it from a configuration file, or give it the Config"
        )
    _hooks.adopt(cfg)
    _end_by_sigterm_as_pid_1()


def _end_by_sigterm_as_pid_1() -> None:
    """Let SIGTERM end a boot that is under way.

    The kernel drops signals for which the first process of a PID namespace has no handler
    (pid_namespaces(7)). gunicorn sets its handler only after ``preload_app`` has imported the
    application. A SIGTERM before that would be lost, and the server would run until SIGKILL
    (gunicorn 22.0 to 27.0).
    """
    if os.getpid() == 1 and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        with contextlib.suppress(ValueError):  # An embedded gunicorn may not be in the main thread.
            signal.signal(signal.SIGTERM, _end)


def _end(sig: int, frame: FrameType | None) -> None:
    # Exit without cleanup, as the default action does. The instance was never ready.
    if os.getpid() != 1:
        # This is a child that the application has forked. Its parent must see that the signal ended
        # it.
        signal.signal(sig, signal.SIG_DFL)
        os.kill(os.getpid(), sig)
    os._exit(128 + sig)


# -- being executed by gunicorn ----


def _load() -> None:
    found = _embedding.on_import(install)
    if found is None:
        return  # A program has imported this module, not gunicorn.
    app, frame = found
    try:
        install(app.cfg)
    except GraceError as error:
        # gunicorn would print a traceback for an exception in a configuration file
        # (get_config_from_filename, 22.0 to 27.0).
        print(f"\nError: {error}", file=sys.stderr, flush=True)
        sys.exit(1)
    if frame.f_locals.get("module_name") == __name__:
        from gunicorn.config import get_default_config_file

        path = get_default_config_file()
        if path is not None:
            values = app.get_config_from_filename(path)
            globals().update(
                {name: value for name, value in values.items() if _is_setting(app.cfg, name)}
            )


def _is_setting(cfg: Any, name: str) -> bool:
    return not name.startswith("_") and name in cfg.settings


_load()
