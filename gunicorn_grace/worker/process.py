"""What runs in a worker process: counting, shedding, and leaving when told to.

One :class:`Seat` a worker. It writes the worker's slot, so that the arbiter knows what is in flight
without asking; it makes responses say ``Connection: close`` once the shutdown has begun; and it
sees to it that only the arbiter dismisses the worker, and that connections on which nothing happens
do not hold the exit.

The hot path is :func:`_hot_path`: a few stores into the slot, no system call, no log.
"""

from __future__ import annotations

import _thread
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection
from typing import Any

from .. import application
from ..arbiter.lifecycle import Origin
from ..probes.answers import Probes, Situation
from ..probes.checks import registry
from ..shared import listener
from ..shared import memory as st
from ..shared.settings import Settings
from .classes import (
    ASGI_HOOKS,
    HOOKS,
    LINGER,
    WSGI,
    adapt,
    adapt_booted,
    is_threaded,
    owner_of_requests,
    tracking,
)
from .connections import accepted_at, bare, is_sending, never_sent, unread

TICK = 0.05
IDLE_TICKS = 6
"""How many ticks in a row a connection must be idle before it is closed; two where it never sent a
byte."""

DUMP_BEFORE = 1.0
"""Seconds before the drain limit at which a worker logs what it is still doing."""

LATE_SHARE = 0.8
"""Share of the delay after which a new request is late: the routers needed nearly all of it."""

LATE_HEADERS = ("X-FORWARDED-FOR", "USER-AGENT")
"""What, beside the peer's address, tells which router or client sent it."""

Entry = tuple[int, Any, bool]
"""Of a request in flight: when it began (ns), the thread or greenlet that serves it, whether it is
counted. A plain tuple: a named one takes three times as long to make."""


