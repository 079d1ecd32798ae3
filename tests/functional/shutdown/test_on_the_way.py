"""Connections that are on the way when draining begins: their handshakes are waited for."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import ssl
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gunicorn_grace.shared import cells
from gunicorn_grace.shared.agreed import LINGER
from gunicorn_grace.shared.phase import Phase
from support.servers import Client, Connect, Serve, Server, all_answered, hold_a_request

ROUND_TRIP = 0.6


class Distant:
    """A TLS client whose flights arrive a round trip after what they answer."""

    def __init__(self, client: Client, context: ssl.SSLContext) -> None:
        self.sock = client.sock
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")

    def send(self) -> None:
        if self.outgoing.pending:
            time.sleep(ROUND_TRIP)
            self.sock.sendall(self.outgoing.read())

    def receive(self) -> None:
        data = self.sock.recv(65536)
        assert data, "the connection was closed"
        self.incoming.write(data)

    def begin(self) -> None:
        """Send the first flight."""
        with pytest.raises(ssl.SSLWantReadError):
            self.tls.do_handshake()
        self.sock.sendall(self.outgoing.read())

    def shake_hands(self) -> None:
        self.receive()
        while True:
            try:
                self.tls.do_handshake()
                return
            except ssl.SSLWantReadError:
                self.send()
                self.receive()

    def get(self) -> bytes:
        self.tls.write(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
        self.send()
        answer = b""
        while not answer.endswith(b"hello\n"):
            try:
                answer += self.tls.read(65536)
            except ssl.SSLWantReadError:
                self.receive()
        return answer


@pytest.mark.long(but="TLSv1_2-gthread")
@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_a_slow_tls_handshake(
    kind: str, version: str, serve: Serve, connect: Connect, certificate: Path
) -> None:
    """A round trip of 0.6 s: the handshake that began before the drain is completed, and its
    request is served, as long as the budget lasts."""
    context = ssl.create_default_context(cafile=str(certificate))
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    args = ("-w", "2", "--certfile", str(certificate), "--keyfile", str(certificate))
    settings = {"shutdown_delay": 60, "termination_period": 90}
    server = serve(kind=kind, args=args, settings=settings, ready=False)
    server.wait_booted(2)
    server.lead_to(Phase.LAME_DUCK)
    busy = connect(server, context=context)
    release = hold_a_request(server, busy)
    distant = Distant(connect(server), context)
    server.lead_to(Phase.DRAINING)
    past_the_linger(server)
    distant.begin()
    distant.shake_hands()
    assert b"HTTP/1.1 200 OK" in distant.get()
    release()
    assert busy.receive().status == 200
    busy.close()
    distant.sock.close()
    assert server.wait(20) == 0, server.output
    assert "0 cut off" in server.summary()


@pytest.mark.ends
def test_a_slow_tls_handshake_that_had_to_wait(
    serve: Serve, connect: Connect, certificate: Path
) -> None:
    """Its first flight waits in the accept queue until a sync worker is free, long after the drain
    began. The client's answer to the server's flight is waited for then."""
    context = ssl.create_default_context(cafile=str(certificate))
    args = ("-k", "sync", "--certfile", str(certificate), "--keyfile", str(certificate))
    settings = {"shutdown_delay": 60, "termination_period": 90}
    server = serve(args=args, settings=settings, ready=False)
    server.wait_booted(1)
    server.terminate()
    server.wait_phase(Phase.LAME_DUCK)
    busy = connect(server, context=context)
    release = hold_a_request(server, busy)
    distant = Distant(connect(server), context)
    distant.begin()
    server.end_delay()
    server.wait_phase(Phase.DRAINING)
    past_the_linger(server, 0.5)
    release()
    assert busy.receive().status == 200
    distant.shake_hands()
    assert b"HTTP/1.1 200 OK" in distant.get()
    assert server.wait(20) == 0, server.output


def past_the_linger(server: Server, seconds: float = -0.2) -> None:
    """Wait until idle connections are no longer left alone, and some seconds more."""
    until = server.memory.header.drain + round((LINGER + seconds) * cells.NS)
    server.wait_for(lambda: time.monotonic_ns() > until, "the end of the linger")


# -- handshakes of the kernel ----

CLIENTS = 20

# <asm-generic/socket.h>, <asm-generic/unistd.h>
SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27
PIDFD_GETFD = 438

DROP_ALL_BUT_SYN = (
    (0x30, 0, 0, 13),  # ldb [13]: the flags of the TCP header
    (0x54, 0, 0, 0x12),  # and #SYN|ACK
    (0x15, 0, 1, 0x02),  # jeq #SYN
    (0x06, 0, 0, 0xFFFFFFFF),  # ret #-1: keep it
    (0x06, 0, 0, 0),  # ret #0: drop it
)


@contextlib.contextmanager
def listener_of(server: Server) -> Iterator[socket.socket]:
    """The arbiter's own listening socket."""
    libc = ctypes.CDLL(None, use_errno=True)
    pidfd = os.pidfd_open(server.arbiter_pid)
    folder = Path(f"/proc/{server.arbiter_pid}/fd")
    try:
        for name in folder.iterdir():
            if not os.readlink(name).startswith("socket:"):
                continue
            fd = libc.syscall(PIDFD_GETFD, pidfd, int(name.name), 0)
            if fd < 0:
                pytest.skip("another process's socket cannot be had here (pidfd_getfd)")
            with socket.socket(fileno=fd) as sock:
                if sock.family == socket.AF_INET and sock.getsockname() == server.address:
                    yield sock
                    return
    finally:
        os.close(pidfd)
    pytest.fail("no listener")


