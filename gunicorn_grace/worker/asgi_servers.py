"""Puts the overlay in front of the application in gunicorn's own ASGI worker and in uvicorn's.
Runs in workers.

gunicorn's worker (24.1 to 27.0) calls ``worker.asgi``, which it reads after ``post_worker_init``.

uvicorn's worker (``uvicorn_worker`` 0.2 to 0.4, and ``uvicorn.workers``) hands ``worker.wsgi`` to
uvicorn's ``Config``. ``Config`` calls it if it is a factory, and finds out whether it is ASGI 3,
ASGI 2 or WSGI (0.20 to 0.54). It would misjudge a wrapper around ``worker.wsgi``. So the overlay
wraps the application that ``Config.load`` has produced. The overlay is then also outside
``ProxyHeadersMiddleware``, and sees the connection's own addresses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import classes
from .answering import WorkerAnswers
from .process import WorkerProcess

Wrap = Callable[..., Any]


def stand_in_front_of_asgi(worker: Any, ours: WorkerProcess) -> bool:
    """Put the overlay in front of the application of an ASGI worker. Runs in
    ``post_worker_init``.

    :param worker: gunicorn's worker.
    :param ours: the parts of the plugin in this worker.
    :returns: whether the overlay is in place, or will be before the worker serves.
    """
    # Until the overlay is in place, gunicorn's hooks count the requests of gunicorn's own worker.
    # Nothing counts those of uvicorn's worker.
    ours.record.uncounted = int(ours.tracking == classes.ASGI)

    wrapped: list[Any] = []

    def wrap_app(app: Any, config: Any = None) -> Any:
        from .asgi_overlay import AsgiOverlay  # Here, because no other worker class needs it.

        overlay = AsgiOverlay(app, ours, reads_rest=ours.tracking == classes.ASGI)
        wrapped.append(config)
        ours.duties.callbacks.loop = getattr(worker, "loop", None) or _running_loop()
        ours.record.uncounted, ours.draining.sees_all = 0, True
        ours.waiting.watch()
        return overlay.serve

    ours.is_wrapped = _wrap(worker, wrap_app)
    if ours.is_wrapped:
        from .asgi_leaving import AsgiLeaving

        try:
            AsgiLeaving(worker, ours).install(lambda server: server.config in wrapped)
        except Exception:
            worker.log.exception(
                "gunicorn-grace: failed to adapt %s; it stops the way plain gunicorn stops it",
                type(worker).__name__,
            )
    return ours.is_wrapped


def answer_probes_in_front_of_asgi(worker: Any) -> bool:
    """Put only the probes in front of the application of an ASGI worker, because the instance is
    switched off (``grace_enabled``). Runs in ``post_worker_init``.

    :param worker: gunicorn's worker.
    :returns: whether the probes are in place, or will be before the worker serves.
    """

    def wrap_app(app: Any, config: Any = None) -> Any:
        from .asgi_overlay import AsgiProbes  # Here, because no other worker class needs it.

        return AsgiProbes(app, WorkerAnswers(None)).serve

    return _wrap(worker, wrap_app)


def _running_loop() -> Any:
    import asyncio

    try:
        return asyncio.get_running_loop()  # uvicorn loads the application in its loop.
    except RuntimeError:
        return None


def _wrap(worker: Any, wrap_app: Wrap) -> bool:
    """Wrap the application now, or when uvicorn loads it.

    :param worker: gunicorn's worker.
    :param wrap_app: wraps an ASGI 3 application. Under uvicorn it also gets uvicorn's ``Config``.
    :returns: whether the application is wrapped, or will be before the worker serves.
    """
    if hasattr(worker, "asgi"):
        worker.asgi = wrap_app(worker.asgi)
        return True
    config: Any = getattr(worker, "config", None)
    if not hasattr(config, "load") or not hasattr(config, "loaded"):
        return False
    if config.loaded:
        config.loaded_app = wrap_app(config.loaded_app, config)
    else:
        _wrap_when_loaded(worker, config, wrap_app)
    return True


def _wrap_when_loaded(worker: Any, config: Any, wrap_app: Wrap) -> None:
    cls = type(config)
    load = cls.load

    def load_and_wrap(self: Any) -> None:
        load(self)
        # A subclass of the worker may create another Config for the same application. The
        # application may run servers of its own, and they are left alone.
        if self is config or self.app is worker.wsgi:
            self.loaded_app = wrap_app(self.loaded_app, self)

    cls.load = load_and_wrap