class Seat:
    """A worker's place in the shared memory.

    :param number: its slot, or ``None`` when there was none left: then nothing is counted, and all
        else works.
    :param owner: what serves a request: the running thread's number, or the running greenlet.
    :param threaded: whether requests are served in more than one thread.
    """

    def __init__(
        self,
        state: st.State,
        number: int | None,
        settings: Settings,
        log: Any,
        *,
        owner: Callable[[], Any] = threading.get_ident,
        threaded: bool = True,
    ) -> None:
        self.state = state
        self.number = number
        self.settings = settings
        self.probes = Probes(settings)
        self.log = log
        self.cells = state.cells
        # Without a slot the stores go to a private scrap of the same shape: the hot path has no
        # branch for it.
        if number is None:
            self.cells_own = memoryview(bytearray(8 * (st.SLOT_CELLS + st.METER_CELLS))).cast("q")
            self.slot, self.meter = 0, st.SLOT_CELLS
        else:
            self.cells_own = state.cells
            self.slot, self.meter = state.slot(number), state.meter(number)
        # pre_request sees the path as it came, with the prefix that gunicorn takes off before the
        # application.
        self._prefixes = ("", os.environ.get("SCRIPT_NAME", ""))
        self.probe_paths: set[str] = set()
        """The probes' paths as requests come with them, those of single checks included."""
        self.uncounted = {
            prefix + path for prefix in self._prefixes for path in settings.ignore_paths
        }
        self._note_probe_paths()
        self.in_flight: dict[Any, Entry] = {}
        self.shed: set[type] = set()
        """Classes of requests that need no more thought: they shed already, or cannot."""
        self._others: dict[type, type] = {}
        self._is_terminating = state.is_terminating
        self._window_ends = 0
        self.begin, self.end = _hot_path(self, owner, threaded)
        self.tracking: str | None = None
        """How this worker's requests are counted: see :func:`tracking`."""
        self.sees_all = True
        """Whether every request in flight is in ``in_flight``. Where not, a connection on which
        nothing happens may be one whose request is being served: it is left alone."""
        self._draining = False
        self._dumped = False
        self._speaks_http2 = False
        self.hurried = False
        """Whether this worker was told to go at once, by SIGINT, SIGQUIT or SIGABRT."""
        self.told_to_leave = 0
        """When it was told to go, in nanoseconds."""
        self.duties = application.Duties(state, self.cells_own, self.slot + st.HOLDS, log)
        self.owns_listeners = False
        """Whether this worker bound its listeners itself (``reuse_port``, gunicorn 24.1 and
        later)."""
        self._listeners: list[Any] = []
        self._late_ones_wait = False
        """Whether a listener is sealed by hop limit, which what is accepted from it inherits."""
        self._own_listeners: list[Any] = []
        self._addresses: frozenset[Any] = frozenset()

    def _note_probe_paths(self) -> None:
        """Once the application is loaded, its checks have names."""
        paths = set(self.probes.paths)
        for path, kind in self.probes.paths.items():
            paths.update(
                f"{path}/{name}" for name in (*self.probes.checks[kind], *registry.names(kind))
            )
        self.probe_paths.update(prefix + path for prefix in self._prefixes for path in paths)
        self.uncounted |= self.probe_paths

    def _note_longest(self, took: int, now: int) -> int:
        """Keep a request that took longer than those before it; returns when this window of looking
        ends."""
        cells, meter = self.cells_own, self.meter
        if now > self._window_ends:
            self._window_ends = now + st.LONGEST_WINDOW
            cells[meter + st.LONGEST_BEFORE] = cells[meter + st.LONGEST]
            cells[meter + st.WINDOW] = now
        cells[meter + st.LONGEST] = took
        return self._window_ends

    def note_late(self, request: Any, now: int) -> None:
        """Log where a request came from that came late in the delay: once an instance, it is a
        router's delay."""
        cells, t0 = self.cells, self.state.t0()
        if cells[st.LATE] or not t0 or cells[st.DRAIN]:
            return
        if (
            cells[st.TRIGGER] > cells[st.CONSUMED]
            and cells[st.TRIGGER] & st.ORIGIN_MASK == Origin.DRAIN
        ):
            return  # It says nothing of a router that requests come hours after an operator's drain.
        delay = self.settings.shutdown_delay
        after = (now - t0) / st.NS
        if not delay or after <= LATE_SHARE * delay:
            return
        cells[st.LATE] = now
        headers = {name.upper(): value for name, value in getattr(request, "headers", None) or ()}
        self.log.warning(
            "gunicorn-grace: late_request %.1f s after T0, past %.0f %% of grace_shutdown_delay %g s: "
            "%s %s from %s (%s); make it longer",
            after,
            100 * LATE_SHARE,
            delay,
            request.method,
            request.path,
            _shown(getattr(request, "peer_addr", None)),
            ", ".join(f"{name} {headers[name]!r}" for name in LATE_HEADERS if name in headers)
            or "no User-Agent",
        )

    def _shed(self, request: Any) -> None:
        """Let a request say ``Connection: close`` that is none of our parser's; see
        :meth:`shed_from_the_parser`."""
        cls = type(request)
        if self.tracking == ASGI_HOOKS:
            # Before gunicorn 27.0 its ASGI worker asks only after the response, which did not say
            # close.
            self.shed.add(cls)
            return
        shedding = self._others.get(cls)
        if shedding is None:
            shedding = self._others[cls] = _shedding_class(cls, self.state)
        try:
            request.__class__ = shedding
        except (
            TypeError
        ):  # Another layout (__slots__): such requests are served and counted, but not shed.
            shedding = cls
        self.shed.add(shedding)

    # -- what probes and the application ask ----

    def situation(self) -> Situation:
        """What a probe is answered from, now."""
        t0 = self.state.t0()
        since_t0 = (time.monotonic_ns() - t0) / st.NS if t0 else 0.0
        return Situation(
            self.state.phase(), since_t0, bool(self.cells[st.UPGRADED]), self.state.seconds_left()
        )

    # -- coming and going ----

    def booted(self, worker: Any) -> None:
        """The application is loaded; requests will be served from now on."""
        self.state.is_booted_worker = True
        self.cells_own[self.slot + st.BOOTED] = (
            1  # First: whatever fails below, the worker is ready.
        )
        self._addresses = frozenset(bare(sock.getsockname()) for sock in worker.sockets)
        self._listeners = list(worker.sockets)
        if self.owns_listeners:
            self._own_listeners = list(worker.sockets)
        self._speaks_http2 = "h2" in getattr(worker.cfg, "http_protocols", ())
        self._note_probe_paths()
        self.watch_drain()
        self.duties.booted()
        self.shed_from_the_parser()
        adapt_booted(worker, self.state.is_terminating)

    def shed_from_the_parser(self) -> None:
        """Let gunicorn's HTTP/1 parser make the shedding requests itself: in this process, a
        worker, alone."""
        from gunicorn.http.parser import RequestParser

        parser: Any = RequestParser
        parser.mesg_class = _shedding_class(parser.mesg_class, self.state)
        self.shed.add(parser.mesg_class)
        protocol: Any = sys.modules.get("gunicorn.asgi.protocol")
        if protocol is not None and hasattr(protocol.ASGIProtocol, "_will_close"):
            protocol.CallbackRequest = _shedding_class(protocol.CallbackRequest, self.state)
            self.shed.add(protocol.CallbackRequest)

    def is_dismissed(self) -> bool:
        """Whether the arbiter has told this worker to go. A worker without a slot goes at any
        SIGTERM."""
        return self.number is None or self.cells[self.meter + st.DISMISSED] != 0

    def note_sigterm(self) -> None:
        """Let the arbiter know. Of one that it did not send it knows whether the whole group got
        it."""
        self.cells_own[self.meter + st.TERM_SEEN] = time.monotonic_ns()

    def note_cut_off(self) -> int:
        """Keep how many requests are cut off now: their ``post_request`` still runs while the
        worker is torn down."""
        self.hurried = True
        count = self.cells_own[self.meter + st.CUT_OFF] = self.cells_own[self.slot + st.IN_FLIGHT]
        return int(count)

    def limit_drain(self, cfg: Any) -> None:
        """Give gunicorn's worker the drain limit of the whole instance as its
        ``graceful_timeout``."""
        now, limit = time.monotonic_ns(), self.cells[st.DRAIN_LIMIT]
        self.told_to_leave = (
            self.told_to_leave or now
        )  # gunicorn goes on sending SIGTERM to a worker too many.
        if limit:
            cfg.settings["graceful_timeout"].value = max(0.0, (limit - now) / st.NS)

    def watch_drain(self) -> None:
        """Begin to close idle connections and to dump what is late, beside whatever the worker is
        doing.

        Called from a signal handler: ``start_new_thread`` takes no lock of Python's, which
        ``Thread.start`` does (its interrupted twin would wait for itself). In a gevent worker the
        patched name starts a greenlet.
        """
        if not self._draining and self.cells[st.DRAIN]:
            self._draining = True
            _thread.start_new_thread(self._drain, ())

    def _drain(self) -> None:
        idle_since: dict[tuple[int, int], int] = {}
        try:
            self._seal_own()
            while True:
                now = time.monotonic_ns()
                self._watch_own(now)
                if now < self.cells[st.DRAIN] + LINGER * st.NS:
                    self._admit_late_ones()
                else:
                    idle_since = self._close_idle(idle_since)
                self._dump_before("the end of the drain", self.cells[st.DRAIN_LIMIT], now)
                time.sleep(TICK)
        except Exception:
            # The connections then hold the exit up to the drain limit, as in plain gunicorn.
            self.log.exception("gunicorn-grace: closing idle connections failed")

    def _seal_own(self) -> None:
        for sock in filter(listener.can_seal, filter(_is_open, self._own_listeners)):
            try:
                listener.seal(sock)
            except OSError as error:
                self.log.warning(
                    "gunicorn-grace: %s cannot be sealed (%s): it closes with its queue, as without us",
                    sock,
                    error,
                )

    def _admit_late_ones(self) -> None:
        """Let the data in of connections whose handshake was under way when their listener was
        sealed."""
        tcp = filter(listener.can_seal, filter(_is_open, self._listeners))
        with contextlib.suppress(OSError, ValueError, AttributeError):  # One is just being closed.
            self._late_ones_wait |= any(map(listener.is_sealed_by_hop_limit, tcp))
        if self._late_ones_wait:
            for conn, _ in accepted_at(self._addresses):
                with contextlib.suppress(OSError):
                    listener.admit(conn)

    def _watch_own(self, now: int) -> None:
        """Tell the arbiter, which has no descriptor of them, how long this worker's own accept
        queues are empty."""
        if self._own_listeners:
            cell = self.meter + st.EMPTY_SINCE
            with contextlib.suppress(
                OSError, ValueError, AttributeError
            ):  # One is just being closed.
                if listener.are_waiting(filter(_is_open, self._own_listeners)):
                    self.cells_own[cell] = 0
                elif not self.cells_own[cell]:
                    self.cells_own[cell] = now

    def _close_idle(self, idle: dict[tuple[int, int], int]) -> dict[tuple[int, int], int]:
        """Let every connection on which nothing happens read an end of file. Returns for how many
        ticks each was idle.

        Only the reading side is shut: a request that was just read is still answered, and what the
        client had sent before stays readable (tcp(7) and Linux' tcp_recvmsg look at the queue
        first).
        """
        busy, all_known = self._busy_inodes()
        seen: dict[tuple[int, int], int] = {}
        for conn, key in accepted_at(self._addresses):
            if key[1] in busy or unread(conn):
                continue
            silent = never_sent(conn)
            # A client of HTTP/2 sends WINDOW_UPDATE and the like after what it was sent.
            if not silent and (not all_known or (is_sending(conn) and not self._speaks_http2)):
                continue
            seen[key] = idle.get(key, 0) + 1
            if seen[key] >= (2 if silent else IDLE_TICKS):
                with contextlib.suppress(OSError):
                    conn.shutdown(socket.SHUT_RD)
        return seen

    def _busy_inodes(self) -> tuple[set[int], bool]:
        inodes, all_known = set(), self.sees_all
        for request in list(self.in_flight):
            try:
                inodes.add(os.fstat(request.unreader.sock.fileno()).st_ino)
            except (AttributeError, OSError, ValueError):
                all_known = False  # HTTP/2, tornado, pywsgi, ASGI: requests that do not name their connection.
        return inodes, all_known

    def _dump_before(self, what: str, limit: int, now: int) -> None:
        if limit and not self._dumped and now >= limit - DUMP_BEFORE * st.NS:
            self._dumped = True
            self.dump(f"{DUMP_BEFORE:g} s before {what}")

    def dump(self, when: str) -> None:
        """Log each request in flight: method, path without query, age, and where its code is; and
        what else keeps the worker."""
        entries = list(self.in_flight.items())
        now = time.monotonic_ns()
        for request, (began, owner, counted) in sorted(entries, key=lambda entry: entry[1][0]):
            if not counted:
                continue
            self.log.warning(
                "gunicorn-grace: in flight %s: %s %s for %.1f s, at %s",
                when,
                request.method,
                request.path,
                (now - began) / st.NS,
                _stack_top(owner),
            )
        self.duties.tell_left(when)

    def stay(self, worker: Any) -> None:
        """Keep a worker that has served its last request for as long as it has duties, and may.

        Here, and not in ``worker_exit``: by then gunicorn has closed the file of the worker's
        heartbeat (22.0 to 27.0), and outside a shutdown would abort it after ``timeout``.
        """
        duties = self.duties
        duties.leave()
        if self.hurried or not duties.left():
            return
        # Nobody serves any more. What another process has as well stays open there; what this
        # worker alone has would hang: its own listeners (reuse_port), and the connections that
        # gthread and sync leave to the process' end.
        for sock in worker.sockets:
            with contextlib.suppress(OSError):
                sock.close()
        busy, _ = self._busy_inodes()
        for conn, key in accepted_at(self._addresses):
            if key[1] not in busy:
                with contextlib.suppress(OSError):
                    conn.shutdown(socket.SHUT_RDWR)
        own_limit = (self.told_to_leave or time.monotonic_ns()) + round(
            worker.cfg.graceful_timeout * st.NS
        )
        while duties.left() and not self.hurried:
            now, drain_limit = time.monotonic_ns(), self.cells[st.DRAIN_LIMIT]
            self._dump_before(
                "the end of the drain" if drain_limit else "graceful_timeout",
                drain_limit or own_limit,
                now,
            )
            if now >= (drain_limit or own_limit):
                return
            worker.notify()
            time.sleep(TICK)


