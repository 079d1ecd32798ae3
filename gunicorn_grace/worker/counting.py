"""The counting of requests: the hot path. Runs in workers.

The functions that :func:`_hot_path` returns run for every request. They make a few stores into the
worker's record, and neither a system call nor a log line. Everything else here runs rarely.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..probes.answers import Answers
from ..probes.checks import registry
from ..shared.cells import LONGEST_WINDOW, NS, ORIGIN_MASK, Record
from ..shared.memory import Memory
from ..shared.phase import Origin
from ..shared.settings import Settings
from ..shared.text import printable
from .closing import Closing, closes_of
from .shedding import Shedding

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

LATE_SHARE = 0.8
"""Share of the delay after which a new request is late, because the routers needed nearly all of
the delay."""

LATE_HEADERS = ("X-FORWARDED-FOR", "USER-AGENT")
"""Headers that identify the router or client of a request, in addition to the peer's address."""

Entry = tuple[int, Any, bool]
"""A request in flight: when it began (monotonic ns), the thread, greenlet or task that serves it,
and whether it is counted. It is a plain tuple because a named one takes three times as long to
create."""


class Counter:
    """Counts the requests of this worker in its record.

    :ivar in_flight: the requests in flight, each with its entry. Requests that are not counted are
        among them.
    :ivar probe_paths: the paths of the probes and of their single checks, as requests contain them.
    :ivar uncounted: the paths that are not counted: those of the probes and ``grace_ignore_paths``.
    :ivar begin: counts a request in, as ``pre_request`` does.
    :ivar end: counts a request out, as ``post_request`` does.
    :ivar detach: makes both do nothing, in a child that the application has forked.

    :param memory: the shared memory.
    :param record: the worker's record.
    :param settings: the settings in use.
    :param answers: the probes of this instance.
    :param shedding: makes the responses say ``Connection: close``.
    :param log: gunicorn's logger.
    :param owner: returns what serves the request: the thread's number, the greenlet, or the task.
    :param threaded: whether requests are served in more than one thread.
    """

    def __init__(
        self,
        memory: Memory,
        record: Record,
        settings: Settings,
        answers: Answers,
        shedding: Shedding,
        log: Any,
        *,
        owner: Callable[[], Any] = threading.get_ident,
        threaded: bool = True,
    ) -> None:
        self._memory = memory
        self._record = record
        self._settings = settings
        self._answers = answers
        self._log = log
        self.probe_paths: set[str] = set()
        self.uncounted: set[str] = _as_requested(settings.ignore_paths)
        self.note_probe_paths()
        self.in_flight: dict[Any, Entry] = {}
        self._window_ends = 0
        self.begin: Callable[[Any], None]
        self.end: Callable[[Any], None]
        self.detach: Callable[[], None]
        self.begin, self.end, self.detach = _hot_path(
            self, memory, record, shedding, owner, threaded
        )

    def note_probe_paths(self) -> None:
        """Add the paths of the checks, whose names are known only once the application is
        loaded."""
        self.probe_paths |= probe_paths(self._answers)
        self.uncounted |= self.probe_paths

    def _note_longest(self, took: int, now: int) -> int:
        """Record a request that took longer than all earlier ones of this window.

        :returns: the end of the window, in monotonic nanoseconds.
        """
        record = self._record
        if now > self._window_ends:
            self._window_ends = now + LONGEST_WINDOW
            record.longest_before = record.longest
            record.window = now
        record.longest = took
        return self._window_ends

    def note_late(self, request: Any, now: int) -> None:
        """Log the source of a request that came late in the delay. Only one line is logged in a
        shutdown of the instance, because one shows how long the routers take.

        :param request: the request.
        :param now: the monotonic clock, in nanoseconds.
        """
        header, t0 = self._memory.header, self._memory.t0()
        if header.late or not t0 or header.drain or header.handed_over:
            return
        if self._memory.is_triggered() and header.trigger & ORIGIN_MASK == Origin.DRAIN:
            return  # A request hours after an operator's drain says nothing about the routers.
        # The budget may leave less than what is set.
        delay, after = header.delay / NS, (now - t0) / NS
        if not delay or after <= LATE_SHARE * delay:
            return
        header.late = now
        headers = {name.upper(): value for name, value in getattr(request, "headers", None) or ()}
        named = [f"{name} '{printable(headers[name])}'" for name in LATE_HEADERS if name in headers]
        self._log.warning(
            "gunicorn-grace: late_request %.1f s after T0, past %.0f %% of %s: "
            "%s %s from %s (%s); make it longer",
            after,
            100 * LATE_SHARE,
            self._named(delay),
            printable(request.method),
            printable(request.path),
            _name_of_peer(getattr(request, "peer_addr", None)),
            ", ".join(named) or "no User-Agent",
        )

    def _named(self, delay: float) -> str:
        """Name the setting that decides how long the delay is."""
        asked, period = self._settings.shutdown_delay, self._settings.termination_period
        if delay >= asked:
            return f"grace_shutdown_delay {asked:g} s"
        return f"the delay of {delay:g} s that grace_termination_period {period:g} s leaves"


