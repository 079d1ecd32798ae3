"""The differences between worker classes, version by version.

The plugin needs two things from a worker class: hooks around each request, and a SIGTERM handler
that the plugin can guard. This module changes a class that lacks one of them, or that loses
requests on its own when it stops. It does so only in the worker process, and only if the class
looks as described. A failure is logged, and the worker then stops the way plain gunicorn stops it.
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
from functools import partial
from types import SimpleNamespace
from typing import Any

from ..shared.agreed import LINGER, POKE
from .asgi_lingering import let_linger
from .connections import unread

SHORT_LINGER = 0.3
"""The seconds that replace ``LINGER`` in a worker that recycles itself. They are fewer because the
replacement starts only when this worker has exited."""

HOOKS, WSGI, ASGI_HOOKS, ASGI = "hooks", "wsgi", "asgi hooks", "asgi"
"""The ways to count requests: by gunicorn's hooks, by a wrapper around the WSGI application, by the
hooks of gunicorn's own ASGI worker, or around the ASGI application (uvicorn's worker). Both ASGI
workers count in the overlay instead, once it is in front of the application."""

HOOKED = frozenset({"SyncWorker", "ThreadWorker", "AsyncWorker"})
"""Worker classes that call ``pre_request`` and ``post_request`` around every request (gunicorn 22.0
to 27.0)."""

WRAPPED = frozenset({"GeventPyWSGIWorker", "TornadoWorker"})
"""Worker classes that call the WSGI application but not these hooks. Their requests are counted
around the application."""


def tracking(worker_class: type) -> str | None:
    """Return how the requests of a worker class are counted; ``None`` if they cannot be
    counted."""
    names = {cls.__name__ for cls in worker_class.__mro__}
    if names & WRAPPED:
        return WSGI
    if "ASGIWorker" in names:
        return ASGI_HOOKS
    if "UvicornWorker" in names:
        return ASGI
    return HOOKS if names & HOOKED else None


def owner_of_requests(worker_class: type) -> Callable[[], Any]:
    """Return a function that identifies what serves the current request: it returns the thread's
    number, the greenlet, or the asyncio task."""
    if is_async(worker_class):
        from greenlet import getcurrent

        return getcurrent
    if tracking(worker_class) in (ASGI_HOOKS, ASGI):
        from asyncio import current_task

        return current_task
    return threading.get_ident


def is_threaded(worker_class: type) -> bool:
    """Whether a worker may serve requests in more than one thread."""
    return not {cls.__name__ for cls in worker_class.__mro__} & {"SyncWorker", "AsyncWorker"}


def is_async(worker_class: type) -> bool:
    """Whether greenlets serve the requests, as in the classes of gevent and eventlet."""
    return any(cls.__name__ == "AsyncWorker" for cls in worker_class.__mro__)


def is_sync(worker_class: type) -> bool:
    """Whether a worker serves each connection as soon as it has accepted it."""
    return any(cls.__name__ == "SyncWorker" for cls in worker_class.__mro__)


def adapt(
    worker: Any,
    is_dismissed: Callable[[], bool],
    is_terminating: Callable[[], bool],
    close: Callable[..., None],
) -> None:
    """Correct the faults of the worker's class. Runs in the worker, after the fork.

    :param worker: gunicorn's worker.
    :param is_dismissed: returns whether the arbiter has dismissed the worker.
    :param is_terminating: returns whether the shutdown of the instance has begun.
    :param close: closes a connection after its last response
        (:meth:`gunicorn_grace.worker.lingering.Lingering.close`).
    """
    cls = type(worker)
    how = tracking(cls)
    if how == HOOKS:
        _close_by(close)
    names = {base.__name__ for base in cls.__mro__}
    if how in (ASGI_HOOKS, ASGI):
        _take_signals_from_the_loop(cls)
    protocol: Any = sys.modules.get("gunicorn.asgi.protocol")
    if (
        protocol is not None
        and "_conn_lost_handled" not in protocol.ASGIProtocol.__init__.__code__.co_names
    ):
        _count_closed_connections(protocol.ASGIProtocol)
    if protocol is not None:
        let_linger(protocol.ASGIProtocol)
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
        # The module uses the clock only for graceful_timeout (22.0 to 27.0). If the wall clock were
        # set forward during that time, requests in flight would be cut off.
        ggevent.time = SimpleNamespace(time=time.monotonic)
        ggevent.StreamServer = _serving_after_close(ggevent.StreamServer)


def _close_by(close: Callable[..., None]) -> None:
    """Let ``close`` close the connections of sync, gthread, gevent and eventlet workers (22.0 to
    27.0). gunicorn's own functions reset connections with unread bytes, or wait for the client."""
    util: Any = sys.modules["gunicorn.util"]

    def close_in_handler(sock: Any, *args: Any, **kwargs: Any) -> None:
        # Only the local variables of handle() know the parser.
        close(sock, sys._getframe(1).f_locals.get("parser"), waits=False)

    def close_gracefully(sock: Any, *args: Any, **kwargs: Any) -> None:
        close(sock, sys._getframe(1).f_locals.get("parser"), waits=True)

    util.close = close_in_handler
    if hasattr(util, "close_graceful"):
        util.close_graceful = close_gracefully
    gthread: Any = sys.modules.get("gunicorn.workers.gthread")
    if gthread is not None:

        def close_connection(self: Any, graceful: bool = False) -> None:
            close(self.sock, self.parser, waits=graceful)

        gthread.TConn.close = close_connection


