"""What the load generator calls each way in which a request can end, against servers that do
exactly that."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import re
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gunicorn_grace.probes import answers as probes
from gunicorn_grace.rehearsal.errors import LoadFailed, RehearsalError
from gunicorn_grace.rehearsal.kubernetes.routing import EndpointTable
from gunicorn_grace.rehearsal.load.generator import Generator
from gunicorn_grace.rehearsal.load.load import Load
from gunicorn_grace.rehearsal.load.requests import PlannedRequest
from gunicorn_grace.rehearsal.load.tally import ConnectionKind, RequestOutcome, RequestRecord, Tally
from gunicorn_grace.rehearsal.load.wire import (
    Address,
    IncompleteResponse,
    fetch,
    parse_address,
    show_address,
)

pytestmark = pytest.mark.once

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
OURS = b"".join(
    [
        b"HTTP/1.1 503 Service Unavailable\r\n",
        *(f"{name}: {value}\r\n".encode() for name, value in probes.HEADERS),
        b"Content-Length: 2\r\n\r\nno",
    ]
)
CLOSING = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"


def read_request(conn: socket.socket) -> bytes:
    """One request's head; empty when the peer has closed."""
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        more = conn.recv(65536)
        if not more:
            return b""
        data += more
    return data


class Peer:
    """A server whose every connection is handled by a function, in a thread of its own."""

    def __init__(
        self, handle: Callable[[socket.socket], None], family: socket.AddressFamily, where: Address
    ) -> None:
        self.connections = 0
        self._handle = handle
        self._threads: list[threading.Thread] = []
        self._open: list[socket.socket] = []
        self.listener = socket.socket(family, socket.SOCK_STREAM)
        self.listener.bind(where)
        self.listener.listen(128)
        name = self.listener.getsockname()
        self.address: Address = name if isinstance(name, str) else name[:2]
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def _accept(self) -> None:
        while True:
            try:
                conn, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(conn)
            thread = threading.Thread(target=self._run, args=(conn,))
            thread.start()
            self._threads.append(thread)

    def _run(self, conn: socket.socket) -> None:
        with conn, contextlib.suppress(OSError):
            self._handle(conn)

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)  # wakes accept(), which close() alone would not
        self._accepting.join()
        self.listener.close()
        for conn in self._open:
            with contextlib.suppress(OSError):
                conn.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()


@pytest.fixture
def peer() -> Iterator[Callable[..., Peer]]:
    """Start servers; they end with the test."""
    with contextlib.ExitStack() as stack:

        def start(
            handle: Callable[[socket.socket], None],
            family: socket.AddressFamily = socket.AF_INET,
            where: Address = ("127.0.0.1", 0),
        ) -> Peer:
            server = Peer(handle, family, where)
            stack.callback(server.close)
            return server

        yield start


def table_of(*addresses: Address) -> EndpointTable:
    table = EndpointTable()
    for address in addresses:
        table.add(address)
    return table


def reset(conn: socket.socket) -> None:
    """Close with RST instead of FIN."""
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    conn.close()


def answer(
    *parts: bytes, keep: bool = False, abort: bool = False
) -> Callable[[socket.socket], None]:
    """Answer with ``parts``, once or to each request, then close."""

    def handle(conn: socket.socket) -> None:
        while read_request(conn):
            for part in parts:
                conn.sendall(part)
            if not keep:
                break
        if abort:
            reset(conn)

    return handle


def hang(conn: socket.socket) -> None:
    """Take the request and say nothing, until the client has gone."""
    read_request(conn)
    conn.recv(1)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("share", [0.0, 1.0], ids=["fresh", "kept"])
