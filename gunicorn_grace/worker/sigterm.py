"""Keeps the worker's own SIGTERM handler in place when the application installs one. Runs in
workers.

An application may install a handler of its own: at import, in a start-up event, or later in a
request. That handler would replace the one that asks whether the arbiter has dismissed this worker.
A SIGTERM to the whole process group would then end the application's streams at once, although the
instance serves for the whole delay. Under plain gunicorn such a worker may not leave at all until
SIGKILL.

So in a worker the usual ways to install a handler only note the application's: ``signal.signal``,
asyncio's ``add_signal_handler`` and ``gevent.signal_handler``. The worker's handler stays in place,
and calls the noted one when the arbiter has dismissed the worker. A handler that was installed in
another way, for example by C code, is replaced just before the worker serves.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from .classes import ASGI, tracking
from .duties import describe

Handler = Callable[[int, Any], object]

_NOTED = (
    "gunicorn-grace: the application has a SIGTERM handler of its own, %s: "
    "it is called when this worker is dismissed, not before"
)


class Sigterm:
    """The SIGTERM handlers of this worker: gunicorn's own, guarded, and the application's.

    :param log: gunicorn's logger.
    """

    def __init__(self, log: Any) -> None:
        self._log = log
        self._pid = os.getpid()
        self._install: Any = signal.signal
        self._theirs: Handler | None = None
        self._name = ""
        self._told: set[str] = set()
        self._is_first = True
        self._has_booted = False

    def keep(self, worker: Any) -> None:
        """From now on, only note the handlers that the application installs. Runs in ``post_fork``.

        :param worker: gunicorn's worker. Its ``handle_exit`` is :func:`ours`.
        """
        self._is_first = worker.age == 1
        self._keep_from_python()
        self._keep_from_loops()

    def take_back(self, worker: Any, may_leave: Callable[[], bool]) -> None:
        """Install the worker's handler again. Runs just before the worker serves.

        :param worker: gunicorn's worker.
        :param may_leave: called at SIGTERM; returns whether this worker may leave now.
        """
        self._keep_from_python()  # gevent's monkey.patch_all() has put its own function there.
        self._keep_from_loops()
        uvicorn: Any = sys.modules.get("uvicorn.server")
        if uvicorn is not None and tracking(type(worker)) == ASGI:
            self._guard_uvicorn(uvicorn.Server, may_leave)
        now = signal.getsignal(signal.SIGTERM)
        if callable(now) and self._is_theirs(now):
            self.note(now, describe(now))
        if self._theirs is not None:
            self.tell(self._name)
        # Not only if another handler is there, because Python does not know one that C code has
        # installed.
        self._install(signal.SIGTERM, worker.handle_exit)
        signal.siginterrupt(signal.SIGTERM, False)
        self._has_booted = True

    def _guard_uvicorn(self, server: Any, may_leave: Callable[[], bool]) -> None:
        """Guard the handler that uvicorn's server installs while it runs (0.20 to 0.54).

        The class is changed and not the handler, because libraries look up the server through the
        handler (sse-starlette 3.7). sse-starlette itself replaces this method when it is imported.
        """
        leave = server.handle_exit
        if getattr(leave, "__module__", None) != server.__module__:
            self.tell(describe(leave))

        @ours
        def handle_exit(server: Any, sig: int, frame: Any) -> None:
            if sig != signal.SIGTERM or may_leave():
                leave(server, sig, frame)
                if sig == signal.SIGTERM:
                    self.call_theirs(sig, frame)

        server.handle_exit = handle_exit

    def note(self, handler: Handler | None, name: str) -> None:
        """Keep the application's handler for the dismissal.

        :param handler: the handler; ``None`` if the application has taken it back.
        :param name: the handler as the log names it.
        """
        self._theirs, self._name = handler, name
        # During boot the worker class itself may install a handler and take it back (gunicorn's
        # ASGI worker).
        if handler is not None and self._has_booted:
            self.tell(name)

    def tell(self, name: str) -> None:
        """Log once that the application has a handler. At boot only the first worker logs it,
        because the application is the same in all workers.

        :param name: the handler as the log names it.
        """
        if name not in self._told and (self._is_first or self._has_booted):
            self._told.add(name)
            self._log.info(_NOTED, name)

    def call_theirs(self, sig: int, frame: Any) -> None:
        """Call the application's handler once, because the worker is dismissed.

        gunicorn already knows that the worker is to leave. So an exception that would end the
        worker is dropped, because it would cut off the request that the signal has interrupted.

        :param sig: the number of the signal.
        :param frame: the frame that the signal has interrupted.
        """
        theirs, self._theirs = self._theirs, None
        if theirs is None:
            return
        try:
            theirs(sig, frame)
        except (SystemExit, KeyboardInterrupt):
            pass
        except BaseException:
            self._log.exception("gunicorn-grace: the application's SIGTERM handler failed")

    def _is_theirs(self, handler: Any) -> bool:
        """Whether a handler is the application's, and Python would accept it. It is false in a
        child that the application has forked."""
        is_handler = callable(handler) or handler in (signal.SIG_DFL, signal.SIG_IGN)
        return is_handler and not is_ours(handler) and os.getpid() == self._pid

    def _is_put_back(self, signalnum: Any, handler: Any) -> bool:
        """Whether the application puts back the handler that it found. If a server such as
        uvicorn's installs its own handler, the application's stays noted."""
        is_sigterm = signalnum == signal.SIGTERM and os.getpid() == self._pid
        return is_sigterm and handler == signal.getsignal(signal.SIGTERM)

    def _refuse_other_threads(self) -> None:
        """Install the current handler again, because Python then checks the thread.

        :raises ValueError: this is not the main thread.
        """
        self._install(signal.SIGTERM, signal.getsignal(signal.SIGTERM) or signal.SIG_DFL)

    def _keep_from_python(self) -> None:
        if is_ours(signal.signal):
            return
        install_it = signal.signal

        @ours
        @functools.wraps(install_it)
        def install(signalnum: Any, handler: Any) -> Any:
            if signalnum != signal.SIGTERM or not self._is_theirs(handler):
                if self._is_put_back(signalnum, handler):
                    self.note(None, "")
                return install_it(signalnum, handler)
            self._refuse_other_threads()
            before = self._theirs or signal.getsignal(signalnum)
            self.note(handler if callable(handler) else None, describe(handler))
            return before

        signal.signal = install

    def _keep_from_loops(self) -> None:
        """Keep the loops of asyncio, uvloop and gevent from installing a handler of the
        application. This changes only modules that are already imported."""
        for module, name in (("asyncio.unix_events", "_UnixSelectorEventLoop"), ("uvloop", "Loop")):
            cls = getattr(sys.modules.get(module), name, None)
            if cls is not None and not is_ours(cls.add_signal_handler):
                self._keep_from_loop(cls)
        hub: Any = sys.modules.get("gevent.hub")
        if hub is not None and not is_ours(hub.signal.__init__):
            self._keep_from_gevent(hub)

    def _keep_from_loop(self, cls: Any) -> None:
        add, remove = cls.add_signal_handler, cls.remove_signal_handler

        @ours
        def add_signal_handler(loop: Any, sig: int, callback: Any, *args: Any) -> None:
            if sig != signal.SIGTERM or not self._is_theirs(callback):
                add(loop, sig, callback, *args)
                return
            try:
                self._refuse_other_threads()
            except ValueError as error:
                raise RuntimeError(str(error)) from None  # As asyncio does.
            # The signal may have interrupted the loop anywhere.
            self.note(
                lambda sig, frame: loop.call_soon_threadsafe(callback, *args), describe(callback)
            )

        def remove_signal_handler(loop: Any, sig: int) -> bool:
            if sig == signal.SIGTERM and os.getpid() == self._pid and self._theirs is not None:
                self._theirs = None
                return True
            return bool(remove(loop, sig))

        cls.add_signal_handler, cls.remove_signal_handler = (
            add_signal_handler,
            remove_signal_handler,
        )

    def _keep_from_gevent(self, hub: Any) -> None:
        init = hub.signal.__init__

        @ours
        def watch(watch: Any, signalnum: int, handler: Any, *args: Any, **kwargs: Any) -> None:
            if signalnum != signal.SIGTERM or not self._is_theirs(handler):
                init(watch, signalnum, handler, *args, **kwargs)
                return
            # A watcher would make libev take the signal from Python. So there is none, as after
            # cancel().
            watch.hub, watch.watcher = hub.get_hub(), None
            watch.handler, watch.args, watch.kwargs = handler, args, kwargs
            from gevent import spawn

            self.note(lambda sig, frame: spawn(handler, *args, **kwargs), describe(handler))

        hub.signal.__init__ = watch


def ours(function: Any) -> Any:
    """Mark a function as the plugin's."""
    function.is_gunicorn_graces = True
    return function


def is_ours(function: Any) -> bool:
    """Whether a function, or the function of a bound method, is the plugin's. asyncio's own handler
    counts too: it does nothing, and the callback in its loop was checked when it was added."""
    inner = getattr(function, "__func__", function)
    return (
        hasattr(inner, "is_gunicorn_graces") or getattr(inner, "__name__", "") == "_sighandler_noop"
    )
