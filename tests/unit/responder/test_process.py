"""The probe responder: what it answers, to whom, and from what; and what the workers show it."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as hyp

from gunicorn_grace.probes.answers import Answer
from gunicorn_grace.probes.checks import Registry
from gunicorn_grace.responder import http
from gunicorn_grace.responder.answering import ResponderAnswers
from gunicorn_grace.responder.http import HEAD, ProbeRequest, Server, encode, parse
from gunicorn_grace.shared import cells as layout
from gunicorn_grace.shared.agreed import KINDS
from gunicorn_grace.shared.board import (
    BOARD_CELLS,
    ENTRIES,
    HEARTBEAT_CELL,
    NAME_BYTES,
    Board,
    Entry,
)
from gunicorn_grace.shared.memory import Memory
from gunicorn_grace.shared.phase import Kind, Origin, Phase
from gunicorn_grace.shared.settings import Secret, Settings
from gunicorn_grace.worker.publishing import RUN_EVERY, SLACK, Publisher
from support.trials import trials

pytestmark = pytest.mark.once

S = layout.NS
NOW = 1_000 * S


@pytest.fixture
def shared() -> Iterator[Memory]:
    """The memory of an instance with a probe port."""
    made = Memory.create(slots=4, boards=True)
    yield made
    made.close()


class Asked:
    """A probe with a clock that the test turns, and what it said."""

    def __init__(self, memory: Memory, timeout: float = 30, **settings: Any) -> None:
        self.memory = memory
        self.now = NOW
        self.said: list[str] = []
        self.answers = ResponderAnswers(
            memory, Settings(**settings), timeout, self.said.append, lambda: self.now
        )

    def __call__(self, target: str, method: str = "GET", **headers: str) -> Answer:
        path, _, query = target.partition("?")
        return self.answers.answer(
            ProbeRequest(method, path, query, {"gunicorn.socket": None, **headers})
        )


def board_of(memory: Memory, number: int) -> Board:
    board = memory.board(number)
    assert board is not None
    return board


def entries(memory: Memory, number: int) -> list[Entry]:
    return board_of(memory, number).entries()


def boot(memory: Memory, number: int, heartbeat: int = NOW) -> None:
    """A worker that has booted and told gunicorn so."""
    memory.claim(number, number + 1)
    memory.record(number).booted = 1
    memory.cells[board_of(memory, number).begin + HEARTBEAT_CELL] = heartbeat
    memory.header.phase = Phase.SERVING


def show(
    memory: Memory, number: int, name: str, at: int, passed: bool, kind: Kind = Kind.READINESS
) -> int:
    cell = board_of(memory, number).add(name, KINDS.index(kind), 20 * S)
    assert cell is not None
    if at:
        memory.cells[cell] = at & ~1 | passed
    return cell


# -- phases ----


@pytest.mark.parametrize(
    ("phase", "live", "ready", "started"),
    [
        (Phase.STARTING, 200, 503, 503),
        (Phase.SERVING, 200, 200, 200),
        (Phase.LAME_DUCK, 200, 503, 200),
        (Phase.DRAINING, 200, 503, 200),
        (Phase.STOPPED, 200, 503, 200),
    ],
)
def test_every_phase(phase: Phase, live: int, ready: int, started: int, shared: Memory) -> None:
    """The table of DESIGN 9, at the probe port."""
    asked = Asked(shared)
    if phase is not Phase.STARTING:
        boot(shared, 0)
    shared.header.phase = phase
    assert [asked(path).status for path in ("/livez", "/healthz", "/readyz", "/startupz")] == [
        live,
        live,
        ready,
        started,
    ]


def test_ready_needs_a_worker_that_has_booted_now(shared: Memory) -> None:
    """In SERVING, but the last worker is gone: nobody would serve; start-up is past."""
    asked = Asked(shared)
    boot(shared, 2)
    assert asked("/readyz").status == 200
    shared.record(2).claimed = 0
    assert asked("/readyz").body == "[-]booted failed: reason withheld\n"
    assert asked("/startupz").status == 200
    shared.claim(2, 9)
    assert asked("/readyz").status == 503
    boot(shared, 3)
    assert asked("/readyz").status == 200


def test_the_newest_heartbeat_counts(shared: Memory) -> None:
    """Until ``timeout`` is over for the last of the workers; 0 switches it off, as it does
    gunicorn's."""
    asked = Asked(shared, timeout=30)
    boot(shared, 0, NOW - 100 * S)
    boot(shared, 1, NOW - 30 * S)
    assert asked("/readyz").status == 200
    asked.now += 1
    assert asked("/readyz").body == "[-]heartbeat failed: reason withheld\n"
    assert asked("/livez").status == 200
    assert Asked(shared, timeout=0)("/readyz").status == 200
    assert asked("/readyz").status == 503
    boot(shared, 0, asked.now)
    assert asked("/readyz").status == 200
    assert [line.split(":")[0] for line in asked.said] == [
        "not ready, heartbeat",
        "heartbeat passes again",
    ]


