"""A direct call of the hooks of the hot path. Runs in workers.

Without this shortcut a request takes 1.03 times as many instructions as under plain gunicorn. With
it the ratio is 1.00 (``tox -e bench -- instructions``, gunicorn 27.0.1).
"""

from __future__ import annotations

import logging
from typing import Any

from ..shared.guard import tell_once
from .process import WorkerProcess


def shorten(cfg: Any, ours: WorkerProcess) -> None:
    """Let gunicorn call the hooks of the hot path directly, in this worker.

    The hooks in ``HOOKS`` and the user's chained hook take three calls. Before the first of them,
    ``Config`` finds no attribute with the hook's name, calls its ``__getattr__`` and searches the
    settings, which costs more than the plugin's whole hook. So this function gives ``Config`` that
    attribute. A hook that is set later replaces the user's. gunicorn's default ``pre_request`` only
    logs a debug message, which takes three calls. So it is called only if the log would write the
    message.

    :param cfg: the worker's ``Config``.
    :param ours: the parts of the plugin in this worker.
    """
    from gunicorn.config import PreRequest
    from gunicorn.glogging import Logger

    if ours.is_wrapped:
        _leave_to_the_user(cfg)
        return
    begin, end = ours.begin, ours.end
    then_begin, then_end = (
        cfg.settings[name].value.__wrapped__ for name in ("pre_request", "post_request")
    )
    would_log = (
        ours.log.error_log.isEnabledFor
        if getattr(type(ours.log), "debug", None) is Logger.debug
        else _always
    )
    is_wanted = would_log if then_begin is PreRequest.default else _always

    def pre_request(worker: Any, req: Any) -> None:
        try:
            begin(req)
        except Exception:
            tell_once("pre_request", worker)
        if is_wanted(logging.DEBUG):
            then_begin(worker, req)

    def post_request(worker: Any, req: Any, environ: Any, resp: Any) -> None:
        try:
            end(req)
        except Exception:
            tell_once("post_request", worker)
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
    # Not setattr(), because Config.__setattr__ refuses the names of settings. Not vars(cfg),
    # because attributes are looked up more slowly once the dict was requested.
    object.__setattr__(cfg, "pre_request", pre_request)
    object.__setattr__(cfg, "post_request", post_request)


def _always(level: int) -> bool:
    return True


def _leave_to_the_user(cfg: Any) -> None:
    """Show gunicorn's ASGI worker only the user's own hooks, because the overlay counts.

    gunicorn 27.0 does not call its own default hooks. If there is another ``post_request``, it
    keeps the next request of a connection waiting until the application's background tasks have
    ended.
    """
    for name in ("pre_request", "post_request"):
        _show(cfg, name)


def _show(cfg: Any, name: str) -> None:
    setting = cfg.settings[name]
    chain = setting.set

    def set_it(value: Any) -> None:
        chain(value)
        object.__setattr__(cfg, name, setting.value.__wrapped__)

    object.__setattr__(cfg, name, setting.value.__wrapped__)
    setting.set = set_it
