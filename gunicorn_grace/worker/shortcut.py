"""The hooks of the hot path, reached in one step. Worker."""

from __future__ import annotations

import logging
from typing import Any

from ..shared.guard import tell_once
from .process import WorkerProcess


def shorten(cfg: Any, ours: WorkerProcess) -> None:
    """Let the hooks of the hot path be reached in one step, in this worker.

    ``HOOKS`` and what the user has chained to it are three calls; and before the first of them
    ``Config`` finds out that it has no attribute of the hook's name, calls its ``__getattr__`` and
    looks among the settings, which costs more than all that a hook of ours does. So it gets the
    attribute. A hook that is set later takes the user's place. gunicorn's own does nothing but log
    for debugging, in three calls: whether it would is asked first.
    """
    from gunicorn.config import PreRequest
    from gunicorn.glogging import Logger

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
    # Past Config.__setattr__, which refuses the names of settings; and past vars(cfg), see
    # settings.adopt.
    object.__setattr__(cfg, "pre_request", pre_request)
    object.__setattr__(cfg, "post_request", post_request)


def _always(level: int) -> bool:
    return True