def test_an_upgraded_instance_stays_ready(shared: Memory) -> None:
    """The other arbiter serves the same sockets, and this probe port's listener as well."""
    asked = Asked(shared)
    boot(shared, 0, NOW - 100 * S)
    shared.header.upgraded = 1
    shared.header.phase = Phase.DRAINING
    assert asked("/readyz").status == 200
    shared.record(0).claimed = 0
    assert asked("/readyz").status == 200


# -- checks ----


def test_the_newest_result_of_each_check_counts(shared: Memory) -> None:
    """Whichever worker it comes from; one that is gone does not count, nor one that has not
    booted."""
    asked = Asked(shared)
    boot(shared, 0)
    boot(shared, 1)
    show(shared, 0, "db", NOW - 3 * S, True)
    cell = show(shared, 1, "db", NOW - 2 * S, False)
    assert asked("/readyz").body == "[-]db failed: reason withheld\n"
    assert asked("/readyz?exclude=db").status == 200
    assert (asked("/readyz/db").status, asked("/readyz/nothing").status) == (503, 404)
    shared.cells[cell] = NOW - 4 * S | 1
    assert asked("/readyz").status == 200
    shared.record(0).claimed = 0
    shared.cells[cell] = NOW & ~1
    assert asked("/readyz").status == 503
    shared.claim(2, 7)
    show(shared, 2, "db", NOW, True)
    assert asked("/readyz").status == 503


@pytest.mark.parametrize(
    ("kind", "unknown", "stale", "failed"),
    [
        (Kind.READINESS, 503, 503, 503),
        (Kind.LIVENESS, 200, 200, 503),
        (Kind.STARTUP, 503, 200, 503),
    ],
)
def test_what_is_not_known(
    kind: Kind, unknown: int, stale: int, failed: int, shared: Memory
) -> None:
    """No result yet, and one that nobody brought up to date: readiness is red, liveness never is
    for that alone."""
    path = {Kind.READINESS: "/readyz", Kind.LIVENESS: "/livez", Kind.STARTUP: "/startupz"}[kind]
    asked = Asked(shared, timeout=0)
    boot(shared, 0)
    cell = show(shared, 0, "it", 0, False, kind)
    assert asked(path).status == unknown
    shared.cells[cell] = NOW | 1
    assert asked(path).status == 200
    asked.now += 20 * S
    assert asked(path).status == 200
    asked.now += 2
    assert asked(path).status == stale
    shared.cells[cell] = asked.now & ~1
    assert asked(path).status == failed


@pytest.mark.parametrize("name", ["\0", "a b", "a\nb", "\x1b[31m", "é", "a\0\0\1"])
def test_a_name_that_no_check_has_is_ignored(name: str, shared: Memory) -> None:
    """A process has written it over the board. It reaches neither the answer nor the log, which
    has one line about it, and a check beside it still counts."""
    asked = Asked(shared)
    boot(shared, 0)
    show(shared, 0, name, NOW, False)
    show(shared, 0, "db", NOW, True)
    for _ in range(2):
        assert asked("/readyz").body == "ok\n"
        assert asked("/readyz?verbose").body.count("db") == 1
    (said,) = asked.said
    assert said.startswith("a process has overwritten the shared memory")
    assert said.isprintable()


