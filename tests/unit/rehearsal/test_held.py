"""What becomes of streams and WebSockets that clients hold open, against servers that end them in
each way."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from websockets.asyncio.server import ServerConnection, serve

from gunicorn_grace.rehearsal.errors import PlanFailed
from gunicorn_grace.rehearsal.kubernetes.routing import EndpointTable
from gunicorn_grace.rehearsal.load import held
from gunicorn_grace.rehearsal.load.connection import Ending
from gunicorn_grace.rehearsal.load.held import HeldClients
from gunicorn_grace.rehearsal.load.load import Load
from gunicorn_grace.rehearsal.load.tally import (
    ConnectionKind,
    RequestOutcome,
    RequestRecord,
    Tally,
)
from gunicorn_grace.rehearsal.load.wire import Address
from gunicorn_grace.rehearsal.plan import Plan

pytestmark = pytest.mark.once

WebSocketHandler = Callable[[ServerConnection], Awaitable[None]]
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n"
END = b"0\r\n\r\n"


def clients(
    table: EndpointTable | None = None,
    record: Callable[[RequestRecord], None] = lambda record: None,
    *,
    kind: ConnectionKind = ConnectionKind.WEBSOCKET,
    number: int = 1,
    timeout: float = 5.0,
) -> HeldClients:
    path = "/held"
    return HeldClients(
        table or EndpointTable(),
        stream_path=path if kind is ConnectionKind.STREAM else None,
        websocket_path=path if kind is ConnectionKind.WEBSOCKET else None,
        held=number,
        clients=1,
        timeout=timeout,
        host=None,
        seed=0,
        record=record,
    )


@contextlib.asynccontextmanager
async def raw(handle: Handler) -> AsyncIterator[Address]:
    """A server whose every connection is handled by a function, once its request is read."""

    writers = []

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            await handle(reader, writer)
        writer.close()

    server = await asyncio.start_server(one, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()
        for writer in writers:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


def answer(*parts: bytes) -> Handler:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)

    return handle


async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)


async def begin_and_hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD)
    await reader.read(1)


def held_stream(handle: Handler, seconds: float | None = None, timeout: float = 5.0) -> Ending:
    async def run() -> Ending:
        async with raw(handle) as address:
            ours = clients(kind=ConnectionKind.STREAM, timeout=timeout)
            return await ours.hold(ConnectionKind.STREAM, "/held", address, seconds)

    return asyncio.run(run())


def held_websocket(
    handle: WebSocketHandler, seconds: float | None = None, timeout: float = 5.0
) -> Ending:
    async def run() -> Ending:
        async with serve(handle, "127.0.0.1", 0, close_timeout=0.5) as server:
            (listener,) = server.sockets
            return await clients(timeout=timeout).hold(
                ConnectionKind.WEBSOCKET, "/held", listener.getsockname(), seconds
            )

    return asyncio.run(run())


@pytest.mark.parametrize("code", [1000, 1001, 1012, 4000])
def test_a_websocket_that_ends_with_a_close_frame_ended_well(code: int) -> None:
    """The client knows that it has to connect again, and the record has the code."""

    async def close(connection: ServerConnection) -> None:
        await connection.close(code, "connect again")

    assert held_websocket(close) == Ending(RequestOutcome.OK, 101, "", code)


def test_a_close_frame_that_reports_an_error_is_a_loss() -> None:
    """1011 says that the server failed, as a 500 does."""

    async def fail(connection: ServerConnection) -> None:
        await connection.close(1011, "oh dear")

    assert held_websocket(fail) == Ending(
        RequestOutcome.SERVER_ERROR, 101, "close frame 1011: oh dear", 1011
    )


def test_a_websocket_without_a_close_frame_is_cut_off() -> None:
    """The connection just ends: a client waits for its own time limits, and calls it 1006."""

    async def abort(connection: ServerConnection) -> None:
        connection.transport.abort()

    assert held_websocket(abort) == Ending(
        RequestOutcome.TRUNCATED, 101, "ended without a close frame"
    )


def test_a_client_that_leaves_by_itself_has_lost_nothing() -> None:
    """It sends a close frame of its own, which the server sees."""
    seen: list[int | None] = []

    async def listen(connection: ServerConnection) -> None:
        async for _ in connection:
            pass
        seen.append(connection.protocol.close_code)

    assert held_websocket(listen, seconds=0.1) == Ending(RequestOutcome.OK, 101, "")
    assert seen == [1000]


@pytest.mark.parametrize(
    ("handle", "outcome", "status", "error"),
    [
        pytest.param(
            answer(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"),
            RequestOutcome.STATUS,
            404,
            "the handshake was answered 404, not 101",
            id="404",
        ),
        pytest.param(
            answer(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
            RequestOutcome.STATUS,
            200,
            "the handshake was answered 200, not 101",
            id="200",
        ),
        pytest.param(
            answer(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n"),
            RequestOutcome.SERVER_ERROR,
            503,
            "the handshake was answered 503, not 101",
            id="503",
        ),
        pytest.param(answer(), RequestOutcome.RESET, None, "closed by the peer", id="closed"),
        pytest.param(
            answer(b"HTTP/1.1 1"), RequestOutcome.TRUNCATED, None, "the handshake failed", id="cut"
        ),
        pytest.param(
            hang,
            RequestOutcome.TIMEOUT,
            None,
            "no answer to the handshake within 0.3 s",
            id="no answer",
        ),
    ],
)
def test_a_handshake_without_101_is_a_loss(
    handle: Handler, outcome: RequestOutcome, status: int | None, error: str
) -> None:
    """Whatever came in its place, the record says it."""

    async def run() -> Ending:
        async with raw(handle) as address:
            ours = clients(timeout=0.3 if handle is hang else 5.0)
            return await ours.hold(ConnectionKind.WEBSOCKET, "/held", address, None)

    ending = asyncio.run(run())
    assert (ending.outcome, ending.status) == (outcome, status)
    assert error in ending.error


def test_a_server_that_no_longer_answers_pings_is_a_timeout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The connection is open, and nobody is there."""
    monkeypatch.setattr(held, "PING_EVERY", 0.1)

    async def frozen(connection: ServerConnection) -> None:
        connection.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(1.5)

    ending = held_websocket(frozen, timeout=0.3)
    assert (ending.outcome, ending.error) == (
        RequestOutcome.TIMEOUT,
        "no answer to a ping within 0.3 s",
    )


