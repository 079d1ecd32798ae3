"""An open-loop load: requests start when they are due, whether or not the earlier ones were
answered.

A closed loop, where each of n clients waits for its answer, slows down with the service and so
hides what a stall would have cost. Requests that the generator itself could not start in time are
counted, not sent in a burst: a burst is no steady load.

There are no retries. A real pool notices that the server closed an idle connection and does not use
it, so the pools here do too; a request that was sent is the client's to lose.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
import select
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from types import TracebackType

import h11

from ..errors import LoadFailed, RehearsalError
from ..kubernetes.routing import EndpointTable, NoEndpoint
from .requests import PIECES, Request, in_turn
from .tally import Kind, Outcome, Record, Tally
from .wire import Address, family_of, show_address

#: Connecting failed for want of something on our side of the connection.
_OURS = {errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM}
#: Linux, tcp_reset(): a RST in answer to our SYN is ECONNREFUSED; these two mean that the handshake
#: was complete and the reset came before we looked.
_AFTER_CONNECTING = {errno.ECONNRESET, errno.EPIPE}


#: What the plugin puts on its answers to probes, ``gunicorn_grace.probes``; nothing here imports
#: that.
_OUR_HEADERS = {(b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff")}


def classify(status: int, ours: bool) -> Outcome:
    """The outcome of a complete response.

    Args:
        status: its status code.
        ours: it carries the headers of the plugin's answers to probes.
    """
    if 200 <= status < 300:
        return Outcome.OK
    if status == 503 and ours:
        return Outcome.NOT_READY
    return Outcome.SERVER_ERROR if status >= 500 else Outcome.STATUS


class Counting(ABC):
    """What a load tells while it runs, wherever it runs: ``Load`` in a thread, ``Generator`` in a
    process.

    Args:
        tally: filled as requests end.
        timeout: seconds that a request may take.
    """

    def __init__(self, tally: Tally, timeout: float) -> None:
        self.rate = tally.rate
        self.timeout = timeout
        self._tally = tally
        self._problem: BaseException | None = None
        self._progress = threading.Condition()  # a request ended, or the load did
        self._target = float("inf")
        self._ended = False

    @abstractmethod
    def stop(self, abandon: bool = False) -> Tally:
        """End it; see the classes."""

    @property
    def completed(self) -> int:
        """Requests that have ended so far, lost ones among them."""
        return self._tally.total

    @property
    def problem(self) -> str | None:
        """What the generator failed by; None as long as it has not."""
        return None if self._problem is None else str(self._problem)

    def records_after(self, index: int) -> list[Record]:
        """The requests that ended since there were ``index`` of them: for one who looks again and
        again."""
        return self._tally.records[index:]

    def snapshot(self) -> Tally:
        """A copy of what was counted so far."""
        tally = self._tally
        return replace(tally, records=list(tally.records), lags=list(tally.lags))

    def wait_completed(self, count: int, timeout: float | None = None) -> None:
        """Wait until ``count`` more requests have ended.

        Args: count: requests, from now on. timeout: seconds; by default what ``count`` should take,
            twice, and a request's own time.

        Raises:
            RehearsalError: not so within ``timeout`` seconds.
            LoadFailed: the generator failed.
        """
        target = self.completed + count
        limit = 2 * count / self.rate + self.timeout + 1 if timeout is None else timeout
        with self._progress:
            self._target = target
            reached = self._progress.wait_for(
                lambda: self.completed >= target or self._ended, limit
            )
            self._target = float("inf")
        if self._problem is not None:
            raise self._failed() from self._problem
        if not reached or self.completed < target:
            missing = target - self.completed
            raise RehearsalError(
                f"{missing} of {count} requests had not ended after {limit:g} s: lower the rate of {self.rate:g} per s"
            )

    def _failed(self) -> LoadFailed:
        return LoadFailed(f"the load generator failed: {self._problem}")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.stop()
            return
        with suppress(LoadFailed):  # the error under way came first
            self.stop(abandon=True)


class Load(Counting):
    """A steady stream of requests over an ``EndpointTable``, from a thread of its own.

    Args:
        table: where each new connection goes.
        rate: requests per second.
        paths: targets of GET requests, taken in turn.
        requests: what to send in place of ``paths``, each as often as its weight.
        keepalive_share: share of the requests that use kept-alive connections, 0 to 1.
        slow_path: request target of slow requests.
        slow_share: share of the requests that are slow ones, 0 to 1.
        timeout: seconds that a request may take, connecting included.
        clients: how many clients share the kept-alive requests, each with a pool of its own. One pool alone
            would keep using the one connection it got back last, and so test one instance.
        host: the ``Host`` header; the endpoint's address unless given.
        think: seconds that a kept-alive connection rests before its client uses it again, so that as many are
            open as requests fall into that time, and some meet the server's keep-alive time.
        slow_node_share: the share of the requests that comes from one client more, the last one: on the slow
            node of a ``Lag``. Client n connects as node n of the table knows it.
        seed: of the random choices. Loads with the same seed send the same requests at the same times.

    Raises:
        ValueError: a number is out of its range.
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
        requests: Sequence[Request] = (),
        think: float = 0.0,
        slow_node_share: float = 0.0,
    ) -> None:
        if rate <= 0:
            raise ValueError(f"rate {rate:g} is not above 0 requests per second")
        if timeout <= 0:
            raise ValueError(f"timeout {timeout:g} is not above 0 s")
        if not 0 <= think < float("inf"):
            raise ValueError(f"think {think:g} s is not 0 s or more")
        shares = (
            ("keepalive_share", keepalive_share),
            ("slow_share", slow_share),
            ("slow node's", slow_node_share),
        )
        for name, share in shares:
            if not 0 <= share <= 1:
                raise ValueError(f"{name} {share:g} is not between 0 and 1")
        if slow_share and slow_path is None:
            raise ValueError(
                f"slow_share is {slow_share:g} but there is no slow_path: name the path of a slow request"
            )
        if not (paths or requests) or clients < 1:
            raise ValueError("at least one path and one client are needed")
        self.requests = tuple(requests) or tuple(Request(path) for path in paths)
        self.slow = None if slow_path is None else Request(slow_path, slow=True)
        for request in (*self.requests, *([self.slow] if self.slow else [])):
            request.check(host)
        self._turn = in_turn(self.requests)
        self.host = host
        self.table = table
        self.think = think
        self.keepalive_share = keepalive_share
        self.slow_share = slow_share
        self.slow_node_share = slow_node_share
        super().__init__(Tally(rate=rate), timeout)
        self._choices = random.Random(seed)
        self._routing = random.Random(
            seed
        )  # of its own: when connections are made depends on the service
        self._clients = clients
        self._pools: list[deque[_Connection]] = [deque() for _ in range(clients + 1)]
        self._tasks: set[asyncio.Task[None]] = set()
        self._connections: set[_Connection] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._finish: asyncio.Event | None = None
        self._abandon = False
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)

    # -- from any thread ----

    def take(self) -> Tally:
        """What was counted since the last call, handed over: it is in no later count of this
        object.

        A process that keeps every record has its garbage collector look through all of them again
        and again, for a tenth of a second at a time after a hundred thousand.
        """
        tally = self._tally
        records, lags = len(tally.records), len(tally.lags)
        taken = replace(tally, records=tally.records[:records], lags=tally.lags[:lags])
        del tally.records[:records], tally.lags[:lags]
        return taken

    def start(self) -> Load:
        """Begin to send. Returns once the event loop runs."""
        self._thread.start()
        with self._progress:
            self._progress.wait_for(lambda: self._finish is not None or self._ended)
        return self

    def stop(self, abandon: bool = False) -> Tally:
        """Start no more requests, let those under way finish (``timeout`` seconds at most), then
        close.

        Args:
            abandon: do not let them finish; they are in no count then.

        Raises:
            LoadFailed: the generator failed, so that the numbers mean nothing.
        """
        self._abandon = self._abandon or abandon
        if self._loop is not None and self._finish is not None and not self._ended:
            with suppress(RuntimeError):  # it ended by itself a moment ago
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
        try:
            await asyncio.wait({schedule, finish}, return_when=asyncio.FIRST_COMPLETED)
            if schedule.done():
                schedule.result()  # it ends only by failing
            schedule.cancel()
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
            request = self._choose(
                number
            )  # also for one that is skipped: the next ones stay what they are
            if late > tolerance:
                self._tally.skipped += 1
            else:
                self._launch(*request)
            number += 1

    def _choose(self, number: int) -> tuple[Request, Kind, int]:
        """The request with this number, its kind, and which client sends it."""
        slow = self.slow is not None and self._choices.random() < self.slow_share
        kind = Kind.KEPT if self._choices.random() < self.keepalive_share else Kind.FRESH
        client = self._choices.randrange(self._clients)
        if self.slow_node_share and self._choices.random() < self.slow_node_share:
            client = self._clients
        request = (
            self.slow if slow and self.slow is not None else self._turn[number % len(self._turn)]
        )
        return request, kind, client

    def _launch(self, request: Request, kind: Kind, client: int) -> None:
        task = asyncio.create_task(self._request(request, kind, client))
        self._tasks.add(task)
        task.add_done_callback(self._landed)

    def _landed(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (problem := task.exception()) is not None:
            # A request without a record would be one that nobody misses.
            self._problem = self._problem or problem

    async def _request(self, request: Request, kind: Kind, client: int) -> None:
        """One request from beginning to record. Its timer cancels the task: that is a timeout."""
        assert self._loop is not None
        started = time.monotonic()
        pool = self._pools[client] if kind is Kind.KEPT else None
        connection = _take(pool, started - self.think if self.think else None) if pool else None
        reused = connection is not None
        endpoint, status, error = "", None, ""
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
                connection = await self._connect(address)
            endpoint = show_address(connection.address)
            outcome, status, error = await connection.exchange(
                request, close=kind is Kind.FRESH, host=self.host
            )
            if pool is not None and connection.idle:
                connection.rested = time.monotonic()
                pool.append(connection)
        except (OSError, NoEndpoint) as problem:  # only connecting raises these
            if isinstance(problem, OSError) and problem.errno in _OURS:
                raise RehearsalError(
                    f"no more connections to be had ({problem}): "
                    f"lower the rate of {self.rate:g} per s or raise `ulimit -n`"
                ) from problem
            number = problem.errno if isinstance(problem, OSError) else None
            outcome = Outcome.RESET if number in _AFTER_CONNECTING else Outcome.REFUSED
            error = os.strerror(number) if number else str(problem)
        except asyncio.CancelledError:
            if not expired:  # the load was abandoned
                raise
            if connection is None:
                outcome, error = Outcome.REFUSED, f"not connected within {self.timeout:g} s"
            else:
                outcome, error = Outcome.TIMEOUT, f"no complete response within {self.timeout:g} s"
                connection.abort()
        finally:
            timer.cancel()
        latency = time.monotonic() - started
        self._tally.records.append(
            Record(
                started,
                kind,
                request.path,
                outcome,
                status,
                latency,
                endpoint,
                error,
                request.slow,
                reused,
                request.method,
            )
        )
        if (
            self.completed >= self._target
        ):  # waking a waiter for every request would cost the schedule its evenness
            with self._progress:
                self._progress.notify_all()

    async def _connect(self, address: Address) -> _Connection:
        assert self._loop is not None
        sock = socket.socket(family_of(address), socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            if isinstance(address, str):
                # unix(7): completes at once, or EAGAIN when the backlog is full, which asyncio
                # takes for "under way".
                sock.connect(address)
            else:
                await self._loop.sock_connect(sock, address)
            _, connection = await self._loop.create_connection(
                lambda: _Connection(address, self._connections), sock=sock
            )
        except BaseException:
            sock.close()
            raise
        return connection


class _Connection(asyncio.Protocol):
    """One connection of a client, one exchange at a time; h11 decides what is complete and
    reusable."""

    def __init__(self, address: Address, registry: set[_Connection]) -> None:
        self.address = address
        self.http = h11.Connection(h11.CLIENT)
        self._registry = registry
        self._transport: asyncio.Transport | None = None
        self._poll = select.poll()
        self._answer: asyncio.Future[tuple[Outcome, int | None, str]] | None = None
        self._received = False
        self._status: int | None = None
        self._ours = False
        self._to_rest = 0.0  # seconds for which the client still takes its time to read
        self._pause = 0.0  # ... a piece
        self.rested = 0.0  # time.monotonic() since which it has been idle

    @property
    def idle(self) -> bool:
        """May carry another request."""
        return (
            self._answer is None
            and self._transport is not None
            and not self._transport.is_closing()
            and self.http.our_state is h11.IDLE
        )

    def fresh_as_seen(self) -> bool:
        """Idle, and nothing has come since the loop last looked: what urllib3 asks before it reuses
        one."""
        return self.idle and not self._poll.poll(0)

    async def exchange(
        self, request: Request, *, close: bool, host: str | None
    ) -> tuple[Outcome, int | None, str]:
        """Send a request; the outcome, the status as far as known, and the error text."""
        assert self._transport is not None
        answer: asyncio.Future[tuple[Outcome, int | None, str]] = (
            asyncio.get_running_loop().create_future()
        )
        self._answer = answer
        self._received, self._status, self._ours = False, None, False
        self._to_rest, self._pause = request.read, request.read / PIECES
        data = request.head(self.http, self.address, close=close, host=host)
        for number, piece in enumerate(request.pieces()):
            if request.upload:
                if number == 0:
                    self._transport.write(data)
                    data = b""
                await asyncio.wait({answer}, timeout=request.upload / PIECES)
            if answer.done():  # the server did not wait for the rest of it
                return answer.result()
            sent = self.http.send(h11.Data(data=piece)) or b""
            if request.upload:
                self._transport.write(sent)
            else:
                data += sent
        self._transport.write(data + (self.http.send(h11.EndOfMessage()) or b""))
        if self._transport.is_closing():  # lost between connecting and writing
            self._lost("closed by the peer")
        return await answer

    def abort(self) -> None:
        """Close at once, whatever is under way."""
        self._answer = None
        if self._transport is not None:
            self._transport.abort()

    # -- called by the event loop ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
        self._registry.add(self)

    def data_received(self, data: bytes) -> None:
        if self._answer is None:  # nothing was asked
            self._close()
            return
        self._received = True
        self.http.receive_data(data)
        self._advance()
        if self._to_rest > 0 and self._answer is not None and self._transport is not None:
            pause = self._pause
            self._to_rest -= pause
            self._transport.pause_reading()
            asyncio.get_running_loop().call_later(pause, self._resume)

    def _resume(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def eof_received(self) -> bool:
        if self._answer is not None:
            self.http.receive_data(b"")
            self._advance()
        self._lost("closed by the peer")
        return (
            False  # close our side at once: gunicorn 26+ waits for it, up to 2 s, before it exits
        )

    def connection_lost(self, exc: Exception | None) -> None:
        self._registry.discard(self)
        self._lost(str(exc or "closed by the peer"))

    def _advance(self) -> None:
        try:
            while self._answer is not None:
                event = self.http.next_event()
                if event is h11.NEED_DATA:
                    return
                if isinstance(event, h11.Response):
                    self._status = event.status_code
                    self._ours = _OUR_HEADERS.issubset(
                        (name, value.lower()) for name, value in event.headers
                    )
                elif isinstance(event, h11.EndOfMessage):
                    self._complete()
                elif isinstance(event, h11.ConnectionClosed):
                    self._lost("closed by the peer")
        except h11.RemoteProtocolError as error:
            self._lost(str(error))
            self._close()

    def _complete(self) -> None:
        assert self._status is not None
        if (
            self.http.our_state is h11.DONE
            and self.http.their_state is h11.DONE
            and not self.http.trailing_data[0]
        ):
            self.http.start_next_cycle()
        else:
            self._close()
        outcome = classify(self._status, self._ours)
        self._resolve(
            (outcome, self._status, "" if outcome is Outcome.OK else f"status {self._status}")
        )

    def _lost(self, error: str) -> None:
        outcome = Outcome.TRUNCATED if self._received else Outcome.RESET
        self._resolve((outcome, self._status, error))

    def _resolve(self, answer: tuple[Outcome, int | None, str]) -> None:
        future, self._answer = self._answer, None
        if future is not None and not future.done():
            future.set_result(answer)

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def _take(pool: deque[_Connection], rested: float | None) -> _Connection | None:
    """A connection that is still good; those that are not are dropped on the way.

    The one that was put back last; or, if connections are to rest, the one that has rested longest,
    if it was put back at ``rested`` or before.
    """
    while pool and (rested is None or pool[0].rested <= rested):
        connection = pool.pop() if rested is None else pool.popleft()
        if connection.fresh_as_seen():
            return connection
        connection.abort()
    return None