def test_a_slot_given_anew_shows_nothing_of_the_former(shared: Memory) -> None:
    """The board of a worker that is gone is wiped before its slot counts again."""
    boot(shared, 0)
    show(shared, 0, "old", NOW, False)
    assert [shown.name for shown in entries(shared, 0)] == ["old"]
    shared.record(0).claimed = 0
    boot(shared, 0)
    assert entries(shared, 0) == []
    assert Asked(shared)("/readyz").status == 200


def test_a_board_has_room_for_so_many(shared: Memory) -> None:
    """Beyond that, and for a name that is too long, ``add`` says no; without a probe port there is
    no board."""
    shared.claim(1, 1)
    long = "n" * NAME_BYTES
    board = board_of(shared, 1)
    assert board.add(long + "n", 0, 1) is None
    cells = [board.add(f"{number}".rjust(NAME_BYTES, "n"), 1, number) for number in range(ENTRIES)]
    assert len(set(cells)) == ENTRIES
    assert board.add("more", 0, 1) is None
    shown = entries(shared, 1)
    assert [one.good_for for one in shown] == list(range(ENTRIES))
    assert {len(one.name) for one in shown} == {NAME_BYTES}
    shared.claim(2, 1)
    assert entries(shared, 2) == []
    with contextlib.closing(Memory.create(slots=1)) as plain:
        assert plain.board(0) is None


def test_the_boards_lie_after_everything_else(shared: Memory) -> None:
    """Nothing that a reader without boards knows has moved, and the last board ends with the
    memory."""
    assert board_of(shared, 0).begin == shared.record(3).begin + layout.RECORD_CELLS
    assert board_of(shared, 3).begin + BOARD_CELLS == len(shared.cells)


# -- the publisher ----


class Log:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def warning(self, line: str, *args: Any) -> None:
        self.lines.append(line % args)

    info = warning


class Turned:
    """A registry on a clock that the test turns, published by hand."""

    def __init__(self, memory: Memory, readiness_delay: float = 0) -> None:
        self.now = 100.0
        self.log = Log()
        self.registry = Registry(lambda: self.now)
        self.registry.log = self.log
        memory.claim(0, 1)
        self.memory = memory
        self.publisher = Publisher(
            memory, board_of(memory, 0), self.log, readiness_delay, self.registry
        )

    def step(self) -> float:
        """Until nothing is running any more."""
        until = time.monotonic() + 20
        while True:
            pause = self.publisher.step()
            if all(place.run is None for place in self.publisher._places.values()):
                return pause
            assert time.monotonic() < until
            time.sleep(0.001)

    def results(self) -> dict[str, bool]:
        return {shown.name: shown.passed for shown in entries(self.memory, 0) if shown.known}


def test_a_check_is_run_once_its_ttl_is_over(shared: Memory) -> None:
    """Not before, and then its new result is shown; one with a ``ttl`` of 0 is run once a
    second."""
    turned, answers, calls = Turned(shared), {"a": True, "b": True}, []
    for name, ttl in (("a", 5.0), ("b", 0.0)):
        turned.registry.register(
            name,
            lambda name=name: (calls.append(name), answers[name])[1],
            kind="readiness",
            timeout=1,
            ttl=ttl,
        )
    turned.publisher.add()
    assert [(shown.name, shown.known) for shown in entries(shared, 0)] == [("a", 0), ("b", 0)]
    assert turned.step() <= RUN_EVERY
    assert turned.results() == {"a": True, "b": True}
    answers.update(a=False, b=False)
    turned.now += RUN_EVERY
    turned.step()
    assert turned.results() == {"a": True, "b": False}
    turned.now += 5.0
    turned.step()
    assert turned.results() == {"a": False, "b": False}
    assert calls.count("a") == 2
    assert {shown.name: shown.good_for for shown in entries(shared, 0)} == {
        "a": (5 + 1 + SLACK) * S,
        "b": (RUN_EVERY + 1 + SLACK) * S,
    }