@pytest.mark.parametrize(
    ("handle", "outcome", "status"),
    [
        pytest.param(answer(OK), RequestOutcome.OK, 200, id="complete"),
        pytest.param(
            answer(b"HTTP/1.1 103 Hints\r\n\r\n", OK),
            RequestOutcome.OK,
            200,
            id="interim response first",
        ),
        pytest.param(answer(b"HTTP/1.1 204 No\r\n\r\n"), RequestOutcome.OK, 204, id="no content"),
        pytest.param(
            answer(b"HTTP/1.1 200 OK\r\n\r\nuntil I close"),
            RequestOutcome.OK,
            200,
            id="ended by closing",
        ),
        pytest.param(
            answer(CHUNKED, b"2\r\nok\r\n0\r\n\r\n"), RequestOutcome.OK, 200, id="chunked"
        ),
        pytest.param(answer(), RequestOutcome.RESET, None, id="closed without a byte"),
        pytest.param(answer(abort=True), RequestOutcome.RESET, None, id="reset without a byte"),
        pytest.param(reset, RequestOutcome.RESET, None, id="reset on arrival"),
        pytest.param(
            answer(b"HTTP/1.1 20"), RequestOutcome.TRUNCATED, None, id="cut off in the head"
        ),
        pytest.param(
            answer(HEAD, b"part"), RequestOutcome.TRUNCATED, 200, id="cut off in the body"
        ),
        pytest.param(
            answer(CHUNKED, b"2\r\nok\r\n"), RequestOutcome.TRUNCATED, 200, id="no last chunk"
        ),
        pytest.param(
            answer(b"SSH-2.0-OpenSSH\r\n\r\n"), RequestOutcome.TRUNCATED, None, id="no HTTP"
        ),
        pytest.param(hang, RequestOutcome.TIMEOUT, None, id="no answer"),
        pytest.param(
            answer(HEAD, b"part", keep=True), RequestOutcome.TIMEOUT, 200, id="half an answer"
        ),
        pytest.param(
            answer(OK.replace(b"200", b"500")), RequestOutcome.SERVER_ERROR, 500, id="500"
        ),
        pytest.param(answer(OURS), RequestOutcome.NOT_READY, 503, id="503 by the plugin"),
        pytest.param(
            answer(OK.replace(b"200", b"503")),
            RequestOutcome.SERVER_ERROR,
            503,
            id="503 by another",
        ),
        pytest.param(answer(OK.replace(b"200", b"302")), RequestOutcome.STATUS, 302, id="302"),
    ],
)
def test_each_end_of_a_request_has_its_class(
    peer: Callable[..., Peer],
    handle: Callable[[socket.socket], None],
    outcome: RequestOutcome,
    status: int | None,
    share: float,
) -> None:
    """Whatever the server does, every request is counted once, as that, with its endpoint."""
    server = peer(handle)
    patience = 0.5 if outcome is RequestOutcome.TIMEOUT else 20.0
    with Load(table_of(server.address), rate=50, keepalive_share=share, timeout=patience) as load:
        load.wait_completed(3)
        tally = load.stop()
    assert tally.total >= 3
    assert {record.outcome for record in tally.records} == {outcome}, tally.records
    assert {record.endpoint for record in tally.records} == {show_address(server.address)}
    assert {record.kind for record in tally.records} == {
        ConnectionKind.KEPT if share else ConnectionKind.FRESH
    }
    if outcome is not RequestOutcome.TIMEOUT:
        assert {record.status for record in tally.records} == {status}
    assert all(record.error for record in tally.lost_records)


