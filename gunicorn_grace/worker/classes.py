"""What is special about each worker class: the only module that knows their insides, version by
version.

The plugin needs little of a worker: hooks around each request, and a SIGTERM handler that can be
asked first. Where a class has no such thing, or loses requests of itself when it stops, it is
changed here: in the process of the worker and nowhere else, and only where the class is as it is
described. What fails is logged, and the worker then goes as gunicorn's own.
"""

from __future__ import annotations

import os
import queue
import selectors
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from .connections import unread

LINGER = 2.0
"""Seconds that an idle connection is kept open after draining began, so that a request which its
client is just sending is answered, with ``Connection: close`` (RFC 9112, section 9.6). gunicorn
27.0 lingers as long itself."""

SHORT_LINGER = 0.3
"""The same, where nobody else serves meanwhile: a worker that recycles itself is replaced when it
is gone."""

POKE = signal.SIGWINCH
"""The signal by which the arbiter tells a worker to look at the phase. Workers ignore it otherwise,
and its default is to be ignored (signal(7)), so a worker class with handlers of its own is not
harmed."""

HOOKS, WSGI, ASGI_HOOKS, ASGI = "hooks", "wsgi", "asgi hooks", "asgi"
"""How requests are counted: by hooks, around the WSGI application, by the hooks of gunicorn's own
ASGI worker, or, if the application is wrapped in it, by :class:`gunicorn_grace.asgi.Probes`."""

HOOKED = frozenset({"SyncWorker", "ThreadWorker", "AsyncWorker"})
"""Worker classes of gunicorn 22.0 to 27.0 that call ``pre_request`` and ``post_request`` around
every request."""

WRAPPED = frozenset({"GeventPyWSGIWorker", "TornadoWorker"})
"""Those that do not, but call the WSGI application: requests are counted around that."""


def tracking(worker_class: type) -> str | None:
    """How the requests of a worker class are counted; ``None`` when they cannot be."""
    names = {cls.__name__ for cls in worker_class.__mro__}
    if names & WRAPPED:
        return WSGI
    if "ASGIWorker" in names:
        return ASGI_HOOKS
    if "UvicornWorker" in names:
        return ASGI
    return HOOKS if names & HOOKED else None


def owner_of_requests(worker_class: type) -> Callable[[], Any]:
    """What tells, called while a request is served, who serves it: the thread's number, the
    greenlet, or the task."""
    if any(cls.__name__ == "GeventWorker" for cls in worker_class.__mro__):
        from greenlet import getcurrent

        return getcurrent
    if tracking(worker_class) in (ASGI_HOOKS, ASGI):
        from asyncio import current_task

        return current_task
    return threading.get_ident


def is_threaded(worker_class: type) -> bool:
    """Whether requests may be served in more than one thread of a worker."""
    return not {cls.__name__ for cls in worker_class.__mro__} & {"SyncWorker", "AsyncWorker"}


def adapt(
    worker: Any,
    may_leave: Callable[[], bool],
    is_dismissed: Callable[[], bool],
    is_terminating: Callable[[], bool],
) -> None:
    """Change what the worker's class would do wrong. Runs in the worker, after the fork.

    :param may_leave: asked at SIGTERM: whether it is for this worker to go now.
    :param is_dismissed: whether the arbiter has told it to go.
    :param is_terminating: whether the shutdown of the instance has begun.
    """
    cls = type(worker)
    how = tracking(cls)
    names = {base.__name__ for base in cls.__mro__}
    if how in (ASGI_HOOKS, ASGI):
        _take_signals_from_the_loop(cls)
    protocol: Any = sys.modules.get("gunicorn.asgi.protocol")
    if (
        protocol is not None
        and "_conn_lost_handled" not in protocol.ASGIProtocol.__init__.__code__.co_names
    ):
        _count_closed_connections(protocol.ASGIProtocol)
    if "uvicorn.server" in sys.modules and how == ASGI:
        _ask_before_uvicorn_leaves(sys.modules["uvicorn.server"], may_leave)
    if "TornadoWorker" in names:
        _let_tornado_finish(cls, is_dismissed)
    if "ThreadWorker" in names:
        if not hasattr(cls, "set_accept_enabled"):
            _let_gthread_finish(
                cls, lambda: LINGER if is_dismissed() or is_terminating() else SHORT_LINGER
            )
        _let_gthread_go_at_once(cls)
    if "GeventWorker" in names:
        ggevent: Any = sys.modules["gunicorn.workers.ggevent"]
        # All that it asks the clock is how long graceful_timeout has run (22.0 to 27.0): a wall
        # clock that is set forth meanwhile would cut off what is in flight.
        ggevent.time = SimpleNamespace(time=time.monotonic)


