"""An open-loop load: requests start when they are due, whether or not earlier ones were answered.

In a closed loop, each client waits for its answer. Such a load slows down with the service, and so
hides the losses of a stall. Requests that the generator itself could not start in time are counted
and skipped, because sending them in a burst would not be a steady load.

There are no retries. Like real connection pools, the pools here notice that the server has closed
an idle connection, and do not use it. A request that was sent but not answered is lost.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from ..kubernetes.routing import EndpointTable, NoEndpoint
from .connection import ClientConnection, Ending, connect, connect_failed, record_of, take_idle
from .held import HeldClients
from .mix import RequestMix
from .requests import PlannedRequest
from .running import RunningLoad
from .tally import ConnectionKind, RequestOutcome, RequestRecord, Tally
from .wire import show_address


class Load(RunningLoad):
    """A steady stream of requests over an ``EndpointTable``, from a thread of its own.

    :param table: chooses the instance for each new connection.
    :param rate: requests per second.
    :param paths: targets of GET requests, taken in turn.
    :param requests: requests to send in place of ``paths``, each as often as its weight.
    :param keepalive_share: share of the requests that use kept-alive connections, 0 to 1.
    :param slow_path: request target of slow requests.
    :param slow_share: share of the requests that are slow ones, 0 to 1.
    :param timeout: seconds that a request may take, including connecting.
    :param clients: the number of clients that share the requests, each with its own pool. A single
        pool would always use the connection that it got back last, and so test only one instance.
    :param host: the ``Host`` header; None for the endpoint's address.
    :param think: seconds that a kept-alive connection rests before its client uses it again. The
        longer they rest, the more of them are open, and some reach the server's keep-alive timeout.
    :param slow_node_share: share of the requests that an additional client sends, from the slow
        node of a ``Lag``. Client n uses the routing of node n, and this client is the last one.
    :param seed: seed of the random choices. Loads with the same seed send the same requests at the
        same times.
    :param stream_path: see ``HeldClients``, also for ``websocket_path`` and ``held``.

    :raises ValueError: a number is out of its range.
    """

    def __init__(
        self,
        table: EndpointTable,
        *,
        rate: float = 100.0,
        paths: Sequence[str] = ("/",),
        keepalive_share: float = 0.5,
        slow_path: str | None = None,
        slow_share: float = 0.0,
        timeout: float = 10.0,
        clients: int = 10,
        host: str | None = None,
        seed: int = 0,
        requests: Sequence[PlannedRequest] = (),
        think: float = 0.0,
        slow_node_share: float = 0.0,
        stream_path: str | None = None,
        websocket_path: str | None = None,
        held: int = 10,
    ) -> None:
        if rate <= 0:
            raise ValueError(f"rate {rate:g} is not above 0 requests per second")
        if timeout <= 0:
            raise ValueError(f"timeout {timeout:g} is not above 0 s")
        if not 0 <= think < float("inf"):
            raise ValueError(f"think {think:g} s is not 0 s or more")
        self.mix: RequestMix = RequestMix(
            tuple(requests) or tuple(PlannedRequest(path) for path in paths),
            slow_path=slow_path,
            slow_share=slow_share,
            keepalive_share=keepalive_share,
            clients=clients,
            slow_node_share=slow_node_share,
            host=host,
            seed=seed,
        )
        self.host = host
        self.table = table
        self.think = think
        super().__init__(Tally(rate=rate), timeout)
        # The routing has its own generator, because the service decides when connections are made.
        self._routing = random.Random(seed)
        self._held = HeldClients(
            table,
            stream_path=stream_path,
            websocket_path=websocket_path,
            held=held,
            clients=clients,
            timeout=timeout,
            host=host,
            seed=seed,
            record=self._record,
        )
        self._pools: list[deque[ClientConnection]] = [deque() for _ in range(clients + 1)]
        self._tasks: set[asyncio.Task[None]] = set()
        self._connections: set[ClientConnection] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._finish: asyncio.Event | None = None
        self._abandon = False
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)

    # -- from any thread ----

    def take(self) -> Tally:
        """Return the records and lags since the last call, and remove them here.

        Otherwise the garbage collector would look through all records again and again. With a
        hundred thousand records, that takes a tenth of a second each time.
        """
        tally = self._tally
        records, lags = len(tally.records), len(tally.lags)
        taken = replace(tally, records=tally.records[:records], lags=tally.lags[:lags])
        del tally.records[:records], tally.lags[:lags]
        return taken

    def start(self) -> Load:
        """Begin to send requests. Returns once the event loop runs."""
        self._thread.start()
        with self._progress:
            self._progress.wait_for(lambda: self._finish is not None or self._ended)
        return self

    def stop(self, abandon: bool = False) -> Tally:
        """Start no more requests, wait for those under way up to ``timeout`` seconds, then close.

        :param abandon: whether not to wait for requests under way, and not to count them.

        :raises LoadFailed: the load failed, so the counts mean nothing.
        """
        self._abandon = self._abandon or abandon
        if self._loop is not None and self._finish is not None and not self._ended:
            with suppress(RuntimeError):  # it has just ended by itself
                self._loop.call_soon_threadsafe(self._finish.set)
        if self._thread.ident is not None:
            self._thread.join()
        if self._problem is not None:
            raise self._failed() from self._problem
        return self._tally

    def __enter__(self) -> Load:
        return self if self._thread.ident is not None else self.start()

    # -- in the thread ----

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except Exception as error:
            self._problem = error
        finally:
            with self._progress:
                self._ended = True
                self._progress.notify_all()

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._finish = asyncio.Event()
        with self._progress:
            self._progress.notify_all()
        schedule = asyncio.create_task(self._schedule())
        finish = asyncio.create_task(self._finish.wait())
        for client in self._held.start():
            self._watch(client)
        try:
            await asyncio.wait({schedule, finish}, return_when=asyncio.FIRST_COMPLETED)
            if schedule.done():
                schedule.result()  # it ends only by failing
            schedule.cancel()
            self._held.leave()
            if not self._abandon and self._tasks:
                await asyncio.wait(self._tasks)
        finally:
            for connection in list(self._connections):
                connection.abort()

    async def _schedule(self) -> None:
        assert self._loop is not None
        spacing = 1 / self.rate
        tolerance = self._tally.tolerance
        begin = self._loop.time()
        self._tally.began = time.monotonic()
        number = 0
        while True:
            due = begin + number * spacing
            if (early := due - self._loop.time()) > 0:
                await asyncio.sleep(early)
            late = self._loop.time() - due
            self._tally.lags.append(late)
            if self._problem is not None:
                raise self._problem
            # A skipped request is chosen too, so that the others depend only on the seed.
            request = self.mix.choose(number)
            if late > tolerance:
                self._tally.skipped += 1
            else:
                self._launch(*request)
            number += 1

    def _launch(self, request: PlannedRequest, kind: ConnectionKind, client: int) -> None:
        self._watch(asyncio.create_task(self._request(request, kind, client)))

    def _watch(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._landed)

    def _landed(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (problem := task.exception()) is not None:
            # Otherwise the request would have no record, and its failure would go unnoticed.
            self._problem = self._problem or problem

    async def _request(self, request: PlannedRequest, kind: ConnectionKind, client: int) -> None:
        """Send one request and record it. After the timeout, a timer cancels the task."""
        assert self._loop is not None
        started = time.monotonic()
        pool = self._pools[client] if kind is ConnectionKind.KEPT else None
        connection = take_idle(pool, started - self.think if self.think else None) if pool else None
        reused = connection is not None
        endpoint = ""
        task = asyncio.current_task()
        assert task is not None
        expired = False

        def expire() -> None:
            nonlocal expired
            expired = True
            task.cancel()

        timer = self._loop.call_later(self.timeout, expire)
        try:
            if connection is None:
                address = self.table.pick(self._routing, client)
                endpoint = show_address(address)
                connection = await connect(address, self._connections)
            endpoint = show_address(connection.address)
            ending = await connection.exchange(
                request, close=kind is ConnectionKind.FRESH, host=self.host
            )
            if pool is not None and connection.idle:
                connection.rested = time.monotonic()
                pool.append(connection)
        except NoEndpoint as problem:
            ending = Ending(RequestOutcome.REFUSED, None, str(problem))
        except OSError as problem:  # only connecting raises it
            ending = connect_failed(problem, f"lower the rate of {self.rate:g} per s")
        except asyncio.CancelledError:
            if not expired:  # the load was abandoned
                raise
            if connection is None:
                said = f"not connected within {self.timeout:g} s"
                ending = Ending(RequestOutcome.REFUSED, None, said)
            else:
                said = f"no complete response within {self.timeout:g} s"
                ending = Ending(RequestOutcome.TIMEOUT, None, said)
                connection.abort()
        finally:
            timer.cancel()
        self._record(record_of(request, kind, started, endpoint, ending, reused))

    def _record(self, record: RequestRecord) -> None:
        self._tally.records.append(record)
        # Waking the waiter for every request would disturb the schedule.
        if self.completed >= self._target:
            with self._progress:
                self._progress.notify_all()