current: Seat | None = None
"""The seat of this worker process; ``None`` in every other process."""


def _hot_path(
    seat: Seat, owner: Callable[[], Any], threaded: bool
) -> tuple[Callable[[Any], None], Callable[[Any], None]]:
    """What runs for every request: ``begin`` counts it in (``pre_request``, in the thread or
    greenlet that serves it), ``end`` counts it out (``post_request``); a request that was never
    counted in is left alone.

    Closures, because their variables are reached faster than attributes; and numbers counted here
    and stored there, because a store costs half of a load, an addition and a store. The lock is
    taken by hand: half the price of ``with``, which is safe where signals raise; they do so in the
    main thread, where threaded workers serve nothing.
    """
    uncounted, shed, in_flight = seat.uncounted, seat.shed, seat.in_flight
    now_ns, is_terminating, cells = time.monotonic_ns, seat.state.is_terminating, seat.cells_own
    in_flight_cell, requests_cell, arrival_cell, since_t0_cell = (
        seat.slot + cell for cell in (st.IN_FLIGHT, st.REQUESTS, st.LAST_ARRIVAL, st.SINCE_T0)
    )
    counted_now = longest = window_ends = 0
    requests = cells[requests_cell]  # Of those who had the slot before.
    lock = threading.Lock()
    nothing: Callable[[], object] = bool  # The cheapest there is.
    acquire, release = (lock.acquire, lock.release) if threaded else (nothing, nothing)

    def begin(request: Any) -> None:
        nonlocal counted_now, requests
        if type(request) not in shed:
            seat._shed(request)
        now = now_ns()
        counted = request.path not in uncounted
        in_flight[request] = (now, owner(), counted)
        if not counted:
            return
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
            release()
        if terminating:
            seat.note_late(request, now)

    def end(request: Any) -> None:
        nonlocal counted_now, longest, window_ends
        entry = in_flight.pop(request, None)
        if entry is None or not entry[2]:
            return
        now = now_ns()
        took = now - entry[0]
        acquire()
        try:
            counted_now -= 1
            cells[in_flight_cell] = counted_now
            if took > longest or now > window_ends:
                longest = took
                window_ends = seat._note_longest(took, now)
        finally:
            release()

    return begin, end