def test_streams_end_well_when_they_are_complete() -> None:
    """A last chunk says that nothing is missing; without it, the stream is cut off."""
    assert held_stream(answer(HEAD, END)) == Ending(RequestOutcome.OK, 200, "")
    assert held_stream(answer(HEAD)).outcome is RequestOutcome.TRUNCATED
    assert held_stream(answer()).outcome is RequestOutcome.RESET
    assert held_stream(hang, timeout=0.2) == Ending(
        RequestOutcome.TIMEOUT, None, "no response within 0.2 s"
    )


def test_a_stream_may_last_longer_than_a_request() -> None:
    """The time limit is for the beginning of the response alone."""
    assert held_stream(begin_and_hang, seconds=2.1, timeout=2) == Ending(RequestOutcome.OK, 200, "")


def test_a_client_connects_again_and_elsewhere() -> None:
    """The first server tells it to go and refuses it later; the routing has forgotten that one."""

    async def run() -> list[RequestRecord]:
        records: list[RequestRecord] = []
        arrived = asyncio.Event()
        table = EndpointTable()

        async def leave(connection: ServerConnection) -> None:
            table.add(other)
            table.remove(first)
            await connection.close(1012)

        async def stay(connection: ServerConnection) -> None:
            arrived.set()
            await connection.wait_closed()

        async with (
            serve(leave, "127.0.0.1", 0) as one,
            serve(stay, "127.0.0.1", 0) as two,
        ):
            first, other = (server.sockets[0].getsockname() for server in (one, two))
            table.add(first)
            ours = clients(table, records.append)
            tasks = ours.start()
            await asyncio.wait_for(arrived.wait(), 10)
            ours.leave()
            await asyncio.wait(tasks)
        return records

    first, second = asyncio.run(run())
    assert (first.outcome, first.close_code) == (RequestOutcome.OK, 1012)
    assert (second.outcome, second.close_code) == (RequestOutcome.OK, None)
    assert first.endpoint != second.endpoint
    assert second.started - first.started >= held.SPACING


def test_a_load_counts_what_it_holds_apart() -> None:
    """Streams and WebSockets are requests of their own kinds, and no answer of theirs is slow."""

    async def run() -> Tally:
        async with raw(begin_and_hang) as address:
            table = EndpointTable()
            table.add(address)
            load = Load(table, rate=20, timeout=1, stream_path="/held", held=2, paths=["/held"])
            load.start()
            await asyncio.sleep(0.7)
            return await asyncio.to_thread(load.stop)

    tally = asyncio.run(run())
    assert tally.of(ConnectionKind.STREAM) == 2
    said = tally.summary()
    assert (said["streams"], said["lost_stream"], said["websockets"]) == (2, 0, 0)
    assert said["latency_max"] == 0


def test_a_path_that_takes_no_websockets_is_found_before_the_load() -> None:
    """As with a path that is not found, the numbers would mean nothing."""

    async def start() -> held.Failure | None:
        async with raw(answer(b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n")) as address:
            options = {"clients": 1, "timeout": 5.0, "host": None, "seed": 0}
            plan = Plan("app:app", websocket_path="/ws")
            return await asyncio.to_thread(held.try_out, address, **plan.held_options(), **options)

    failure = asyncio.run(start())
    assert failure is not None
    assert failure.what == "WebSocket /ws"
    assert failure.status == 404
    assert failure.error == "the handshake was answered 404, not 101"
    assert failure.remedy.startswith("takes WebSockets with --websocket-path")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"websocket_path": "ws"}, "'ws' is not a path"),
        ({"stream_path": "/a b"}, "cannot be sent"),
        ({"held": 0}, "held 0 is not 1 or more"),
    ],
)
def test_what_cannot_be_held_is_refused(options: dict[str, object], said: str) -> None:
    """One line, before anything is started."""
    with pytest.raises(PlanFailed, match=said):
        Plan("app:app", **options).check()  # type: ignore[arg-type]