def test_a_closed_port_is_refused() -> None:
    """Nobody listens: the connection was never established."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # ours, so that nobody else listens there
        with Load(table_of(bound.getsockname()), rate=50) as load:
            load.wait_completed(2)
            tally = load.stop()
    assert {record.outcome for record in tally.records} == {RequestOutcome.REFUSED}
    assert {record.error for record in tally.records} == {"Connection refused"}


def test_no_answer_to_the_syn_is_refused_not_a_timeout() -> None:
    """A full accept queue drops SYNs, as a sealed listener does: never connected, safe to try
    again."""
    with socket.socket() as full, socket.socket() as first:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        first.connect(full.getsockname())
        with Load(table_of(full.getsockname()), rate=20, timeout=0.3) as load:
            load.wait_completed(2)
            tally = load.stop()
    assert {record.outcome for record in tally.records} == {RequestOutcome.REFUSED}
    assert "not connected within 0.3 s" in tally.records[0].error


def test_a_full_unix_socket_is_refused(tmp_path: Path) -> None:
    """connect(2) says EAGAIN there, which is no "in progress"."""
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as full, socket.socket(socket.AF_UNIX) as first:
        full.bind(path)
        full.listen(0)
        first.connect(path)
        with Load(table_of(path), rate=20, timeout=0.3) as load:
            load.wait_completed(2)
            tally = load.stop()
    assert {record.outcome for record in tally.records} == {RequestOutcome.REFUSED}


def test_no_endpoint_is_refused() -> None:
    """kube-proxy rejects a connection to a Service without endpoints; the generator goes on."""
    with Load(EndpointTable(), rate=50) as load:
        load.wait_completed(2)
        tally = load.stop()
    assert {(record.outcome, record.endpoint) for record in tally.records} == {
        (RequestOutcome.REFUSED, "")
    }


def busy(tally: Tally, record: RequestRecord) -> bool:
    """Whether another request was under way when this one began."""
    return any(other.started < record.started < other.ended for other in tally.records)


def test_kept_connections_are_reused_and_fresh_ones_say_close(peer: Callable[..., Peer]) -> None:
    """One client alone opens a kept-alive connection only when none of its own is idle; a fresh one
    says close."""
    heads: list[bytes] = []

    def handle(conn: socket.socket) -> None:
        while head := read_request(conn):
            heads.append(head)
            conn.sendall(OK)

    server = peer(handle)
    with Load(table_of(server.address), rate=50, keepalive_share=1.0, clients=1) as load:
        load.wait_completed(10)
        tally = load.stop()
    assert tally.lost == 0
    # A busy machine may take longer for one than the next one waits: then the pool has none to
    # offer.
    opened = [record for record in tally.records if not record.reused]
    assert server.connections == len(opened) < tally.total
    assert [record for record in opened if not busy(tally, record)] == [
        min(opened, key=lambda record: record.started)
    ]
    assert not any(b"close" in head for head in heads)
    heads.clear()
    with Load(table_of(server.address), rate=50, keepalive_share=0.0) as load:
        load.wait_completed(3)
        tally = load.stop()
    assert server.connections == len(opened) + tally.total
    assert all(b"Connection: close" in head for head in heads)


def test_a_connection_said_to_close_is_closed_by_the_client(peer: Callable[..., Peer]) -> None:
    """The server says Connection: close and leaves it open: the client's FIN comes, and no second
    request."""
    closed = threading.Semaphore(0)

    def handle(conn: socket.socket) -> None:
        read_request(conn)
        conn.sendall(CLOSING)
        if conn.recv(1) == b"":
            closed.release()

    server = peer(handle)
    with Load(table_of(server.address), rate=50, keepalive_share=1.0, clients=1) as load:
        for _ in range(4):
            # While the load goes on: its end would close everything.
            assert closed.acquire(timeout=5)
        tally = load.stop()
    assert tally.lost == 0
    assert not any(record.reused for record in tally.records)


def test_an_idle_connection_that_the_server_closed_is_no_loss(peer: Callable[..., Peer]) -> None:
    """The server promises to keep the connection, then closes it while idle: every real pool
    notices."""
    server = peer(answer(OK))
    with Load(table_of(server.address), rate=20, keepalive_share=1.0, clients=1) as load:
        load.wait_completed(5)
        tally = load.stop()
    assert tally.lost == 0
    assert server.connections == tally.total


def test_an_open_connection_stays_where_it_is(peer: Callable[..., Peer]) -> None:
    """The routing forgets an endpoint: kept-alive requests on it go on, fresh ones go elsewhere."""
    one, two = peer(answer(OK, keep=True)), peer(answer(OK, keep=True))
    table = table_of(one.address)
    with Load(table, rate=50, keepalive_share=0.5, clients=1) as load:
        load.wait_completed(6)
        table.add(two.address)
        table.remove(one.address)
        changed = time.monotonic()
        load.wait_completed(20)
        tally = load.stop()
    later = [record for record in tally.records if record.started > changed]
    stayed = [record for record in later if record.endpoint == show_address(one.address)]
    assert tally.lost == 0
    assert stayed
    assert all(record.kind is ConnectionKind.KEPT and record.reused for record in stayed)
    # A second kept-alive connection, opened on a busy machine while the first was in use, is a new
    # one as well.
    moved = [record for record in later if record not in stayed]
    assert {record.endpoint for record in moved} == {show_address(two.address)}
    assert all(
        record.kind is ConnectionKind.FRESH or record.reused or busy(tally, record)
        for record in moved
    )


def test_stop_lets_requests_under_way_finish(peer: Callable[..., Peer]) -> None:
    """A request that the server still works on when the load stops is counted with its real end."""
    arrived, release = threading.Event(), threading.Event()

    def handle(conn: socket.socket) -> None:
        read_request(conn)
        arrived.set()
        release.wait(10)
        conn.sendall(CLOSING)

    server = peer(handle)
    load = Load(table_of(server.address), rate=0.01).start()
    assert arrived.wait(5)
    threading.Timer(0.1, release.set).start()
    tally = load.stop()
    assert release.is_set()
    assert [record.outcome for record in tally.records] == [RequestOutcome.OK]


def test_an_exception_ends_the_load_without_waiting(peer: Callable[..., Peer]) -> None:
    """Requests that hang for 60 s do not hold back the error that the block raised; nothing runs
    on."""
    arrived = threading.Event()

    def handle(conn: socket.socket) -> None:
        arrived.set()
        hang(conn)

    server = peer(handle)
    begin = time.monotonic()
    with pytest.raises(ZeroDivisionError), Load(table_of(server.address), rate=50, timeout=60):
        raise ZeroDivisionError(arrived.wait(5))
    assert time.monotonic() - begin < 10
    assert not [thread for thread in threading.enumerate() if thread.name == "load"]


def test_a_stalled_generator_skips_and_tells(peer: Callable[..., Peer]) -> None:
    """Stalled for 0.3 s at 100 per second, it sends no burst of 30 afterwards but counts what it
    left out."""
    server = peer(answer(OK))
    with Load(table_of(server.address), rate=100) as load:
        load.wait_completed(3)
        assert load._loop is not None
        load._loop.call_soon_threadsafe(time.sleep, 0.3)
        load.wait_completed(20)
        tally = load.stop()
    assert tally.skipped >= 25
    assert tally.summary()["lag_max"] >= 0.25
    starts = sorted(record.started for record in tally.records)
    gaps = [after - before for before, after in itertools.pairwise(starts)]
    resumed = next(index for index, gap in enumerate(gaps) if gap > 0.25)
    assert starts[resumed + 7] - starts[resumed + 1] > 0.02


def test_slow_requests_have_their_own_path(peer: Callable[..., Peer]) -> None:
    """The share of slow requests goes to the slow path, marked so; the others take the paths in
    turn."""
    server = peer(answer(OK))
    with Load(
        table_of(server.address), rate=200, paths=("/a", "/b"), slow_path="/slow", slow_share=0.5
    ) as load:
        load.wait_completed(60)
        tally = load.stop()
    assert {record.path for record in tally.records if record.slow} == {"/slow"}
    assert {record.path for record in tally.records if not record.slow} == {"/a", "/b"}
    assert 10 < sum(record.slow for record in tally.records) < 50 + tally.total - 60


def test_the_same_seed_makes_the_same_choices(peer: Callable[..., Peer]) -> None:
    """Loads with one seed send the same requests, however fast answers come: contenders face the
    same."""
    server = peer(answer(OK))
    paths = [f"/{number}" for number in range(100)]
    chosen = []
    for rate in (100, 200):
        with Load(
            table_of(server.address), rate=rate, paths=paths, slow_path="/slow", slow_share=0.2
        ) as load:
            load.wait_completed(60)
            tally = load.stop()
        began = sorted(tally.records, key=lambda record: record.started)
        # Fewer than there are paths, so that none comes twice; a late generator leaves some out.
        chosen.append({record.path: record.kind for record in began[:60] if not record.slow})
    one, two = chosen
    assert one.keys() & two.keys()
    assert all(one[path] is two[path] for path in one.keys() & two.keys())


def test_want_of_descriptors_is_the_generators_failure_not_a_loss() -> None:
    """Out of file descriptors, the load ends with an error that names the way out: nobody refused
    it."""
    script = """