def _shedding_class(cls: type, state: st.State) -> type:
    """``cls``, but ``should_close`` says yes once the shutdown has begun, and never changes its
    mind.

    gunicorn asks when it writes the headers, again after the response, and asks the previous
    request before it reads the next one. An answer that turned from no to yes in between would
    close a connection that was promised to stay, with a request perhaps on its way (measured: 6 of
    6 pooled connections broke). So the first answer is kept.

    A subclass, and not an attribute on each request: that would be a reference cycle for the
    collector every time.

    :returns: ``cls`` itself for requests that have no ``should_close``.
    """
    should_close = getattr(cls, "should_close", None)
    if should_close is None:
        return cls
    is_terminating = state.is_terminating

    def latched(self: Any) -> bool:
        answer: bool | None = self._grace_close
        if answer is None:
            answer = self._grace_close = bool(should_close(self)) or is_terminating()
        return answer

    return type(
        cls.__name__,
        (cls,),
        {"should_close": latched, "_grace_close": None, "__module__": cls.__module__},
    )


def _is_open(sock: Any) -> bool:
    """Whether a listener is open. A worker that leaves closes its own, and gunicorn's wrapper then
    has no socket."""
    return getattr(sock, "sock", sock) is not None and sock.fileno() >= 0


def _stack_top(owner: Any) -> str:
    if isinstance(owner, int):
        frame = sys._current_frames().get(owner)
    elif hasattr(
        owner, "get_coro"
    ):  # An asyncio task: the innermost of the coroutines that wait for each other.
        inner = owner.get_coro()
        while (waits_for := getattr(inner, "cr_await", None)) is not None and hasattr(
            waits_for, "cr_frame"
        ):
            inner = waits_for
        frame = getattr(inner, "cr_frame", None)
    else:
        frame = getattr(owner, "gr_frame", None)
    if frame is None:
        return "an unknown place"
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"