def lose_the_last_segments(listener: socket.socket) -> None:
    """Let handshakes begin, and do not let them end."""
    program = ctypes.create_string_buffer(
        b"".join(struct.pack("HBBI", *step) for step in DROP_ALL_BUT_SYN)
    )
    fprog = struct.pack("HL", len(DROP_ALL_BUT_SYN), ctypes.addressof(program))
    try:
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, fprog)
    except PermissionError:
        pytest.skip("no filter may be attached here (CAP_NET_ADMIN)")


def sent_again(client: Client) -> int:
    """How often the kernel has sent the client's last segment again: struct tcp_info."""
    info = client.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    return int(struct.unpack_from("I", info, 100)[0])


@pytest.mark.once
@pytest.mark.long(but="gthread")
def test_handshakes_under_way(kind: str, serve: Serve, connect: Connect) -> None:
    """Clients whose last segment of the handshake was lost are waited for: they believe that they
    are connected."""
    # gevent's workers close a new connection that says nothing for --keep-alive seconds. On a busy
    # machine the SYN-ACK may be sent again just before a client's request is.
    args = ("--keep-alive", "30")
    settings = {"shutdown_delay": 60, "termination_period": 90}
    server = serve(kind=kind, args=args, settings=settings)
    server.lead_to(Phase.LAME_DUCK)
    with listener_of(server) as listener:
        lose_the_last_segments(listener)
    clients = [connect(server) for _ in range(CLIENTS)]
    for client in clients:
        client.send("/")
    # At 1.4 s. Neither side sends again before 3 s.
    server.wait_for(lambda: any(sent_again(client) >= 3 for client in clients), "retransmissions")
    server.end_delay()  # The seal takes the place of that filter.
    all_answered(*clients)
    server.assert_gone()


@pytest.mark.once
def test_a_full_accept_queue(serve: Serve, connect: Connect) -> None:
    """Of 20 clients only some find a place in the accept queue; the kernel drops the last segment
    of the others, and their requests. All of them are served when the worker is free again."""
    args = ("-k", "sync", "-w", "1", "--backlog", "4")
    server = serve(args=args, settings={"shutdown_delay": 60, "termination_period": 90})
    busy = connect(server)
    release = hold_a_request(server, busy)
    server.terminate()
    server.wait_phase(Phase.LAME_DUCK)
    with listener_of(server) as listener:
        lose_the_last_segments(listener)
        clients = [connect(server) for _ in range(CLIENTS)]
        listener.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
        for client in clients:
            client.send("/")
        queue = struct.Struct("24xI")
        server.wait_for(
            lambda: (
                queue.unpack(listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 28))[0] > 4
            ),
            "a full queue",
        )
    server.end_delay()
    server.wait_phase(Phase.DRAINING)
    release()
    all_answered(busy, *clients)
    assert server.wait(20) == 0, server.output


@pytest.mark.once
def test_the_remains_of_a_handshake_do_not_hold_the_exit(serve: Serve) -> None:
    """A client that never answers is given up a round trip after the kernel has asked it again."""
    server = serve(kind="gthread", settings={"shutdown_delay": 60, "termination_period": 90})
    server.lead_to(Phase.LAME_DUCK)
    with listener_of(server) as listener:
        lose_the_last_segments(listener)
        with Client(server.address).sock:
            pass
    server.end_delay()
    server.wait_phase(Phase.DRAINING)
    began = time.monotonic()
    server.assert_gone()
    assert time.monotonic() - began < 5, server.output