def adapt_booted(worker: Any, is_terminating: Callable[[], bool]) -> None:
    """The same, once the application is loaded and the worker is about to run."""
    if hasattr(worker, "poller") and not hasattr(worker, "method_queue"):
        # gthread 22.0 and 23.0 look up from their poller once a second; signals write to PIPE
        # (set_wakeup_fd).
        worker.poller.register(
            worker.PIPE[0], selectors.EVENT_READ, lambda pipe: os.read(pipe, 4096)
        )
    if "h2" in getattr(worker.cfg, "http_protocols", ()):
        from gunicorn.http2.async_connection import AsyncHTTP2Connection
        from gunicorn.http2.connection import HTTP2ServerConnection

        for cls in (HTTP2ServerConnection, AsyncHTTP2Connection):
            if "draining" in cls.__init__.__code__.co_names:
                _go_away_after_streams(cls, is_terminating)


def _go_away_after_streams(cls: Any, is_terminating: Callable[[], bool]) -> None:
    """Let HTTP/2 connections, which know no ``Connection: close``, get a GOAWAY after the last of
    the streams that they have open once the shutdown has begun (RFC 9113, section 6.8). gunicorn
    27.0.

    Not in the middle of streams: a client built on h2 (httpx) would lose them. And not while
    something is unread: gthread and gevent serve one stream after the other, and what waits would
    have to be sent elsewhere once more."""
    cleanup_stream, receive_data = cls.cleanup_stream, cls.receive_data
    is_async = not hasattr(cls, "pump")

    def cleanup(self: Any, stream_id: int) -> None:
        cleanup_stream(self, stream_id)
        if self.is_closed or not is_terminating():
            return
        if is_async:
            # As if the client had sent a GOAWAY: its loop, which reads all the time, then closes
            # after the last stream.
            self.draining, self.peer_last_stream_id = True, 2**31 - 1
            return
        while not self.is_closed and _has_unread(self.sock):
            self.pump()
        if not (self.streams or self.pending_requests or self._deferred_events):
            self.close(last_stream_id=self.h2_conn.highest_inbound_stream_id)

    def receive(self: Any, data: bytes | None = None) -> Any:
        if data == b"":
            # A worker that leaves asks so for what is queued. gunicorn 27.0 takes it for the end of
            # the connection, drops the queue, and sends no GOAWAY.
            queued = list(self.pending_requests)
            self.pending_requests.clear()
            return self._live_requests(queued)
        requests = receive_data(self, data)
        if self.is_closed and not requests and is_terminating():
            # The drain shut its reading side, see _close_idle; otherwise the client is gone, and
            # nobody is told.
            self._closed = False
            self.close(last_stream_id=self.h2_conn.highest_inbound_stream_id)
        return requests

    cls.cleanup_stream = cleanup
    if not is_async:
        cls.receive_data = receive


def _has_unread(sock: Any) -> bool:
    return bool(unread(sock) or (hasattr(sock, "pending") and sock.pending()))


def _take_signals_from_the_loop(cls: Any) -> None:
    """Install ``handle_exit`` and ``handle_winch`` in a worker that would not ask them.

    gunicorn's ASGI worker gives SIGTERM to its loop, which does not run while the application is
    loaded; uvicorn's has the default action until its server runs, and after it, when uvicorn sends
    itself the signal once more: the worker would die of it, and ``worker_exit`` not be called.
    """
    init_signals = cls.init_signals

    def take(self: Any) -> None:
        init_signals(self)
        for number, handler in ((signal.SIGTERM, self.handle_exit), (POKE, self.handle_winch)):
            if getattr(self, "loop", None) is not None:
                self.loop.remove_signal_handler(number)
            signal.signal(number, handler)
            signal.siginterrupt(number, False)

    cls.init_signals = take


def _count_closed_connections(cls: Any) -> None:
    """gunicorn's ASGI worker does not notice the end of a connection that it closed itself, and
    waits for it when it is to leave, for all of the drain (25.2 and 25.3; mended in 26.1)."""
    lost = cls.connection_lost

    def connection_lost(self: Any, exc: Exception | None) -> None:
        self._closed = False  # Set when it began to close; asyncio calls this once.
        lost(self, exc)

    cls.connection_lost = connection_lost