def _shown(peer: Any) -> str:
    if isinstance(peer, tuple):
        return f"{peer[0]} port {peer[1]}"
    return "a UNIX socket" if peer is not None else "an unknown address"


def _answer_signals(worker: Any, seat: Seat) -> None:
    """Put our handlers in front of the worker's own: who may dismiss it, and until when it may take
    its time.

    They go into the worker's class, which in this process, after the fork, has this one instance.
    An instance that changes its class or gets attributes of its own is looked up the slow way from
    then on (CPython 3.11 to 3.13, inline values; 20,000 instructions a request were measured).
    """
    cls: Any = type(worker)
    leave, serve = cls.handle_exit, cls.run

    def may_leave(self: Any) -> bool:
        """SIGTERM. With ``dumb-init`` or ``tini -g`` it comes to the whole process group: not the
        arbiter's word."""
        try:
            seat.note_sigterm()
            if not seat.is_dismissed() and os.getppid() == self.ppid and not seat.cells[st.FAILED]:
                return False
            if not self.booted:
                # gunicorn 22.0 to 27.0 would finish loading the application first.
                self.alive = False  # Where what is loading catches SystemExit.
                sys.exit(0)
            seat.limit_drain(self.cfg)
            seat.watch_drain()
        except Exception:
            self.log.exception(
                "gunicorn-grace: failed at SIGTERM; the worker leaves as gunicorn's own"
            )
        return True

    def handle_exit(self: Any, sig: int, frame: Any) -> None:
        if sig != signal.SIGTERM or may_leave(
            self
        ):  # uvicorn-worker sends its SIGQUIT here as well.
            seat.hurried |= sig != signal.SIGTERM
            leave(self, sig, frame)

    def handle_winch(self: Any, sig: int, frame: Any) -> None:
        """The arbiter's poke, or a terminal that was resized."""
        try:
            seat.watch_drain()
        except Exception:
            self.log.exception("gunicorn-grace: failed to watch the drain; gunicorn goes on")

    def run(self: Any) -> None:
        serve(self)
        try:
            seat.stay(self)
        except Exception:
            self.log.exception(
                "gunicorn-grace: failed to wait for holds and callbacks; the worker leaves"
            )

    cls.handle_exit, cls.handle_winch, cls.run = handle_exit, handle_winch, run
    try:
        adapt(worker, lambda: may_leave(worker), seat.is_dismissed, seat.state.is_terminating)
    except Exception:
        worker.log.exception(
            "gunicorn-grace: failed to adapt %s; it goes as gunicorn's own", cls.__name__
        )