def adapt_booted(worker: Any, is_terminating: Callable[[], bool]) -> None:
    """Correct the faults that can be corrected only once the application is loaded. Runs in the
    worker, just before it serves.

    :param worker: gunicorn's worker.
    :param is_terminating: returns whether the shutdown of the instance has begun.
    """
    if hasattr(worker, "poller") and not hasattr(worker, "method_queue"):
        # gthread 22.0 and 23.0 leave their poller only once a second. Signals write to PIPE
        # (set_wakeup_fd), so polling it wakes them.
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
    """Send a GOAWAY on HTTP/2 connections after their last open stream, once the shutdown has begun
    (RFC 9113, section 6.8). HTTP/2 has no ``Connection: close``. For gunicorn 27.0.

    The GOAWAY is not sent in the middle of streams, because a client built on h2 (httpx) would lose
    them. It is not sent while data is unread either: gthread and gevent serve one stream after the
    other, and the client would have to send the waiting requests again elsewhere.
    """
    cleanup_stream, receive_data = cls.cleanup_stream, cls.receive_data
    is_async = not hasattr(cls, "pump")

    def cleanup(self: Any, stream_id: int) -> None:
        cleanup_stream(self, stream_id)
        if self.is_closed or not is_terminating():
            return
        if is_async:
            # Pretend that the client has sent a GOAWAY. The loop, which reads all the time, then
            # closes after the last stream.
            self.draining, self.peer_last_stream_id = True, 2**31 - 1
            return
        while not self.is_closed and _has_unread(self.sock):
            self.pump()
        if not (self.streams or self.pending_requests or self._deferred_events):
            self.close(last_stream_id=self.h2_conn.highest_inbound_stream_id)

    def receive(self: Any, data: bytes | None = None) -> Any:
        if data == b"":
            # A leaving worker passes no data in order to get the queued requests. gunicorn 27.0
            # takes that for the end of the connection, drops the queue, and sends no GOAWAY.
            queued = list(self.pending_requests)
            self.pending_requests.clear()
            return self._live_requests(queued)
        requests = receive_data(self, data)
        if self.is_closed and not requests and is_terminating():
            # The drain has shut the reading side (see Draining._close_idle). If the client has gone
            # instead, the GOAWAY does no harm.
            self._closed = False
            self.close(last_stream_id=self.h2_conn.highest_inbound_stream_id)
        return requests

    cls.cleanup_stream = cleanup
    if not is_async:
        cls.receive_data = receive


def _has_unread(sock: Any) -> bool:
    return bool(unread(sock) or (hasattr(sock, "pending") and sock.pending()))