import resource, socket
from gunicorn_grace.rehearsal.errors import LoadFailed
from gunicorn_grace.rehearsal.load.load import Load
from gunicorn_grace.rehearsal.kubernetes.routing import EndpointTable
silent = socket.create_server(("127.0.0.1", 0))
table = EndpointTable()
table.add(silent.getsockname())
resource.setrlimit(resource.RLIMIT_NOFILE, (30, 30))
try:
    with Load(table, rate=500) as load:
        load.wait_completed(10_000, timeout=20)
except LoadFailed as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert "Too many open files" in run.stdout, run.stderr
    assert "ulimit -n" in run.stdout


def test_waiting_for_more_than_comes_is_an_error() -> None:
    """A wait that cannot be met ends with the numbers, not never."""
    with (
        Load(EndpointTable(), rate=1) as load,
        pytest.raises(RehearsalError, match="of 50 requests had not ended"),
    ):
        load.wait_completed(50, timeout=0.2)


def test_a_broken_generator_does_not_pass_for_an_idle_one() -> None:
    """Whatever breaks in its thread comes out of ``stop``."""

    class Broken(EndpointTable):
        def pick(self, rng: random.Random, node: int = 0) -> Address:
            raise RuntimeError("broken")

    load = Load(Broken(), rate=100).start()
    with pytest.raises(LoadFailed, match="broken"):
        load.wait_completed(1)
    with pytest.raises(LoadFailed, match="broken"):
        load.stop()