def test_a_check_that_hangs_does_not_hold_up_the_others(shared: Memory) -> None:
    """Its failure is shown at its deadline, and the others' results meanwhile."""
    turned, release = Turned(shared), threading.Event()
    turned.registry.register("hangs", release.wait, kind="readiness", timeout=50, ttl=1)
    turned.registry.register("quick", lambda: True, kind="readiness", timeout=1, ttl=1)
    until = time.monotonic() + 20
    while turned.results() != {"quick": True}:
        assert turned.publisher.step() <= RUN_EVERY
        assert time.monotonic() < until
        time.sleep(0.001)
    turned.now += 50
    turned.publisher.step()
    assert turned.results()["hangs"] is False
    release.set()


def test_checks_that_come_later_are_shown_as_well(shared: Memory) -> None:
    """Applications register them when they are imported, which may be lazily."""
    turned = Turned(shared)
    turned.step()
    turned.registry.register("late", lambda: None, kind="liveness", timeout=1, ttl=1)
    turned.step()
    assert turned.results() == {"late": True}


def test_nothing_is_run_once_the_shutdown_has_begun(shared: Memory) -> None:
    """The checks decide nothing any more; after ``undrain`` they do."""
    turned, calls = Turned(shared), []
    turned.registry.register("a", lambda: calls.append(1), kind="readiness", timeout=1, ttl=0)
    shared.header.trigger = 8
    turned.step()
    assert calls == []
    shared.header.consumed = 8
    turned.step()
    assert calls == [1]


def test_checks_are_run_as_long_as_they_decide(shared: Memory) -> None:
    """Readiness is theirs for ``grace_readiness_delay`` after T0; and in an upgrade, which has no
    T0, to the end."""
    turned, calls = Turned(shared, readiness_delay=3600), []
    turned.registry.register("a", lambda: calls.append(1), kind="readiness", timeout=1, ttl=0)
    shared.trigger(Origin.HTTP)
    turned.step()
    assert calls == [1]
    shared.header.trigger = 0
    shared.header.phase = Phase.DRAINING
    turned.now += RUN_EVERY
    turned.step()
    assert calls == [1, 1]


def test_one_check_too_many_is_told_once(shared: Memory) -> None:
    """It does not count at the probe port, and the log says which."""
    turned = Turned(shared)
    for number in range(ENTRIES + 1):
        turned.registry.register(f"c{number}", lambda: None, kind="readiness", timeout=1, ttl=60)
    turned.step()
    turned.step()
    assert len(turned.results()) == ENTRIES
    assert turned.log.lines == [
        f"gunicorn-grace: the readiness check c{ENTRIES} does not count at the probe port: "
        f"there is room for {ENTRIES} checks"
    ]


# -- paths, methods, the trigger ----


def test_paths_and_methods(shared: Memory) -> None:
    """404 for what is not a probe, 405 with Allow for what does not read; nothing sent comes
    back."""
    asked = Asked(shared, readiness_path="/ok")
    boot(shared, 0)
    assert [asked(path).status for path in ("/", "/readyz", "/ok/", "//ok", "/OK", "*")] == [
        404
    ] * 6
    assert asked("/ok").status == 200
    refused = asked("/ok", "DELETE")
    assert (refused.status, dict(refused.headers)["Allow"]) == (405, "GET, HEAD")
    assert asked("/nothing", "DELETE").status == 404
    assert "secret" not in asked("/secret").body


def test_a_token_decides_over_the_trigger(shared: Memory) -> None:
    """Right: 503 and the shutdown has begun; wrong or none: 403, logged once a minute; never for
    another path."""
    asked = Asked(shared, trigger="token", trigger_token=Secret("s3cret"))
    boot(shared, 0)
    for _ in range(3):
        assert asked("/readyz?down=true", HTTP_X_GRACE_TOKEN="guess").status == 403
    assert (asked("/livez?down=true").status, asked("/readyz?down=false").status) == (200, 200)
    assert len(asked.said) == 1
    assert "guess" not in asked.said[0]
    assert not shared.is_terminating()
    asked.now += 60 * S
    assert asked("/readyz?down=true").status == 403
    assert len(asked.said) == 2
    assert asked("/readyz?down=true", HTTP_X_GRACE_TOKEN="s3cret").status == 503
    assert shared.header.trigger & layout.ORIGIN_MASK == Origin.HTTP


