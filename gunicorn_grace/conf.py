"""The configuration module: ``gunicorn -c python:gunicorn_grace.conf app:app``.

There are three ways in, and all of them come down to :func:`install`, which makes the gunicorn
``Config`` that is being loaded know our settings and call our hooks before the user's:

- ``-c python:gunicorn_grace.conf``: this module, which also loads the ``gunicorn.conf.py`` of the
  working directory; gunicorn reads one configuration file, and with ``-c`` would not look at that
  one.
- a configuration file with ``from gunicorn_grace.conf import *``: importing is enough, and brings
  no names in.
- ``gunicorn_grace.install(globals())`` in a configuration file.

gunicorn turns every global of a configuration module that is named like a setting into that
setting, so this module must not have any by accident; a test looks.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from .arbiter import probe_port as _probe_port
from .arbiter import shutdown as _arbiter
from .errors import ConfigurationError, GraceError
from .shared import settings as _settings
from .worker import classes as _worker_classes
from .worker import process as _worker

__all__: list[str] = []


def install(namespace: Any = None) -> None:
    """Switch gunicorn-grace on for the gunicorn that is loading its configuration.

    Call it from a configuration file, ``gunicorn_grace.install(globals())``, or with the ``Config``
    of an embedded gunicorn (``BaseApplication.load_config``: ``gunicorn_grace.install(self.cfg)``).
    Doing it twice changes nothing. Runs in the arbiter.

    :param namespace: the file's ``globals()``, or a gunicorn ``Config``.
    :raises ConfigurationError: nothing is being loaded, and no ``Config`` was given.
    """
    cfg = namespace if hasattr(namespace, "settings") else _loading_config()
    if cfg is None:
        raise ConfigurationError(
            "gunicorn_grace.install() found no gunicorn that is loading its configuration: "
            "call it from a configuration file, or give it the Config"
        )
    _settings.adopt(cfg, HOOKS)
    _end_by_sigterm_as_pid_1()


def _end_by_sigterm_as_pid_1() -> None:
    """Let SIGTERM end a boot that is under way. The kernel drops what the first process of a PID
    namespace has no handler for (pid_namespaces(7)), and gunicorn sets its own only after
    ``preload_app`` has imported the application: a SIGTERM meanwhile would be lost, and the server
    would serve on until SIGKILL (gunicorn 22.0 to 27.0)."""
    if os.getpid() == 1 and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        with contextlib.suppress(ValueError):  # Not the main thread: an embedded gunicorn.
            signal.signal(signal.SIGTERM, _end)


def _end(sig: int, frame: FrameType | None) -> None:
    os._exit(
        128 + sig
    )  # As the default action would: nothing was ever ready, and nothing is cleaned up.


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _loading_application() -> tuple[Any, FrameType] | None:
    """The gunicorn application that is loading a configuration further up the stack, and the frame
    that does it."""
    for frame in _frames():
        if frame.f_globals.get("__name__") == "gunicorn.app.base":
            app = frame.f_locals.get("self")
            if getattr(app, "cfg", None) is not None:
                return app, frame
    return None


def _loading_config() -> Any:
    found = _loading_application()
    return found[0].cfg if found else None


# -- hooks: each hands over to its module ----


_told: set[str] = set()


def _tell_once(name: str, process: Any) -> None:
    """Log that a hook of ours failed, with its traceback, the first time in this process."""
    if name not in _told:
        _told.add(name)
        with contextlib.suppress(Exception):
            process.log.exception("gunicorn-grace: its %s hook failed; gunicorn goes on", name)


def _guarded(hook: Callable[..., None]) -> Callable[..., None]:
    """Let nothing out of a hook of ours: gunicorn would halt (``post_fork``), or answer 500
    (``pre_request``)."""

    @functools.wraps(hook)
    def guarded(*args: Any) -> None:
        try:
            hook(*args)
        except ConfigurationError:
            raise
        except Exception:
            _tell_once(hook.__name__.lstrip("_"), args[0])

    return guarded


_UNTRACKED = (
    "gunicorn-grace: requests of %s cannot be counted: the delay, readiness in the shared memory and sealing work; "
    "probes, extension, quiet and Connection: close do not"
)
_UNWRAPPED = (
    "gunicorn-grace: the worker class %s runs ASGI applications, and this one is not wrapped: %s work, %s do not; "
    "wrap it: from gunicorn_grace.asgi import Probes; app = Probes(app)"
)
_WITHOUT_WRAPPING = {
    _worker_classes.ASGI_HOOKS: (
        "the delay, readiness in the shared memory, sealing, extension and quiet",
        "probes, and before gunicorn 27 Connection: close,",
    ),
    _worker_classes.ASGI: (
        "the delay, readiness in the shared memory and sealing",
        "probes, extension, quiet and Connection: close",
    ),
}


def _on_starting(server: Any) -> None:
    loaded = _settings.Settings.of(server.cfg)
    _settings.check(loaded)
    _arbiter.attach(server, loaded, install)
    _arbiter.tell_budget(server, loaded)
    if loaded.probe_bind is not None:
        _arbiter.open_probe_port(server, loaded)
    if _worker_classes.tracking(server.cfg.worker_class) is None:
        server.log.warning(_UNTRACKED, f"the worker class {server.cfg.worker_class_str}")


def _on_reload(server: Any) -> None:
    loaded = _settings.Settings.of(server.cfg)
    try:
        _settings.check(loaded)
    except ConfigurationError as error:
        server.log.error("gunicorn-grace: the settings stay as they were: %s", error)
        return
    server.grace.use(loaded)
    _arbiter.tell_budget(server, loaded)
    if server.grace.probe_port is not None:
        server.grace.probe_port.reload(loaded)
    elif loaded.probe_bind is not None:
        server.log.warning(
            "gunicorn-grace: grace_probe_bind = %r takes a restart", loaded.probe_bind
        )


def _pre_fork(server: Any, worker: Any) -> None:
    if hasattr(server, "grace"):
        server.grace.claim(worker)


def _child_exit(server: Any, worker: Any) -> None:
    if hasattr(server, "grace"):
        server.grace.free(worker)


def _post_fork(server: Any, worker: Any) -> None:
    if hasattr(server, "grace"):
        lifetime = server.grace
        if lifetime.probe_port is not None:
            lifetime.probe_port.leave()
        seat = _worker.take_seat(
            worker, lifetime.state, getattr(worker, "grace_slot", None), lifetime.settings
        )
        seat.owns_listeners = lifetime.workers_own_listeners()


def _post_worker_init(worker: Any) -> None:
    seat = _worker.current
    if seat is None:
        return
    try:
        _stand_in_front(worker, seat)
    finally:  # The worker serves, whatever failed: if it did not say so, the instance would never be ready.
        seat.booted(worker)
    # What refuses unknown names in a file costs a Python call for every look at a setting: 20 of
    # them a request.
    worker.cfg.settings = dict(worker.cfg.settings)
    _shorten(worker.cfg, seat)


def _stand_in_front(worker: Any, seat: _worker.Seat) -> None:
    """Put what answers, counts and keeps quiet in front of the application and the log."""
    if seat.tracking == _worker_classes.WSGI and _worker_classes.is_tornado_app(worker.wsgi):
        seat.tracking, seat.sees_all = None, False
        if worker.age == 1:
            worker.log.warning(_UNTRACKED, "an application of tornado's own")
    if seat.tracking in (_worker_classes.HOOKS, _worker_classes.WSGI):
        from . import wsgi

        if seat.settings.overlay:
            worker.wsgi = wsgi.Overlay(worker.wsgi, wsgi.Responder(seat)).serve
        if seat.tracking == _worker_classes.WSGI:
            worker.wsgi = wsgi.Counting(worker.wsgi, seat)
    elif seat.tracking is not None and worker.age == 1 and f"{__package__}.asgi" not in sys.modules:
        # Said by the first worker: the arbiter has no application. What wraps it has been imported
        # by now.
        worker.log.warning(
            _UNWRAPPED, worker.cfg.worker_class_str, *_WITHOUT_WRAPPING[seat.tracking]
        )
    if not seat.settings.log_probes:
        try:
            _worker.quieten_probes(worker.log, seat.probe_paths)
        except Exception:
            _tell_once("access log", worker)
    try:
        _probe_port.publish(worker, seat.state, seat.number, seat.settings)
    except Exception:
        _tell_once("probe port", worker)


def _shorten(cfg: Any, seat: _worker.Seat) -> None:
    """Let the hooks of the hot path be reached in one step, in this worker.

    ``HOOKS`` and what the user has chained to it are three calls; and before the first of them
    ``Config`` finds out that it has no attribute of the hook's name, calls its ``__getattr__`` and
    looks among the settings, which costs more than all that a hook of ours does. So it gets the
    attribute. A hook that is set later takes the user's place. gunicorn's own does nothing but log
    for debugging, in three calls: whether it would is asked first.
    """
    from gunicorn.config import PreRequest
    from gunicorn.glogging import Logger

    begin, end = seat.begin, seat.end
    then_begin, then_end = (
        cfg.settings[name].value.__wrapped__ for name in ("pre_request", "post_request")
    )
    would_log = (
        seat.log.error_log.isEnabledFor
        if getattr(type(seat.log), "debug", None) is Logger.debug
        else _always
    )
    is_wanted = would_log if then_begin is PreRequest.default else _always

    def pre_request(worker: Any, req: Any) -> None:
        try:
            begin(req)
        except Exception:
            _tell_once("pre_request", worker)
        if is_wanted(logging.DEBUG):
            then_begin(worker, req)

    def post_request(worker: Any, req: Any, environ: Any, resp: Any) -> None:
        try:
            end(req)
        except Exception:
            _tell_once("post_request", worker)
        then_end(worker, req, environ, resp)

    def set_pre_request(value: Any) -> None:
        nonlocal then_begin, is_wanted
        chain_pre_request(value)
        then_begin, is_wanted = cfg.settings["pre_request"].value.__wrapped__, _always

    def set_post_request(value: Any) -> None:
        nonlocal then_end
        chain_post_request(value)
        then_end = cfg.settings["post_request"].value.__wrapped__

    chain_pre_request, chain_post_request = (
        cfg.settings["pre_request"].set,
        cfg.settings["post_request"].set,
    )
    cfg.settings["pre_request"].set, cfg.settings["post_request"].set = (
        set_pre_request,
        set_post_request,
    )
    # Past Config.__setattr__, which refuses the names of settings; and past vars(cfg), see
    # settings.adopt.
    object.__setattr__(cfg, "pre_request", pre_request)
    object.__setattr__(cfg, "post_request", post_request)


def _always(level: int) -> bool:
    return True


def _pre_request(worker: Any, req: Any) -> None:
    seat = _worker.current
    if seat is not None:
        seat.begin(req)


def _post_request(worker: Any, req: Any, environ: Any, resp: Any) -> None:
    seat = _worker.current
    if seat is not None:
        seat.end(req)


def _worker_int(worker: Any) -> None:
    seat = _worker.current
    if seat is not None:
        seat.note_cut_off()
        seat.dump("when the worker was interrupted, and cut off")


def _worker_abort(worker: Any) -> None:
    seat = _worker.current
    if seat is not None:
        seat.note_cut_off()
        seat.dump("when the worker was aborted, and cut off")


def _on_exit(server: Any) -> None:
    if hasattr(server, "grace"):
        server.grace.finish()


HOOKS: dict[str, Callable[..., None]] = {
    hook.__name__.lstrip("_"): _guarded(hook)
    for hook in (
        _on_starting,
        _on_reload,
        _pre_fork,
        _post_fork,
        _post_worker_init,
        _pre_request,
        _post_request,
        _worker_int,
        _worker_abort,
        _child_exit,
        _on_exit,
    )
}


# -- being executed by gunicorn ----


def _load() -> None:
    found = _loading_application()
    if found is None:
        return  # Imported by something else: a test, a type checker, the CLI.
    app, frame = found
    try:
        install(app.cfg)
    except GraceError as error:
        # gunicorn would print a traceback for what is raised in a file (get_config_from_filename,
        # 22.0 to 27.0).
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