def _ask_before_uvicorn_leaves(module: Any, may_leave: Callable[[], bool]) -> None:
    """uvicorn's server takes SIGTERM for itself while it runs (0.20 to 0.54)."""
    leave = module.Server.handle_exit

    def handle_exit(self: Any, sig: int, frame: Any) -> None:
        if sig != signal.SIGTERM or may_leave():
            leave(self, sig, frame)

    module.Server.handle_exit = handle_exit


def _let_gthread_finish(cls: Any, linger: Callable[[], float]) -> None:
    """Let a gthread worker of gunicorn 22.0 and 23.0 that leaves serve the connections that it has
    accepted.

    Theirs closes them unread, which resets what a client has just sent: measured on 23.0 at six
    reloads, 8 of 1529 requests on new and 13 of 1443 on kept-alive connections; so none of 3219. In
    a drain too: a listener that is not sealed (systemd) goes on accepting, and a worker that
    recycles itself has connections that nobody told to close.
    """
    make_pool = cls.get_thread_pool

    def get_thread_pool(self: Any) -> Any:
        pool = make_pool(self)
        shutdown = pool.shutdown

        def finish(*args: Any, **kwargs: Any) -> None:
            # run() calls this when its loop has ended, and closes the connections next.
            if not self.alive:
                _serve_what_was_accepted(self, linger())
            shutdown(*args, **kwargs)

        pool.shutdown = finish
        return pool

    cls.get_thread_pool = get_thread_pool


def _let_gthread_go_at_once(cls: Any) -> None:
    """Let SIGQUIT and SIGINT end a gthread worker that is just handing a request to its threads.

    Their handler shuts the pool down (22.0 to 27.0), which waits for a lock; the main thread, which
    it interrupts, has it while it submits, and submitting waits for a thread to start. Measured on
    27.0.1: with a request just before the signal, 3 workers of some 40 hung until SIGKILL, and
    ``worker_int`` was not called. Here the pool's threads are told without the lock; the
    interpreter, which wakes them at its exit as well, does not know the one that is just started.
    """
    leave_at_once = cls.handle_quit

    def handle_quit(self: Any, sig: int, frame: Any) -> None:
        pool = getattr(self, "tpool", None)
        if pool is not None:
            pool.shutdown = lambda *args, **kwargs: None
            if isinstance(
                getattr(pool, "_work_queue", None), queue.SimpleQueue
            ):  # Its put() may interrupt itself.
                pool._shutdown = True
                pool._work_queue.put(None)
        leave_at_once(self, sig, frame)

    cls.handle_quit = handle_quit


def _serve_what_was_accepted(worker: Any, linger: float) -> None:
    """Go on as gunicorn's loop does, but accept nothing: each response says close, as the worker is
    not alive."""
    poller, pipe = worker.poller, worker.PIPE[0]
    for sock in worker.sockets:
        poller.unregister(sock)
    until = time.monotonic() + linger
    while time.monotonic() < until:
        with worker._lock:
            if not any(key.fd != pipe for key in poller.get_map().values()):
                return
        worker.notify()
        for key, _ in poller.select(0.05):
            key.data(key.fileobj)


def _let_tornado_finish(cls: Any, is_dismissed: Callable[[], bool]) -> None:
    """Let a tornado worker go when it has nothing to do: gunicorn's stops its loop a second after
    it stops listening, in the middle of a response if need be, and its ``run()`` forgets a SIGTERM
    that came just before (22.0 to 27.0).
    """
    beat = cls.heartbeat

    def heartbeat(self: Any) -> None:
        if is_dismissed():
            self.alive = False
        if self.alive or self.server_alive or not _is_tornado_busy(getattr(self, "server", None)):
            beat(self)

    cls.heartbeat = heartbeat


def _is_tornado_busy(server: Any) -> bool:
    # A connection whose request is being served does not read; an idle one waits for the next
    # header (5.0 to 6.6).
    streams = [connection.stream for connection in getattr(server, "_connections", ())]
    return any(
        stream.writing() or not stream.reading() for stream in streams if not stream.closed()
    )


def is_tornado_app(app: Any) -> bool:
    """Whether gunicorn's tornado worker serves this as it is, and not as a WSGI application."""
    web, wsgi = sys.modules.get("tornado.web"), sys.modules.get("tornado.wsgi")
    return (
        web is not None
        and wsgi is not None
        and isinstance(app, (web.Application, wsgi.WSGIContainer))
    )