def test_a_body_is_sent_with_its_length(peer: Callable[..., Peer]) -> None:
    """POST with a body arrives whole, on fresh and on kept-alive connections; GET has none."""
    got: list[bytes] = []

    def handle(conn: socket.socket) -> None:
        data = b""
        while more := conn.recv(65536):
            head, end, body = (data := data + more).partition(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head, re.I)
            if end and len(body) == (int(length[1]) if length else 0):
                got.append(head.split()[0] + b" " + body)
                conn.sendall(OK)
                data = b""

    requests = [PlannedRequest("/a", "POST", b"x" * 100_000), PlannedRequest("/b", "GET")]
    with Load(table_of(peer(handle).address), rate=100, requests=requests) as load:
        load.wait_completed(20)
        tally = load.stop()
    assert tally.lost == 0
    assert {record.method for record in tally.records} == {"GET", "POST"}
    assert set(got) == {b"POST " + b"x" * 100_000, b"GET "}


def test_an_upload_takes_its_time_and_ends_when_the_server_does_not_wait(
    peer: Callable[..., Peer],
) -> None:
    """The body comes in pieces; one that answers at the first of them gets no more, and one that
    resets is a loss."""
    sizes: list[int] = []

    def handle(conn: socket.socket) -> None:
        head = read_request(conn) if not sizes else conn.recv(65536)
        while len(sizes) < 3 and (piece := conn.recv(65536)):
            sizes.append(len(piece))
        if b"/reset" in head:
            reset(conn)
        else:
            conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    def outcome(path: str) -> RequestRecord:
        sizes.clear()
        request = PlannedRequest(path, "PUT", b"x" * 1000, upload=5.0)
        with Load(table_of(server.address), rate=0.01, requests=[request]) as load:
            load.wait_completed(1, timeout=20)
            (record,) = load.stop().records
        return record

    server = peer(handle)
    answered = outcome("/early")
    assert (answered.outcome, sizes) == (RequestOutcome.OK, [100, 100, 100])
    assert 1.0 < answered.latency < 5.0
    assert outcome("/reset").outcome is RequestOutcome.RESET


