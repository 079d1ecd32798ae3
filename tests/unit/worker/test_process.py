"""What runs in a worker: the shedding latch, the access log's filter, and the look at the worker's
own sockets."""

from __future__ import annotations

import datetime
import errno
import importlib.util
import io
import logging
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.glogging import Logger
from gunicorn.http.parser import RequestParser
from gunicorn.instrument.statsd import Statsd

from gunicorn_grace.shared import cells
from gunicorn_grace.shared.cells import Cell, Lost, Record
from gunicorn_grace.shared.memory import Memory
from gunicorn_grace.shared.phase import Phase
from gunicorn_grace.shared.settings import Settings
from gunicorn_grace.worker import classes as worker_classes
from gunicorn_grace.worker import connections, draining
from gunicorn_grace.worker.access_log import quieten_probes
from gunicorn_grace.worker.classes import tracking
from gunicorn_grace.worker.draining import IDLE_TICKS
from gunicorn_grace.worker.process import WorkerProcess

PATIENCE = 20


@pytest.fixture
def ours(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> WorkerProcess:
    """A worker in slot 2 of an instance that serves. What it teaches gunicorn's parser ends with
    it."""
    monkeypatch.setattr(RequestParser, "mesg_class", RequestParser.mesg_class)
    memory.header.phase = Phase.SERVING
    memory.claim(2, age=1)
    return WorkerProcess(memory, 2, Settings(), logging.getLogger("gunicorn.error"))


def request(raw: bytes = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n") -> Any:
    """A request as gunicorn's own parser makes it."""
    return next(RequestParser(Config(), iter([raw]), ("127.0.0.1", 1)))


def own(ours: WorkerProcess, cell: Cell) -> int:
    return ours.record.cells[ours.record.begin + cell.offset]


# -- counting ----


def test_a_request_is_in_flight_from_begin_to_end(ours: WorkerProcess) -> None:
    """Counted once, with the moment it came; after T0 as one since T0 as well."""
    first, second = request(), request()
    ours.begin(first)
    assert [own(ours, c) for c in (Record.in_flight, Record.requests, Record.since_t0)] == [1, 1, 0]
    came = own(ours, Record.last_arrival)
    ours.memory.header.sigterm = 1
    ours.begin(second)
    assert [own(ours, c) for c in (Record.in_flight, Record.requests, Record.since_t0)] == [2, 2, 1]
    assert own(ours, Record.last_arrival) > came > 0
    ours.end(first)
    ours.end(second)
    ours.end(second)
    ours.end(request())
    assert [own(ours, c) for c in (Record.in_flight, Record.requests, Record.since_t0)] == [0, 2, 1]
    assert ours.record.longest > 0


def test_a_handler_that_raises_behind_the_lock_blocks_nobody(
    ours: WorkerProcess,
) -> None:
    """gunicorn's handlers of SIGQUIT and SIGABRT raise SystemExit, between any two instructions of
    the main thread, which serves in tornado and asyncio workers. The request's end comes all the
    same."""
    done = threading.Event()

    def raises(frame: Any, event: str, arg: Any) -> None:
        if event == "c_return" and getattr(arg, "__name__", "") == "acquire":
            sys.setprofile(None)
            raise SystemExit

    def serve() -> None:
        one = request()
        sys.setprofile(raises)
        with pytest.raises(SystemExit):
            ours.begin(one)
        ours.end(one)
        ours.begin(one)
        done.set()

    threading.Thread(target=serve, daemon=True).start()
    assert done.wait(PATIENCE)


@pytest.mark.parametrize(
    "path", [b"/readyz", b"/livez", b"/startupz", b"/healthz", b"/metrics", b"/readyz?down=true"]
)
def test_probes_and_ignored_paths_are_no_traffic(ours: WorkerProcess, path: bytes) -> None:
    """They neither extend the delay nor break the quiet, but they are told to close as every
    request."""
    probe = request(b"GET " + path + b" HTTP/1.1\r\n\r\n")
    ours.begin(probe)
    ours.memory.header.sigterm = 1
    assert probe.should_close()
    ours.end(probe)
    assert [own(ours, c) for c in (Record.in_flight, Record.requests, Record.last_arrival)] == [
        0,
        0,
        0,
    ]


def test_the_longest_request_is_kept_for_two_windows(ours: WorkerProcess) -> None:
    """A new window remembers the longest of the one before it."""
    ours.record.longest, ours.record.window = 77, 1 - cells.LONGEST_WINDOW
    one = request()
    ours.begin(one)
    ours.end(one)
    assert ours.record.longest_before == 77
    assert ours.record.longest > 0
    assert ours.record.window > 0


def test_a_worker_without_a_slot_counts_for_itself(memory: Memory) -> None:
    """No cell of the shared memory changes, and everything else works."""
    before = memory.cells.tolist()
    ours = WorkerProcess(memory, None, Settings(), None)
    one = request()
    ours.begin(one)
    assert ours.counter.in_flight
    ours.end(one)
    assert ours.leaving.is_dismissed()
    assert memory.cells.tolist() == before


# -- shedding ----


def test_the_first_answer_is_kept(ours: WorkerProcess) -> None:
    """A connection that was promised to stay is not closed because the shutdown began between two
    questions."""
    promised, late = request(), request()
    ours.begin(promised)
    ours.begin(late)
    assert [promised.should_close(), promised.should_close()] == [False, False]
    ours.memory.header.sigterm = 1
    assert [promised.should_close(), promised.should_close()] == [False, False]
    assert [late.should_close(), late.should_close()] == [True, True]
    ours.memory.header.sigterm = 0
    assert late.should_close()
    assert not promised.should_close()


def test_a_client_that_closes_is_taken_at_its_word(ours: WorkerProcess) -> None:
    """gunicorn's own reasons to close count as ever, while nothing shuts down."""
    closing = request(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
    old = request(b"GET / HTTP/1.0\r\n\r\n")
    for one in (closing, old):
        ours.begin(one)
        assert one.should_close()


def test_a_shed_request_is_still_what_it_was(ours: WorkerProcess) -> None:
    """Same type for isinstance and by name; one class is made for each, and requests do not
    leak."""
    one, two = request(), request()
    cls = type(one)
    ours.begin(one)
    ours.begin(two)
    assert isinstance(one, cls)
    assert type(one) is type(two) is not cls
    assert (type(one).__name__, type(one).__module__) == (cls.__name__, cls.__module__)
    ours.end(one)
    ours.end(two)
    assert not ours.counter.in_flight


class Foreign(SimpleNamespace):
    """A request that gunicorn did not make."""

    __hash__ = object.__hash__


class Slotted:
    """No ``__dict__``: its class cannot be changed to one that has it."""

    __slots__ = ("path",)
    path: str

    def should_close(self) -> bool:
        return False


class Native(int):
    """What an extension's request is like: ``object.__new__`` refuses it."""

    path = "/"

    def should_close(self) -> bool:
        return False


@pytest.mark.parametrize(
    "one", [Slotted(), Native(1), Foreign(path="/")], ids=["slots", "native", "foreign"]
)
def test_a_request_that_cannot_be_shed_is_counted(ours: WorkerProcess, one: Any) -> None:
    """It keeps its class and its own opinion."""
    if isinstance(one, Slotted):
        one.path = "/"
    cls = type(one)
    ours.begin(one)
    assert type(one) is cls or isinstance(one, Native)
    assert own(ours, Record.in_flight) == 1
    ours.end(one)
    assert own(ours, Record.in_flight) == 0


# -- what probes are answered from ----


def test_a_worker_that_booted_serves_before_the_arbiter_noticed(ours: WorkerProcess) -> None:
    """Who asks it has a worker that serves; a shutdown that has begun counts, too."""
    ours.memory.header.phase = Phase.STARTING
    assert ours.situation().phase is Phase.STARTING
    ours.booted(SimpleNamespace(sockets=[], cfg=Config()))
    assert own(ours, Record.booted) == 1
    assert ours.situation().phase is Phase.SERVING
    ours.memory.header.sigterm = 1
    assert ours.situation().phase is Phase.LAME_DUCK
    assert ours.situation().since_t0 > 0


# -- the access log ----


PROBES = frozenset({"/readyz", "/livez", "/healthz", "/startupz"})


@pytest.fixture
def access_log(tmp_path: Path) -> Iterator[tuple[Logger, Path]]:
    """gunicorn's real logger, quietened."""
    file = tmp_path / "access.log"
    cfg = Config()
    cfg.set("accesslog", str(file))
    cfg.set("access_log_format", "%(m)s %(U)s %(s)s")
    logger = Logger(cfg)
    quieten_probes(logger, PROBES)
    yield logger, file
    target = logging.getLogger("gunicorn.access")
    for quiet in target.filters[:]:
        target.removeFilter(quiet)
    for handler in [*target.handlers, *logging.getLogger("gunicorn.error").handlers]:
        handler.close()
        target.removeHandler(handler)
        logging.getLogger("gunicorn.error").removeHandler(handler)


def log_request(logger: Any, path: str, status: Any) -> None:
    """As the worker classes do it."""
    environ = {
        "REQUEST_METHOD": "GET",
        "RAW_URI": path,
        "SERVER_PROTOCOL": "HTTP/1.1",
        "PATH_INFO": path,
        "QUERY_STRING": "",
    }
    response: Any = SimpleNamespace(status=status, headers=[], sent=3)
    asked: Any = SimpleNamespace(headers=[], path=path)
    logger.access(response, asked, environ, datetime.timedelta(seconds=1))


@pytest.mark.parametrize(
    ("path", "status", "written"),
    [
        ("/readyz", "200 OK", False),
        ("/healthz", "204 No Content", False),
        ("/startupz", 200, False),
        ("/readyz", "503 Service Unavailable", True),
        ("/readyz", "302 Found", True),
        ("/readyz/x", "200 OK", True),
        ("/", "200 OK", True),
    ],
)
def test_only_probes_that_succeed_are_left_out(
    access_log: tuple[Logger, Path], path: str, status: Any, written: bool
) -> None:
    """A probe's 2xx is dropped, everything else is written, in the format that was set."""
    logger, file = access_log
    log_request(logger, path, status)
    wanted = f"GET {path} {str(status).split()[0]}\n" if written else ""
    assert file.read_text() == wanted


def test_without_an_access_log_nothing_stands_in_front_of_the_logger() -> None:
    """gunicorn's own writes nothing then, and no request pays; a class of the user's may write all
    the same."""

    class Mine(Logger):
        def access(self, *given: Any) -> None:
            """Somewhere."""

    own, mine = Logger(Config()), Mine(Config())
    for logger in (own, mine):
        quieten_probes(logger, PROBES)
    assert "access" not in vars(own)
    assert "access" in vars(mine)


def test_what_else_is_written_to_the_access_log_stays(access_log: tuple[Logger, Path]) -> None:
    """Somebody's own line, with any arguments, also after a probe was left out."""
    logger, file = access_log
    log_request(logger, "/readyz", "200 OK")
    for args in ((), ("x",), ({"U": "/readyz", "s": "200"},)):
        logger.access_log.info("line" + " %s" * len(args), *args)
    assert file.read_text().count("line") == 3


@pytest.mark.parametrize(
    ("resp", "req", "environ", "quiet"),
    [
        (
            SimpleNamespace(status=b"200 OK"),
            [("Host", "x")],
            {"REQUEST_METHOD": "GET", "PATH_INFO": "/readyz"},
            True,
        ),
        (
            SimpleNamespace(status=b"200 OK"),
            [("Host", "x")],
            {"REQUEST_METHOD": "POST", "PATH_INFO": "/readyz"},
            False,
        ),
        (SimpleNamespace(status=200), SimpleNamespace(method="HEAD", path="/readyz"), None, True),
        (SimpleNamespace(status=200), SimpleNamespace(method="PUT", path="/readyz"), None, False),
        (
            SimpleNamespace(status="200 OK"),
            SimpleNamespace(method="GET", path="/api/readyz"),
            {"PATH_INFO": "/readyz"},
            False,
        ),
        (None, None, None, False),
    ],
    ids=["pywsgi", "pywsgi POST", "asgi", "asgi PUT", "mounted", "nothing"],
)
def test_an_access_of_the_users_own_is_not_called_for_probes_that_succeed(
    resp: Any, req: Any, environ: Any, quiet: bool
) -> None:
    """It may write anywhere. What it is given is what each worker class has; a path that the
    application rewrote in the environ is not ours."""
    seen = []

    class Mine:
        def access(self, *given: Any) -> None:
            seen.append(given)

    mine = Mine()
    quieten_probes(mine, PROBES)
    mine.access(resp, req, environ, 1)
    assert seen == ([] if quiet else [(resp, req, environ, 1)])


def test_statsd_goes_on_counting_probes(tmp_path: Path) -> None:
    """gunicorn's StatsD logger writes the access log and counts in one call: only the line is left
    out."""
    file = tmp_path / "access.log"
    cfg = Config()
    cfg.set("accesslog", str(file))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(20)
        cfg.set("statsd_host", f"127.0.0.1:{server.getsockname()[1]}")
        logger = Statsd(cfg)
        try:
            quieten_probes(logger, PROBES)
            log_request(logger, "/readyz", "200 OK")
            counted = [server.recv(1000).decode() for _ in range(3)]
        finally:
            logger.sock.close()
            for target in (logger.access_log, logger.error_log):
                for quiet in target.filters[:]:
                    target.removeFilter(quiet)
                for handler in target.handlers[:]:
                    handler.close()
                    target.removeHandler(handler)
    assert any(line.startswith("gunicorn.requests:1|c") for line in counted)
    assert file.read_text() == ""


# -- worker classes ----


@pytest.mark.parametrize(
    ("module", "name", "how", "needs"),
    [
        ("sync", "SyncWorker", "hooks", None),
        ("gthread", "ThreadWorker", "hooks", None),
        ("base_async", "AsyncWorker", "hooks", None),
        ("ggevent", "GeventWorker", "hooks", "gevent"),
        ("ggevent", "GeventPyWSGIWorker", "wsgi", "gevent"),
        ("gtornado", "TornadoWorker", "wsgi", "tornado"),
        ("gasgi", "ASGIWorker", "asgi hooks", None),
        ("base", "Worker", None, None),
    ],
)
def test_how_each_worker_class_is_tracked(
    module: str, name: str, how: str | None, needs: str | None
) -> None:
    """gunicorn's real classes, and a user's subclass of each."""
    if needs:
        pytest.importorskip(needs)
    if importlib.util.find_spec(f"gunicorn.workers.{module}") is None:
        pytest.skip(f"no {module} in this gunicorn")
    cls = getattr(importlib.import_module(f"gunicorn.workers.{module}"), name)
    assert tracking(cls) == how
    assert tracking(type("Mine", (cls,), {})) == how


@pytest.mark.parametrize("name", sorted(worker_classes.HOOKED | worker_classes.WRAPPED))
def test_a_class_of_no_kin_is_not_tracked(name: str) -> None:
    """What is not a worker that we know is named at boot, and not guessed at."""
    assert tracking(type("Custom" + name, (), {})) is None


# -- its own sockets ----


linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/fd and tcp_info are Linux's")


class Pair:
    """A listener, a client of it, and the accepted side."""

    def __init__(self, family: int, address: Any) -> None:
        self.listener = socket.socket(family)
        self.listener.bind(address)
        self.listener.listen()
        self.client = socket.socket(family)
        self.client.settimeout(PATIENCE)
        self.client.connect(self.listener.getsockname())
        self.accepted, _ = self.listener.accept()
        self.accepted.settimeout(PATIENCE)
        self.address = connections.bare(self.listener.getsockname())

    def inode(self) -> int:
        return os.fstat(self.accepted.fileno()).st_ino

    def close(self) -> None:
        for sock in (self.client, self.accepted, self.listener):
            sock.close()


@pytest.fixture(params=["ipv4", "ipv6", "unix"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    """An open connection of each family, accepted at a wildcard address where there is one."""
    family, address = {
        "ipv4": (socket.AF_INET, ("0.0.0.0", 0)),
        "ipv6": (socket.AF_INET6, ("::", 0)),
        "unix": (socket.AF_UNIX, str(tmp_path / "s")),
    }[request.param]
    made = Pair(family, address)
    yield made
    made.close()


@linux
def test_the_accepted_connections_are_found_and_nothing_else(pair: Pair) -> None:
    """Not the listener, not the client's end, not a pipe or file, and nobody else's connection."""
    other = Pair(socket.AF_INET, ("127.0.0.1", 0))
    before = len(os.listdir("/proc/self/fd"))
    try:
        found = [key[1] for _, key in connections.accepted_at(frozenset({pair.address}))]
        assert found == [pair.inode()]
        both = {
            key[1] for _, key in connections.accepted_at(frozenset({pair.address, other.address}))
        }
        assert both == {pair.inode(), other.inode()}
        assert list(connections.accepted_at(frozenset())) == []
        assert len(os.listdir("/proc/self/fd")) == before
    finally:
        other.close()


@linux
def test_unread_is_what_waits_in_the_socket(pair: Pair) -> None:
    """A request that has arrived but was not yet read keeps its connection."""
    assert connections.unread(pair.accepted) == 0
    pair.client.sendall(b"12345")
    assert pair.accepted.recv(1, socket.MSG_PEEK) == b"1"
    assert connections.unread(pair.accepted) == 5
    pair.accepted.recv(5)
    assert connections.unread(pair.accepted) == 0


@linux
def test_never_sent_is_true_until_the_first_byte(pair: Pair) -> None:
    """What was read since counts; a UNIX socket cannot tell, which counts as no."""
    assert connections.never_sent(pair.accepted) is (pair.accepted.family != socket.AF_UNIX)
    pair.client.sendall(b"x")
    pair.accepted.recv(1)
    assert not connections.never_sent(pair.accepted)


@linux
@pytest.mark.parametrize("closely", [False, True])
def test_a_request_waits_from_its_first_byte_until_it_is_read(
    ours: WorkerProcess, pair: Pair, closely: bool
) -> None:
    """A silent connection waits for nothing; nor does one whose request has been begun, or one that
    this side has shut because it has answered."""
    ours.waiting.addresses = frozenset({pair.address})

    def waiting() -> int:
        ours.waiting.look(closely=closely)
        return own(ours, Record.waiting)

    assert waiting() == 0
    pair.client.sendall(b"GET / HTTP/1.1\r\n")
    assert pair.accepted.recv(1, socket.MSG_PEEK) == b"G"
    assert waiting() == 1
    one = Foreign(path="/", unreader=SimpleNamespace(sock=pair.accepted))
    ours.begin(one)
    assert waiting() == 0
    ours.end(one)
    assert waiting() == 1
    elsewhere = Foreign(path="/")  # It does not say on which connection.
    ours.begin(elsewhere)
    assert waiting() == 0
    ours.end(elsewhere)
    if pair.accepted.family != socket.AF_UNIX:
        pair.accepted.shutdown(socket.SHUT_WR)
        assert waiting() == 0


@linux
def test_a_request_that_was_read_in_part_is_known_until_it_is_answered(
    ours: WorkerProcess,
) -> None:
    """The kernel knows who has sent last. A client that has gone waits for nothing."""
    pair = Pair(socket.AF_INET, ("127.0.0.1", 0))
    try:
        ours.waiting.addresses = frozenset({pair.address})

        def half_read() -> int:
            ours.waiting.look(closely=True)
            return own(ours, Record.half_read)

        assert half_read() == 0
        pair.client.sendall(b"GET / HT")
        assert pair.accepted.recv(8) == b"GET / HT"
        assert (half_read(), own(ours, Record.waiting)) == (1, 0)
        elsewhere = Foreign(path="/")  # It does not say on which connection.
        ours.begin(elsewhere)
        assert half_read() == 0
        ours.end(elsewhere)
        assert half_read() == 1
        time.sleep(0.02)  # The kernel's clock has milliseconds.
        pair.accepted.sendall(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
        assert half_read() == 0
        time.sleep(0.02)
        pair.client.sendall(b"GET")
        assert pair.accepted.recv(3) == b"GET"
        assert half_read() == 1
        pair.client.shutdown(socket.SHUT_WR)
        assert pair.accepted.recv(1) == b""
        assert half_read() == 0
    finally:
        pair.close()


FIRST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n"
NEXT = b"GET /next HTTP/1.1\r\nHost: x\r\n\r\n"


@linux
@pytest.mark.parametrize(
    ("sent", "read", "behind"),
    [
        (FIRST + b"body", 0, 0),
        (FIRST + b"bo", 0, 0),
        (FIRST + b"body" + NEXT, 0, 1),
        (FIRST + b"body" + NEXT, 4, 1),
        (FIRST + b"body" + NEXT * 3, 2, 3),
        (FIRST + b"body" + FIRST + b"body" + NEXT[:9], 4, 2),
        (NEXT + NEXT * 500, 0, 500),  # More than gunicorn reads at once: the rest is unread.
        (FIRST.replace(b"Content-Length: 4", b"Transfer-Encoding: chunked") + NEXT, 0, 0),
    ],
    ids=repr,
)
def test_what_waits_behind_a_request_is_counted(
    ours: WorkerProcess, pair: Pair, sent: bytes, read: int, behind: int
) -> None:
    """On the same connection, read ahead or not; the body of the request in flight is its own,
    whether or not the application has read it."""
    ours.waiting.addresses = frozenset({pair.address})
    pair.client.sendall(sent)
    first = next(RequestParser(Config(), pair.accepted, ("127.0.0.1", 1)))
    first.body.read(read)
    ours.begin(first)
    ours.waiting.look(closely=True)
    assert own(ours, Record.pipelined) == behind
    assert own(ours, Record.waiting) == own(ours, Record.half_read) == 0
    ours.end(first)


@linux
def test_a_client_that_has_gone_hides_nothing_that_was_read_ahead(
    ours: WorkerProcess, pair: Pair
) -> None:
    """A reset of the connection ends no look at it: what gunicorn has read ahead still counts."""
    ours.waiting.addresses = frozenset({pair.address})
    pair.client.sendall(NEXT * 3)
    first = next(RequestParser(Config(), pair.accepted, ("127.0.0.1", 1)))
    ours.begin(first)
    pair.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    pair.client.close()
    ours.waiting.look(closely=True)
    assert own(ours, Record.pipelined) == 2
    ours.end(first)


@linux
@pytest.mark.parametrize("emptied", [False, True])
def test_a_listener_that_was_shut_says_nothing_waits_in_a_drain_alone(
    ours: WorkerProcess, emptied: bool
) -> None:
    """EINVAL from accept means that there was nothing to accept if the arbiter has shut the
    listener. At any other time it is an error, which gunicorn has to see."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.setblocking(False)
        shut = SimpleNamespace(sock=sock, getsockname=sock.getsockname, fileno=sock.fileno)
        worker = type("SyncWorker", (), {"sockets": [shut]})()
        ours.draining.accepting.booted(worker, owns_listeners=False)
        sock.shutdown(socket.SHUT_RD)
        ours.memory.header.emptied = emptied
        with pytest.raises(OSError) as raised:
            shut.accept()
        assert raised.value.errno == (errno.EAGAIN if emptied else errno.EINVAL)


@linux
def test_a_worker_that_hangs_after_its_last_look_lost_one_request(
    ours: WorkerProcess, pair: Pair
) -> None:
    """It was seen to wait, and then it was begun: it is lost once, and not twice."""
    ours.waiting.addresses = frozenset({pair.address})
    pair.client.sendall(NEXT)
    assert pair.accepted.recv(1, socket.MSG_PEEK) == b"G"
    ours.waiting.look(closely=True)
    assert ours.record.would_lose() == Lost(not_begun=1)
    ours.begin(next(RequestParser(Config(), pair.accepted, ("127.0.0.1", 1))))
    assert ours.record.would_lose() == Lost(in_flight=1)


@linux
@pytest.mark.parametrize("state", ["idle", "busy", "unread"])
def test_idle_connections_read_an_end_of_file(ours: WorkerProcess, pair: Pair, state: str) -> None:
    """Idle for six looks in a row, or two where nothing was ever sent; one with a request in it is
    left alone."""
    ours.draining.addresses = frozenset({pair.address})
    pair.client.sendall(b"x")
    assert pair.accepted.recv(1) == b"x"
    pair.accepted.sendall(b"y")
    assert pair.client.recv(1) == b"y"
    if state == "busy":
        one = Foreign(path="/", unreader=SimpleNamespace(sock=pair.accepted))
        ours.begin(one)
    elif state == "unread":
        pair.client.sendall(b"more")
        assert pair.accepted.recv(1, socket.MSG_PEEK) == b"m"
    pair.accepted.setblocking(False)
    idle: dict[tuple[int, int], int] = {}
    for _ in range(IDLE_TICKS - 1):
        idle = ours.draining._close_idle(idle)
    assert not ended(pair.accepted)
    ours.draining._close_idle(idle)
    if state == "unread":
        assert pair.accepted.recv(4) == b"more"
    assert ended(pair.accepted) is (state == "idle")
    pair.accepted.sendall(b"answer")
    assert pair.client.recv(6) == b"answer"


@linux
@pytest.mark.parametrize("http2", [False, True])
def test_a_connection_in_the_middle_of_a_request_is_left_alone(
    ours: WorkerProcess, http2: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part of a request was read, and the rest may come: until nothing has come for SENDING_FOR
    seconds. A client of HTTP/2 has the last word also when it asks for nothing."""
    pair = Pair(socket.AF_INET, ("127.0.0.1", 0))
    try:
        ours.draining.addresses = frozenset({pair.address})
        ours.draining._speaks_http2 = http2
        pair.client.sendall(b"GET / HT")
        assert pair.accepted.recv(8) == b"GET / HT"
        pair.accepted.setblocking(False)
        idle: dict[tuple[int, int], int] = {}
        for _ in range(IDLE_TICKS):
            idle = ours.draining._close_idle(idle)
        assert ended(pair.accepted) is http2
        monkeypatch.setattr(connections, "SENDING_FOR", 0)
        idle = {}
        for _ in range(IDLE_TICKS):
            idle = ours.draining._close_idle(idle)
        assert ended(pair.accepted)
    finally:
        pair.close()


def ended(sock: socket.socket) -> bool:
    try:
        return sock.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False


@linux
def test_a_connection_that_never_sent_is_gone_at_the_second_look(
    ours: WorkerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even while a request is in flight whose connection is not known (HTTP/2). One that was
    established a moment ago is left alone."""
    pair = Pair(socket.AF_INET, ("127.0.0.1", 0))
    try:
        ours.draining.addresses = frozenset({pair.address})
        ours.begin(Foreign(path="/", unreader=None))
        pair.accepted.setblocking(False)
        assert ours.draining._close_idle({}) == {}
        monkeypatch.setattr(draining, "was_in_use", lambda *_: False)
        idle = ours.draining._close_idle({})
        assert not ended(pair.accepted)
        ours.draining._close_idle(idle)
        assert ended(pair.accepted)
    finally:
        pair.close()


def test_what_is_in_flight_is_named_without_its_query(ours: WorkerProcess) -> None:
    """Method, path, age and where its code is: this very file."""
    stream = io.StringIO()
    log = logging.Logger("dump")
    log.addHandler(logging.StreamHandler(stream))
    ours.unfinished._log = log
    for raw in (b"POST /slow?password=x HTTP/1.1\r\n\r\n", b"GET /readyz HTTP/1.1\r\n\r\n"):
        ours.begin(request(raw))
    ours.unfinished.tell("now")
    line = stream.getvalue()
    assert line.count("\n") == 1
    assert "in flight now: POST /slow for 0." in line
    assert "test_process.py:" in line
    assert "password" not in line