def probe_paths(answers: Answers) -> set[str]:
    """Return the paths of the probes and of their single checks, as requests contain them.

    :param answers: the probes of this instance.
    """
    paths = set(answers.paths)
    for path, kind in answers.paths.items():
        names = (*answers.checks[kind], *registry.names(kind))
        paths.update(f"{path}/{name}" for name in names)
    return _as_requested(paths)


def _as_requested(paths: Iterable[str]) -> set[str]:
    """Return the paths as they are, and with the prefix ``SCRIPT_NAME``. gunicorn removes that
    prefix before it calls the application."""
    return {prefix + path for prefix in ("", os.environ.get("SCRIPT_NAME", "")) for path in paths}


def _name_of_peer(peer: Any) -> str:
    if isinstance(peer, tuple):
        return printable(f"{peer[0]} port {peer[1]}")
    return "a UNIX socket" if peer is not None else "an unknown address"


def _hot_path(
    counter: Counter,
    memory: Memory,
    record: Record,
    shedding: Shedding,
    owner: Callable[[], Any],
    threaded: bool,
) -> tuple[Callable[[Any], None], Callable[[Any], None], Callable[[], None]]:
    """Return the two functions that run for every request, in the thread or greenlet that serves
    it, and one that makes them do nothing.

    ``begin`` counts a request in (``pre_request``), and ``end`` counts it out (``post_request``).
    ``end`` ignores a request that was never counted in.

    They are closures because their variables are faster to reach than attributes. The numbers are
    counted in local variables and then stored, because a store costs half as much as a load, an
    addition and a store. The lock is taken without ``with``, which costs twice as much. ``with``
    would release it even if a signal handler raised just after it was taken. Handlers run in the
    main thread, where gthread serves no requests. A tornado worker does serve there, but its
    handlers raise only when the process has to end at once.
    """
    uncounted: Container[str] = counter.uncounted
    shed, in_flight = shedding.known, counter.in_flight
    now_ns, is_terminating, cells = time.monotonic_ns, memory.is_terminating, record.cells
    in_flight_cell, requests_cell, arrival_cell, since_t0_cell = (
        record.begin + cell.offset
        for cell in (Record.in_flight, Record.requests, Record.last_arrival, Record.since_t0)
    )
    counted_now = longest = window_ends = 0
    requests = cells[requests_cell]  # The count of the record's earlier workers.
    # A signal handler may raise between `acquire` and `try` where the main thread serves requests
    # (tornado, asyncio). The same thread then still gets a lock that it can take twice.
    lock = threading.RLock()
    acquire, release = lock.acquire, lock.release

    def begin(request: Any) -> None:
        nonlocal counted_now, requests
        if type(request) not in shed:
            shedding.shed(request)
        now = now_ns()
        counted = request.path not in uncounted
        in_flight[request] = (now, owner(), counted)
        if not counted:
            return
        if threaded:
            acquire()
        try:
            counted_now += 1
            requests += 1
            cells[in_flight_cell] = counted_now
            cells[requests_cell] = requests
            cells[arrival_cell] = now
            terminating = is_terminating()
            if terminating:
                cells[since_t0_cell] += 1
        finally:
            if threaded:
                release()
        if terminating:
            counter.note_late(request, now)

    def end(request: Any) -> None:
        nonlocal counted_now, longest, window_ends
        entry = in_flight.pop(request, None)
        if entry is None or not entry[2]:
            return
        now = now_ns()
        took = now - entry[0]
        if threaded:
            acquire()
        try:
            counted_now -= 1
            cells[in_flight_cell] = counted_now
            if took > longest or now > window_ends:
                longest = took
                window_ends = counter._note_longest(took, now)
        finally:
            if threaded:
                release()

    def detach() -> None:
        # From now on nothing takes the lock. Another thread may have held it at the fork, and in
        # the child nothing would release it.
        nonlocal uncounted
        uncounted = _Everything()
        in_flight.clear()

    return begin, end, detach


class _Everything:
    """A container that seems to contain every path."""

    def __contains__(self, path: object) -> bool:
        return True


@dataclass(eq=False)  # Two requests for the same path are different requests.
class CountedCall:
    """A call of the application. It is counted if there is no request object of gunicorn's."""

    method: str
    path: str


class Counting:
    """Counts requests around the application, for worker classes that call no request hooks.

    A request is in flight until its iterable is closed (PEP 3333, "the server must call that
    method"). Once the shutdown has begun, its response says ``Connection: close``. The header is
    set here because tornado and pywsgi do not call ``should_close``. They send the header as they
    get it. tornado does not close the connection itself; the client or the drain does.

    :param app: the application.
    :param counter: the worker's counter.
    :param is_terminating: returns whether the shutdown has begun.
    """

    def __init__(
        self, app: WSGIApplication, counter: Counter, is_terminating: Callable[[], bool]
    ) -> None:
        self.app = app
        self._counter = counter
        self._is_terminating = is_terminating

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        call = CountedCall(environ["REQUEST_METHOD"], environ.get("PATH_INFO", ""))

        def shedding(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Any:
            if self._is_terminating():
                headers = [(name, value) for name, value in headers if name.lower() != "connection"]
                headers.append(("Connection", "close"))
            return start_response(status, headers, *exc_info)

        self._counter.begin(call)
        try:
            body = self.app(environ, shedding)
            return Closing(body, *closes_of(body), lambda: self._counter.end(call))
        except BaseException:
            self._counter.end(call)
            raise