def test_a_slow_reader_leaves_the_response_where_it_is(peer: Callable[..., Peer]) -> None:
    """Read slowly, a response that would be there at once takes the seconds that were asked for."""
    body = b"y" * 5_000_000
    server = peer(
        answer(b"HTTP/1.1 200 OK\r\nContent-Length: 5000000\r\nConnection: close\r\n\r\n" + body)
    )
    with Load(
        table_of(server.address), rate=0.01, requests=[PlannedRequest("/", read=1.0)]
    ) as load:
        load.wait_completed(1, timeout=20)
        (record,) = load.stop().records
    assert record.outcome is RequestOutcome.OK
    assert record.latency >= 1.0


def test_connections_rest_while_their_client_thinks(peer: Callable[..., Peer]) -> None:
    """With a second of rest at 20 per second no connection is used twice at first, and later the
    rested ones are."""
    server = peer(answer(OK, keep=True))
    with Load(table_of(server.address), rate=20, keepalive_share=1.0, think=1.0, clients=1) as load:
        load.wait_completed(50)
        tally = load.stop()
    assert tally.lost == 0
    began = sorted(tally.records, key=lambda record: record.started)
    assert not any(record.reused for record in began if record.started < began[0].started + 0.99)
    assert any(record.reused for record in began)


def test_the_slow_node_sends_its_share(peer: Callable[..., Peer]) -> None:
    """Half of the requests from a node that does not know of the removal: about half go where
    nobody else does."""
    old, new = peer(answer(OK)), peer(answer(OK))
    table = table_of(old.address, new.address)
    table.remove(old.address, lag=(0.0, 0.0, 600.0))
    with Load(table, rate=200, clients=2, slow_node_share=0.5) as load:
        load.wait_completed(100)
        tally = load.stop()
    share = (
        sum(record.endpoint == show_address(old.address) for record in tally.records) / tally.total
    )
    assert 0.1 < share < 0.4  # a half of the half that it sends


def test_in_a_process_of_its_own_it_counts_the_same(peer: Callable[..., Peer]) -> None:
    """The same seed sends the same requests; a change of the table arrives, and everything comes
    back."""
    old, new = peer(answer(OK)), peer(answer(OK))
    table = table_of(old.address)
    with Generator(table, rate=100, paths=("/a", "/b"), keepalive_share=0.0, seed=3) as load:
        load.wait_completed(20)
        table.add(new.address)
        table.remove(old.address)
        changed = time.monotonic()
        load.wait_completed(30)
        assert load.snapshot().total >= 50
        tally = load.stop()
    assert tally.lost == 0
    assert tally.total >= 50
    assert len(tally.lags) == tally.total + tally.skipped
    assert {record.path for record in tally.records} == {"/a", "/b"}
    late = {record.endpoint for record in tally.records if record.started > changed + 0.5}
    assert late <= {show_address(new.address)}
    assert tally.began <= tally.records[0].started < changed


def test_a_generator_that_is_killed_is_no_idle_one(peer: Callable[..., Peer]) -> None:
    """Its process gone, a wait ends with an error that says so, and so does ``stop``."""
    load = Generator(table_of(peer(answer(OK)).address), rate=50).start()
    load.wait_completed(3)
    os.kill(load.pid, signal.SIGKILL)
    with pytest.raises(LoadFailed, match="ended with exit code -9"):
        load.wait_completed(10_000)
    with pytest.raises(LoadFailed, match="ended with exit code -9"):
        load.stop()


