"""How an ASGI worker leaves: its loop runs on while something needs it. Runs in workers.

The servers keep track of connections only. Without this module, the end of the loop would cut off a
task that has taken a hold, and a background task whose response the client has already read.
uvicorn would also close its idle connections as soon as it is dismissed, which resets a request
that is just on its way (0.20 to 0.54).

Both servers end the application's lifespan last. This module delays that end until all work is
done, so that the application's database is still open for the last task.
"""

from __future__ import annotations

import signal
import sys
import time
from asyncio import sleep
from collections.abc import Awaitable, Callable
from typing import Any

from ..shared.agreed import LINGER
from ..shared.cells import NS
from .asgi_messages import is_websocket
from .classes import SHORT_LINGER
from .draining import TICK
from .process import WorkerProcess
from .unfinished import END_OF_DRAIN


class AsgiLeaving:
    """Waits in the loop of a leaving ASGI worker.

    :param worker: gunicorn's worker.
    :param ours: the parts of the plugin in this worker.
    """

    def __init__(self, worker: Any, ours: WorkerProcess) -> None:
        self._worker = worker
        self._ours = ours
        self._own_limit = 0

    def install(self, is_ours: Callable[[Any], bool]) -> None:
        """Change the worker's class, or uvicorn's ``Server``, in this process.

        :param is_ours: returns whether a uvicorn server belongs to the worker. The application may
            have started others.
        """
        uvicorn: Any = sys.modules.get("uvicorn.server")
        if hasattr(self._worker, "asgi"):
            self._install_in_gunicorn(type(self._worker))
        elif uvicorn is not None:
            self._install_in_uvicorn(uvicorn.Server, is_ours)

    def _install_in_gunicorn(self, cls: Any) -> None:
        shutdown = cls._shutdown

        async def wait_and_shutdown(worker: Any) -> None:
            def is_hurried() -> bool:
                return getattr(worker, "_quick_shutdown", False) or self._ours.leaving.is_hurried

            self._begin()
            worker.lifespan = _Lifespan(worker.lifespan, lambda: self._wait_for_duties(is_hurried))
            await shutdown(worker)

        cls._shutdown = wait_and_shutdown

    def _install_in_uvicorn(self, cls: Any, is_ours: Callable[[Any], bool]) -> None:
        shutdown = cls.shutdown

        async def wait_and_shutdown(server: Any, sockets: Any = None) -> None:
            if not is_ours(server):
                await shutdown(server, sockets)
                return

            def is_hurried() -> bool:
                captured = getattr(server, "_captured_signals", ())
                return (
                    server.force_exit or signal.SIGINT in captured or self._ours.leaving.is_hurried
                )

            self._begin()
            # As uvicorn does first.
            for one in (*server.servers, *(sockets or ())):
                one.close()
            server.lifespan = _Lifespan(server.lifespan, lambda: self._wait_for_duties(is_hurried))
            await self._linger(lambda: bool(server.server_state.connections), is_hurried)
            await shutdown(server, sockets)

        cls.shutdown = wait_and_shutdown

    def _begin(self) -> None:
        self._ours.is_leaving = True
        self._own_limit = time.monotonic_ns() + round(self._worker.cfg.graceful_timeout * NS)

    async def _linger(
        self, has_connections: Callable[[], bool], is_hurried: Callable[[], bool]
    ) -> None:
        """Keep serving the requests that are on their way on kept-alive connections. Each response
        says ``Connection: close``."""
        ours, header = self._ours, self._ours.memory.header
        is_told = ours.leaving.is_dismissed() or ours.memory.is_terminating()
        until = time.monotonic() + (LINGER if is_told else SHORT_LINGER)

        def is_worth_waiting() -> bool:
            if time.monotonic() < until:
                return True
            # uvicorn would reset a request of which only a part was read. The drain closes its
            # connection once the rest is no longer expected. uvicorn would also close WebSockets,
            # which the user wants to keep if websocket_close is 0.
            are_kept = not ours.settings.websocket_close and any(
                map(is_websocket, list(ours.counter.in_flight))
            )
            return (
                bool(header.drain and (ours.record.half_read or are_kept)) and not self._is_over()
            )

        while has_connections() and is_worth_waiting() and not is_hurried():
            self._worker.tmp.notify()
            await sleep(TICK)

    async def _wait_for_duties(self, is_hurried: Callable[[], bool]) -> None:
        """Wait for holds, callbacks and calls of the application, up to the limit of the worker."""
        ours = self._ours
        ours.duties.callbacks.leave()
        while (ours.duties.left() or ours.counter.in_flight) and not is_hurried():
            if self._is_over():
                return
            self._worker.tmp.notify()
            await sleep(TICK)

    def _is_over(self) -> bool:
        """Whether the worker's limit has passed. Shortly before the limit, log what is left."""
        now, drain_limit = time.monotonic_ns(), self._ours.memory.header.drain_limit
        limit = drain_limit or self._own_limit
        what = END_OF_DRAIN if drain_limit else "graceful_timeout"
        self._ours.unfinished.tell_before(what, limit, now)
        return now >= limit


class _Lifespan:
    """Takes the place of the server's lifespan.

    :param lifespan: the server's lifespan; gunicorn has ``None`` if the application does not
        support it.
    :param wait: called and awaited before the lifespan ends.
    """

    def __init__(self, lifespan: Any, wait: Callable[[], Awaitable[None]]) -> None:
        self._lifespan = lifespan
        self._wait = wait

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lifespan, name)

    async def shutdown(self) -> None:
        """Wait, then shut the application down."""
        await self._wait()
        if self._lifespan is not None:
            await self._lifespan.shutdown()