def test_an_expired_trigger_shuts_it(shared: Memory) -> None:
    """Once one was not followed by SIGTERM, ``?down=true`` is refused here as well."""
    asked = Asked(shared, trigger="token", trigger_token=Secret("s3cret"))
    boot(shared, 0)
    shared.header.http_shut = 1
    assert asked("/readyz?down=true", HTTP_X_GRACE_TOKEN="s3cret").status == 403
    assert not shared.is_terminating()


def test_off_makes_the_trigger_a_probe(shared: Memory) -> None:
    """With ``grace_trigger = "off"`` the query means nothing."""
    asked = Asked(shared, trigger="off")
    boot(shared, 0)
    assert asked("/readyz?down=true").status == 200
    assert not shared.is_terminating()


# -- parsing ----


def test_a_request_is_read() -> None:
    """Method, decoded path, query, and headers as WSGI names them; the same twice are one."""
    got = parse(
        b"\r\nGET /re%61dyz?a=b&c HTTP/1.1\r\nHost: x\r\nX-Grace-Token: 1\r\nx-grace-token: 2\r\n"
        b"\r\n"
    )
    assert isinstance(got, ProbeRequest)
    assert got[:3] == ("GET", "/readyz", "a=b&c")
    assert got.environ["HTTP_HOST"] == "x"
    assert got.environ["HTTP_X_GRACE_TOKEN"] == "1,2"


@pytest.mark.parametrize(
    "head",
    [
        b"GET /readyz\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"GET / HTTP/2.0\r\n\r\n",
        b"GET / HTTP/1.1\r\nno header\r\nForwarded: for=1.2.3.4\r\n\r\n",
        b"GET / HTTP/1.1\r\nForwarded : for=1.2.3.4\r\n\r\n",
        b"GET / HTTP/1.1\r\n Forwarded: for=1.2.3.4\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\n\n",
        b"GET / HTTP/1.1\r\n" + b"".join(b"A%d: b\r\n" % number for number in range(200)) + b"\r\n",
    ],
)
def test_what_is_no_request_is_refused(head: bytes) -> None:
    """Also where a forwarding header could hide behind what is none."""
    got = parse(head)
    assert isinstance(got, int)
    assert 400 <= got < 600


@trials(300)
@given(
    hyp.one_of(
        hyp.binary(max_size=300),
        hyp.binary(max_size=60).map(lambda b: b"GET /readyz HTTP/1.1\r\n" + b),
    )
)
def test_no_garbage_gets_through_the_parser(head: bytes) -> None:
    """Whatever comes is a request or a status, and whatever is answered is HTTP that a strict
    parser takes."""
    got = parse(head + b"\r\n\r\n")
    answer = Answer(got, "no\n") if isinstance(got, int) else Answer(200, "ok\n")
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
    client.send(h11.EndOfMessage())
    client.receive_data(encode(answer))
    event = client.next_event()
    assert isinstance(event, h11.Response)
    assert event.status_code == answer.status


# -- the loop ----


@pytest.fixture
def served() -> Iterator[Callable[..., tuple[Server, Callable[[], socket.socket]]]]:
    """Serve an answer in a thread, on a socket of its own; it retires with the test."""
    with contextlib.ExitStack() as stack:

        def start(
            answer: Callable[[ProbeRequest], Answer] = lambda request: Answer(200, request.path),
            **options: Any,
        ) -> tuple[Server, Callable[[], socket.socket]]:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=128))
            server = Server(listener, answer, options.pop("say", lambda line: None), **options)
            thread = threading.Thread(target=server.run)

            def end() -> None:
                server.retire()
                thread.join(20)
                assert not thread.is_alive()
                server.close()

            stack.callback(end)
            thread.start()

            def connect() -> socket.socket:
                return stack.enter_context(
                    socket.create_connection(listener.getsockname(), timeout=20)
                )

            return server, connect

        yield start