def test_a_generator_that_fails_says_why() -> None:
    """What breaks in its process comes out here, with the way out, at the start or later; and its
    process is gone."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(map(int, os.listdir("/proc/self/fd")))  # By whatever ran in this process before.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 50, before[1]))
        try:
            load = Generator(table_of(silent.getsockname()), rate=500)
            with pytest.raises(LoadFailed, match="ulimit -n"):
                load.start().wait_completed(10_000, timeout=20)
            load.stop(abandon=True)
            assert not os.path.exists(f"/proc/{load.pid}")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_generator_ends_with_its_parent() -> None:
    """The parent killed, nothing is left that sends requests."""
    script = """
import sys
from gunicorn_grace.rehearsal.load.generator import Generator
from gunicorn_grace.rehearsal.kubernetes.routing import EndpointTable
load = Generator(EndpointTable(), rate=10).start()
print(load.pid, flush=True)
sys.stdin.read()
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdout is not None
        descriptor = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    assert poll.poll(20_000)
    os.close(descriptor)


def test_fetch_gives_the_whole_response(peer: Callable[..., Peer]) -> None:
    """Status, headers in lower case, body; the request names the endpoint and closes."""
    heads: list[bytes] = []

    def handle(conn: socket.socket) -> None:
        heads.append(read_request(conn))
        conn.sendall(b"HTTP/1.1 503 No\r\nX-Why: later\r\nContent-Length: 4\r\n\r\nbusy")

    response = fetch(peer(handle).address, "/readyz", headers=[("X-A", "b")])
    assert (response.status, response.headers["x-why"], response.body) == (503, "later", b"busy")
    assert b"Connection: close" in heads[0]
    assert b"X-A: b" in heads[0]


def test_fetch_tells_a_cut_off_response_from_a_slow_one(peer: Callable[..., Peer]) -> None:
    """Closed early is IncompleteResponse, silence is TimeoutError."""
    with pytest.raises(IncompleteResponse):
        fetch(peer(answer(HEAD, b"part")).address)
    with pytest.raises(TimeoutError):
        fetch(peer(hang).address, timeout=0.2)


def test_a_unix_socket_and_ipv6_are_addresses_too(
    peer: Callable[..., Peer], tmp_path: Path
) -> None:
    """The load and ``fetch`` reach both."""
    path = str(tmp_path / "socket")
    servers = [
        peer(answer(OK), socket.AF_UNIX, path),
        peer(answer(OK), socket.AF_INET6, ("::1", 0)),
    ]
    assert [fetch(server.address).body for server in servers] == [b"ok", b"ok"]
    with Load(table_of(*(server.address for server in servers)), rate=100) as load:
        load.wait_completed(20)
        tally = load.stop()
    reached = {record.endpoint for record in tally.records if record.outcome is RequestOutcome.OK}
    assert reached == {show_address(server.address) for server in servers}


@pytest.mark.parametrize(
    ("text", "address", "shown"),
    [
        ("http://127.0.0.1:8000", ("127.0.0.1", 8000), "127.0.0.1:8000"),
        ("https://[::1]:443", ("::1", 443), "[::1]:443"),
        ("http://0.0.0.0:80", ("127.0.0.1", 80), "127.0.0.1:80"),
        ("http://[::]:80", ("::1", 80), "[::1]:80"),
        ("unix:/run/app.sock", "/run/app.sock", "unix:/run/app.sock"),
        ("127.0.0.1:1", ("127.0.0.1", 1), "127.0.0.1:1"),
    ],
)
def test_addresses_are_read_as_gunicorn_writes_them(
    text: str, address: Address, shown: str
) -> None:
    """Each form, and a wildcard becomes a loopback address that can be connected to."""
    assert parse_address(text) == address
    assert show_address(address) == shown
