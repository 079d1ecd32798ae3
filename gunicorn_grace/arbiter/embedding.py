"""Programs that start gunicorn in Python: an application derived from ``BaseApplication``.

Such a program reads no configuration file. So gunicorn ignores ``-c python:gunicorn_grace.conf``
there, whether it comes from the program's option ``"config"`` or from ``GUNICORN_CMD_ARGS``, and
the program would silently lose requests. As soon as this package and gunicorn are both imported,
:func:`watch` wraps three of gunicorn's methods:

- ``BaseApplication.load_default_config``: a new ``Config`` knows our settings from the beginning.
  So a program can set them before it calls ``install``, and an unknown name is refused.
- ``Arbiter.setup``: if the program's options name the plugin, it is switched on. A new instance
  also waits here for one that shuts down at its addresses.
- ``Arbiter.init_signals``, which gunicorn calls right after ``on_starting`` (22.0 to 27.0): this is
  the last moment to switch the plugin on, or to warn that it is not switched on.

Everything here runs in the arbiter's process, before the first fork and after SIGHUP.
:func:`tell_too_late` and :func:`on_import` may also run in a worker.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from ..errors import GraceError
from ..shared.settings import Settings
from . import predecessor, stack
from .adoption import carry_over, hooks_of, know

PACKAGE = __package__.partition(".")[0]
CONF_MODULE = f"{PACKAGE}.conf"

INSTEAD = (
    "write gunicorn_grace.install(self.cfg) into load_config(), or start gunicorn with "
    "-c python:gunicorn_grace.conf"
)

NOT_SWITCHED_ON = (
    "gunicorn-grace: it is imported and not switched on, so a shutdown loses requests: " + INSTEAD
)

TOO_LATE = (
    "gunicorn-grace: it was to be switched on when gunicorn had already started, so it is not: "
    + INSTEAD
)

Adopt = Callable[[Any], None]

_everywhere: Adopt | None = None
"""Adopts the configuration of every application of this process; ``None`` until :func:`enable`."""


_is_off = False


def enable(adopt: Adopt) -> None:
    """Switch the plugin on for every gunicorn that this process starts.

    :param adopt: adds our settings and hooks to a ``Config``.
    """
    global _everywhere
    _everywhere = adopt


def leave_off() -> None:
    """Suppress the warning that the plugin is not switched on. The plain gunicorn of a rehearsal
    runs without the plugin on purpose."""
    global _is_off
    _is_off = True


def tell_too_late(arbiter: Any) -> None:
    """Log that the plugin cannot be switched on any more. Runs in the arbiter or in a worker."""
    arbiter.log.warning(TOO_LATE)


def watch(adopt: Adopt) -> None:
    """Wrap gunicorn's methods. A second call changes nothing.

    :param adopt: adds our settings and hooks to a ``Config``.
    """
    from gunicorn.app.base import Application, BaseApplication
    from gunicorn.arbiter import Arbiter

    def load_default_config(original: Callable[..., Any], app: Any) -> None:
        original(app)
        # When gunicorn imports python:gunicorn_grace.conf, the module must run again, because it
        # also loads the user's file.
        sys.modules.pop(CONF_MODULE, None)
        know(app.cfg)
        if _everywhere is not None:
            _everywhere(app.cfg)

    def setup(original: Callable[..., Any], arbiter: Any, app: Any) -> None:
        is_on = hooks_of(app.cfg) is not None
        if not is_on and hasattr(arbiter, "grace_off"):
            # This is a SIGHUP. If Python has cached the configuration module (python:my.conf), it
            # does not run again, and the new workers would not answer the probes.
            adopt(app.cfg)
            carry_over(arbiter.cfg, app.cfg)
            is_on = True
        # An Application reads both places itself, and may have found another file first.
        reads_files = isinstance(app, Application)
        named_by = "" if is_on or reads_files else _named_by(app.cfg)
        if not is_on and (_everywhere or named_by):
            (_everywhere or adopt)(app.cfg)
        if hooks_of(app.cfg) and not app.cfg.settings["grace_enabled"].get():
            _give_back_sigterm()  # This must come before `original`, which preloads.
        original(arbiter, app)
        if hooks_of(app.cfg) and not stack.has_plugin(arbiter):
            # This also runs if the plugin is switched off, because the old instance may still have
            # a delay.
            _wait_for_predecessor(arbiter)
        if named_by:
            arbiter.log.info(
                "gunicorn-grace: switched on, because %s names it; this program reads no "
                "configuration file, so no gunicorn.conf.py counts",
                named_by,
            )

    def init_signals(original: Callable[..., Any], arbiter: Any) -> None:
        _start(arbiter)
        original(arbiter)

    for cls, method in (
        (BaseApplication, load_default_config),
        (Arbiter, setup),
        (Arbiter, init_signals),
    ):
        _put_behind(cls, method)
    found = stack.loading_application()
    if found is not None:
        # The program imports the package only in load_config. `install` will report an invalid
        # environment variable.
        with contextlib.suppress(GraceError):
            know(found[0].cfg)


def _wait_for_predecessor(arbiter: Any) -> None:
    try:
        predecessor.wait(arbiter)
    except Exception:
        arbiter.log.exception("gunicorn-grace: cannot wait for an instance that shuts down")


def _give_back_sigterm() -> None:
    """Remove the SIGTERM handler that our configuration module has installed for the boot of PID 1.
    The module could not know yet that the plugin is switched off."""
    if getattr(signal.getsignal(signal.SIGTERM), "__module__", "") == CONF_MODULE:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _put_behind(cls: type, ours: Callable[..., Any]) -> None:
    theirs = getattr(cls, ours.__name__)
    if hasattr(theirs, "gunicorn_grace"):
        return

    @functools.wraps(theirs)
    def method(self: Any, *args: Any) -> Any:
        return ours(theirs, self, *args)

    method.gunicorn_grace = True  # type: ignore[attr-defined]
    setattr(cls, ours.__name__, method)


def _named_by(cfg: Any) -> str:
    """Return the place that names the plugin and that gunicorn does not read in such a program;
    empty if there is none."""
    if CONF_MODULE in str(cfg.settings["config"].get()):
        return "the option config"
    if CONF_MODULE in os.environ.get("GUNICORN_CMD_ARGS", ""):
        return "GUNICORN_CMD_ARGS"
    return ""


def _start(arbiter: Any) -> None:
    """Complete what ``on_starting`` may have missed. It starts the plugin if a hook has switched it
    on during ``on_starting``, applies settings that a hook has changed since, or warns that the
    plugin is not switched on."""
    hooks = hooks_of(arbiter.cfg)
    try:
        if hooks is None:
            if not _is_off:
                arbiter.log.warning(NOT_SWITCHED_ON)
        elif not stack.has_plugin(arbiter):
            hooks["on_starting"](arbiter)
        elif _used_by(arbiter) != Settings.of(arbiter.cfg):
            hooks["on_reload"](arbiter)
    except GraceError as error:
        arbiter.log.error("gunicorn-grace: %s", error)
        sys.exit(1)
    except Exception:
        arbiter.log.exception("gunicorn-grace: cannot be switched on; gunicorn goes on")


def _used_by(arbiter: Any) -> Settings:
    is_on = hasattr(arbiter, "grace")
    settings: Settings = arbiter.grace.as_set if is_on else arbiter.grace_off.settings
    return settings


def on_import(install: Callable[[Any], None]) -> Any:
    """Act on ``import gunicorn_grace.conf``. Runs in the process that imports it.

    :param install: switches the plugin on for a ``Config``.
    :returns: the application that is loading its configuration, and gunicorn's innermost frame;
        ``None`` if no configuration is being loaded.
    """
    found = stack.loading_application()
    if found is None:
        arbiter = stack.running_arbiter()
        if arbiter is None or not stack.has_started(arbiter):
            enable(install)
        elif not stack.has_plugin(arbiter):
            tell_too_late(arbiter)
    return found