Served = Callable[..., tuple[Server, Callable[[], socket.socket]]]


def everything(sock: socket.socket) -> bytes:
    """Until the server has closed."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while got := sock.recv(65536):
            data += got
    return data


GET = b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n"


def test_one_answer_and_the_end(served: Served) -> None:
    """The response is complete, says that it closes, and the connection ends; what was sent after
    it is not read."""
    _, connect = served()
    sock = connect()
    sock.sendall(GET + GET)
    data = everything(sock)
    assert data.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nConnection: close\r\n" in data
    assert data.endswith(b"\r\n\r\n/readyz")
    assert data.count(b"HTTP/1.1") == 1


def test_head_has_no_body(served: Served) -> None:
    """But the length that GET would have."""
    _, connect = served()
    sock = connect()
    sock.sendall(GET.replace(b"GET", b"HEAD"))
    data = everything(sock)
    assert b"\r\nContent-Length: 7\r\n" in data
    assert data.endswith(b"\r\n\r\n")


def test_a_request_may_come_byte_by_byte(served: Served) -> None:
    """It is answered once the blank line is there."""
    _, connect = served()
    sock = connect()
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in b"\r\n" + GET:
        sock.sendall(bytes([byte]))
    assert everything(sock).endswith(b"/readyz")


def test_a_head_without_an_end_is_refused(served: Served) -> None:
    """More than a request may have, and no blank line: 431."""
    _, connect = served()
    sock = connect()
    sock.sendall(b"GET /readyz HTTP/1.1\r\nX: " + b"x" * HEAD)
    assert everything(sock).startswith(b"HTTP/1.1 431 ")


def test_who_is_silent_is_dropped(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its patience, without an answer."""
    monkeypatch.setattr(http, "PATIENCE", 0.05)
    _, connect = served()
    sock = connect()
    sock.sendall(b"GET /")
    assert everything(sock) == b""


def test_the_oldest_gives_way(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """With as many connections as it holds, a new one is heard and the oldest is dropped."""
    monkeypatch.setattr(http, "CONNECTIONS", 3)
    monkeypatch.setattr(http, "PATIENCE", 600.0)
    _, connect = served()
    held = []
    for _ in range(3):
        held.append(connect())
        held[-1].sendall(b"GET /")
    asks = connect()
    asks.sendall(GET)
    assert everything(asks).endswith(b"/readyz")
    assert everything(held[0]) == b""
    held[2].sendall(b"x HTTP/1.0\r\n\r\n")
    assert everything(held[2]).endswith(b"/x")


def test_an_error_is_an_answer_and_told_once(served: Served) -> None:
    """503, nothing of the error on the wire, and the loop goes on."""
    said: list[str] = []

    def fails(request: ProbeRequest) -> Answer:
        raise ValueError("inner secret")

    _, connect = served(fails, say=said.append)
    for _ in range(2):
        sock = connect()
        sock.sendall(GET)
        data = everything(sock)
        assert data.startswith(b"HTTP/1.1 503 ")
        assert b"secret" not in data
    assert said == ["failed to answer a request and goes on: ValueError: inner secret"]


def test_retiring_answers_what_has_come(served: Served) -> None:
    """What waits in the accept queue is accepted, and what was accepted is answered, before the
    loop ends."""
    holding, go = threading.Event(), threading.Event()

    def slowly(request: ProbeRequest) -> Answer:
        holding.set()
        go.wait(20)
        return Answer(200, "ok")

    server, connect = served(slowly)
    first, waits = connect(), None
    first.sendall(GET)
    assert holding.wait(20)
    waits = connect()
    waits.sendall(GET)
    server.retire()
    go.set()
    assert everything(first).endswith(b"ok")
    assert everything(waits).endswith(b"ok")


def test_an_orphan_ends(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel does not tell that the arbiter is gone, its own look does."""
    monkeypatch.setattr(http, "LOOK_EVERY", 0.01)
    ended = threading.Event()

    def is_orphan() -> bool:
        ended.set()
        return True

    served(is_orphan=is_orphan)
    assert ended.wait(20)