class QuietProbes(logging.Filter):
    """Drops what a thread, or greenlet, writes to the access log while it is told to be quiet."""

    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.local()

    def filter(self, record: logging.LogRecord) -> bool:
        return not getattr(self.thread, "is_quiet", False)


ACCESS_LOGS = ("accesslog", "logconfig", "logconfig_dict", "logconfig_json", "syslog")
"""Without any of these settings gunicorn's own ``access`` writes nothing (22.0 to 27.0)."""


def quieten_probes(log: Any, paths: Collection[str]) -> None:
    """Keep probes that succeed out of the access log, in this process. Runs in a worker.

    What a record of the access log holds is the user's to say (``access_log_format``, ``atoms``, a
    class of their own), so none is looked at: what stands in front of the logger's ``access`` from
    now on knows request and response. For a probe that succeeds it is not called; an ``access``
    that somebody wrote may write anywhere. But for gunicorn's StatsD, which counts in the same
    call: there it is, and what it writes is dropped.

    :param log: gunicorn's logger, an instance of ``logger_class``.
    :param paths: the paths of the probes; it may grow.
    """
    theirs = log.access
    author = type(log).access.__module__
    counts = author == "gunicorn.instrument.statsd"
    if author == "gunicorn.glogging" and not any(
        getattr(log.cfg, name, None) for name in ACCESS_LOGS
    ):
        return  # Nothing is written: every request would pay for nothing.
    quiet = QuietProbes()
    if counts:
        log.access_log.addFilter(quiet)

    def access(resp: Any, req: Any, environ: Any, request_time: Any) -> None:
        try:
            path = req.path
        except AttributeError:  # pywsgi has no request, but its headers.
            path = (environ or {}).get("PATH_INFO")
        if path not in paths or not _succeeded(resp):
            theirs(resp, req, environ, request_time)
        elif counts:
            quiet.thread.is_quiet = True
            try:
                theirs(resp, req, environ, request_time)
            finally:
                quiet.thread.is_quiet = False

    log.access = access
    # uvicorn's protocols (0.20 to 0.54) write there themselves: client, method, path with query,
    # version, status.
    logging.getLogger("uvicorn.access").addFilter(lambda record: _is_no_quiet_probe(record, paths))


def _is_no_quiet_probe(record: logging.LogRecord, paths: Collection[str]) -> bool:
    match record.args:
        case (_, _, str(path), _, status):
            return path.partition("?")[0] not in paths or not str(status).startswith("2")
    return True


def _succeeded(resp: Any) -> bool:
    status = getattr(resp, "status", None)
    return (status.decode("latin-1") if isinstance(status, bytes) else str(status)).startswith("2")


def take_seat(worker: Any, state: st.State, number: int | None, settings: Settings) -> Seat:
    """Make this process a worker of the instance. Runs in ``post_fork``, before gunicorn sets the
    worker's signals."""
    global current
    cls = type(worker)
    seat = current = Seat(
        state, number, settings, worker.log, owner=owner_of_requests(cls), threaded=is_threaded(cls)
    )
    application.current = seat.duties
    seat.tracking = tracking(cls)
    registry.log = worker.log
    seat.sees_all = seat.tracking in (HOOKS, WSGI)
    seat.cells_own[seat.slot + st.PID] = os.getpid()
    _answer_signals(worker, seat)
    # Until init_signals the arbiter's handlers would swallow a SIGTERM (gunicorn#1910: a 5 s wait
    # at the stop).
    if getattr(signal.getsignal(signal.SIGALRM), "__name__", "") == "grace_wake":
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, worker.handle_exit)
    if seat.number is not None and seat.is_dismissed():
        seat.note_sigterm()
        sys.exit(0)
    return seat