def _take_signals_from_the_loop(cls: Any) -> None:
    """Install ``handle_exit`` and ``handle_winch`` in a worker that would not call them.

    gunicorn's ASGI worker gives SIGTERM to its loop, which does not run while the application is
    being loaded. uvicorn's worker leaves the default action in place until its server runs, and
    again afterwards, when uvicorn sends itself the signal once more. That signal would end the
    worker without a call of ``worker_exit``.
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
    """Let gunicorn's ASGI worker notice the end of a connection that it closed itself.

    Otherwise it waits for that connection for the whole drain when it has to leave (25.2 and 25.3;
    fixed in 26.1).
    """
    lost = cls.connection_lost

    def connection_lost(self: Any, exc: Exception | None) -> None:
        # Closing has set it, and the original method would return early. asyncio calls this once.
        self._closed = False
        lost(self, exc)

    cls.connection_lost = connection_lost


def _let_gthread_finish(cls: Any, linger: Callable[[], float]) -> None:
    """Let a leaving gthread worker of gunicorn 22.0 and 23.0 serve the connections that it has
    accepted.

    gunicorn closes them unread, which resets the requests that clients have just sent. Measured on
    23.0 at six reloads: 8 of 1529 requests on new and 13 of 1443 on kept-alive connections were
    lost; with this change, none of 3219. It matters in a drain too, because a listener that is not
    sealed (systemd) goes on accepting. And it matters when a worker recycles itself, because the
    clients of its connections were not told to close.
    """
    make_pool = cls.get_thread_pool

    def get_thread_pool(self: Any) -> Any:
        pool = make_pool(self)
        shutdown = pool.shutdown

        def finish(*args: Any, **kwargs: Any) -> None:
            # run() calls this after its loop, just before it closes the connections.
            if not self.alive:
                _serve_what_was_accepted(self, linger())
            shutdown(*args, **kwargs)

        pool.shutdown = finish
        return pool

    cls.get_thread_pool = get_thread_pool


def _let_gthread_go_at_once(cls: Any) -> None:
    """Let SIGQUIT and SIGINT end a gthread worker that is just passing a request to its threads.

    gunicorn's handler shuts the pool down (22.0 to 27.0), which waits for a lock. The interrupted
    main thread holds that lock while it submits a request, and submitting waits for a thread to
    start. Measured on 27.0.1 with a request just before the signal: 3 of about 40 workers hung
    until SIGKILL, and ``worker_int`` was not called. This handler tells the pool's threads to end
    without taking the lock. The interpreter also wakes them at its exit, but it does not know a
    thread that is just being started.
    """
    leave_at_once = cls.handle_quit

    def handle_quit(self: Any, sig: int, frame: Any) -> None:
        pool = getattr(self, "tpool", None)
        if pool is not None:
            pool.shutdown = lambda *args, **kwargs: None
            # SimpleQueue.put() is reentrant, so a signal handler may call it.
            if isinstance(getattr(pool, "_work_queue", None), queue.SimpleQueue):
                pool._shutdown = True
                pool._work_queue.put(None)
        leave_at_once(self, sig, frame)

    cls.handle_quit = handle_quit


def _serve_what_was_accepted(worker: Any, linger: float) -> None:
    """Continue like gunicorn's loop but accept no connection. Each response says close, because the
    worker is no longer alive."""
    poller, pipe = worker.poller, worker.PIPE[0]
    for sock in worker.sockets:
        poller.unregister(sock)
    until = time.monotonic() + linger
    while time.monotonic() < until:
        with worker._lock:
            if not any(key.fd != pipe for key in poller.get_map().values()):
                return
        worker.tmp.notify()  # Not worker.notify(), because a subclass's may end the process.
        for key, _ in poller.select(0.05):
            key.data(key.fileobj)


def _serving_after_close(cls: Any) -> Any:
    """Return a subclass of gevent's server that still serves the connections which it accepted
    before it closed its listener.

    Without this, a connection whose TLS handshake ends after the close is lost: the server no
    longer has a handler (gevent 24.10 to 26.9), and gunicorn asks the closed listener for its name
    (22.0 to 27.0).
    """

    def __init__(self: Any, listener: Any, handle: Any = None, **options: Any) -> None:
        name = listener.getsockname()
        if isinstance(handle, partial) and handle.args[:1] == (listener,):
            named = SimpleNamespace(getsockname=lambda: name)
            handle = partial(handle.func, named, *handle.args[1:])
        cls.__init__(self, listener, handle=handle, **options)

    def close(self: Any) -> None:
        handle = self.__dict__.get("handle")
        cls.close(self)
        if handle is not None:
            self.handle = handle

    return type(
        cls.__name__, (cls,), {"__init__": __init__, "close": close, "__module__": cls.__module__}
    )


def _let_tornado_finish(cls: Any, is_dismissed: Callable[[], bool]) -> None:
    """Let a tornado worker leave only when it has nothing left to do.

    gunicorn's tornado worker stops its loop a second after it stops listening, even in the middle
    of a response. Its ``run()`` also loses a SIGTERM that came just before (22.0 to 27.0).
    """
    beat = cls.heartbeat

    def heartbeat(self: Any) -> None:
        if is_dismissed():
            self.alive = False
        if self.alive or self.server_alive or not _is_tornado_busy(getattr(self, "server", None)):
            beat(self)

    cls.heartbeat = heartbeat


def _is_tornado_busy(server: Any) -> bool:
    # A connection whose request is being served does not read. An idle one waits for the next
    # header (5.0 to 6.6).
    streams = [connection.stream for connection in getattr(server, "_connections", ())]
    return any(
        stream.writing() or not stream.reading() for stream in streams if not stream.closed()
    )


def is_tornado_app(app: Any) -> bool:
    """Whether gunicorn's tornado worker serves this application natively, not through WSGI."""
    web, wsgi = sys.modules.get("tornado.web"), sys.modules.get("tornado.wsgi")
    return (
        web is not None
        and wsgi is not None
        and isinstance(app, (web.Application, wsgi.WSGIContainer))
    )
