"""Listeners: handed over by systemd, UNIX sockets, several at once."""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from gunicorn_grace.rehearsal.load.wire import Address
from gunicorn_grace.shared.phase import Phase
from support.servers import (
    HOLD,
    LONG_DRAIN,
    SHORT,
    WORKERS,
    Client,
    Connect,
    Serve,
    all_answered,
    hold_a_request,
    look,
)

# What systemd does for a socket unit with a service that is started again when it ends.
SYSTEMD = """
import os, socket, sys

sock = socket.create_server(("127.0.0.1", 0), backlog=64)
held = sock.detach()
if held != 3:
    os.dup2(held, 3)
    os.close(held)
os.set_inheritable(3, True)
while True:
    pid = os.fork()
    if not pid:
        if sys.argv[1] == "activate":
            os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
        os.execv(sys.argv[2], sys.argv[2:])
    os.waitpid(pid, 0)
"""


@pytest.mark.long(but="gthread-activate-127.0.0.1:0")
@pytest.mark.parametrize(
    ("kind", "how", "bind"),
    [
        *((kind, "activate", "127.0.0.1:0") for kind in sorted(WORKERS)),
        ("gthread", "inherit", "fd://3"),
    ],
)
def test_a_socket_that_was_handed_to_us_is_never_sealed(
    kind: str, how: str, bind: str, serve: Serve, connect: Connect, tmp_path: Path
) -> None:
    """Socket activation and fd:// sockets: connections made while we drain wait in the queue, and
    the next process serves them. So nobody is turned away, and there is no delay unless one is
    set."""
    (tmp_path / "systemd.py").write_text(SYSTEMD)
    prefix = (sys.executable, str(tmp_path / "systemd.py"), how)
    settings, args = SHORT if how == "inherit" else {}, ("-w", "1")
    server = serve(kind=kind, executable_prefix=prefix, bind=bind, settings=settings, args=args)
    first = server.arbiter_pid
    (worker,) = server.wait_booted(1)
    client = connect(server)
    release = hold_a_request(server, client)
    seen = server.mark()
    os.kill(first, signal.SIGTERM)
    server.wait_phase(Phase.DRAINING)
    assert bool(server.memory.header.delay) is (how == "inherit")
    waiting = [connect(server) for _ in range(4)]
    for late in waiting:
        late.send("/look", headers=(("Connection", "close"),))
    if kind == "sync":
        server.wait_dismissed()  # Until then it would serve them itself.
    release()
    assert client.receive().status == 200
    client.close()
    answers = [look(late.receive()) for late in waiting]
    server.wait_line("Listening at", after=seen)
    if kind == "sync":
        assert {answer["pid"] for answer in answers}.isdisjoint({worker}), (
            "its only worker was busy to the end"
        )
    server.wait_line("gunicorn-grace: stopped.* 0 cut off", after=seen)
    server.wait_line("no delay is needed: the listening sockets were handed over", after=seen)
    assert "sealed" not in server.output
    assert ("no delay, because" in server.output) is (how == "activate")


@pytest.mark.long(but="tcp+tcp+unix")
@pytest.mark.parametrize("kinds", [("unix",), ("tcp", "tcp", "unix")], ids="+".join)
def test_every_listener_is_emptied(
    kinds: tuple[str, ...], serve: Serve, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """With the only worker busy, connections wait in the queue of each address; when the drain
    begins no new one gets in anywhere, a UNIX socket's path is gone first, and all that wait are
    answered."""
    path = tmp_path / "socket"
    binds = ["127.0.0.1:0" if name == "tcp" else f"unix:{path}" for name in kinds]
    more = [part for bind in binds[1:] for part in ("-b", bind)]
    server = serve(args=("-k", "sync", "-w", "1", *more), bind=binds[0], settings=SHORT)
    assert len(set(server.addresses)) == len(kinds)

    def connected(address: Address, **options: float) -> Client:
        client = Client(address, **options)
        request.addfinalizer(client.close)
        return client

    busy = connected(server.address)
    release = hold_a_request(server, busy)
    waiting = [connected(address) for address in server.addresses for _ in range(4)]
    for client in waiting:
        client.send("/")
    server.signal(signal.SIGTERM)
    server.wait_phase(Phase.DRAINING)
    assert not path.exists()
    for address in server.addresses:
        with pytest.raises(OSError):
            connected(address, timeout=0.3)
    release()
    all_answered(busy, *waiting)
    assert server.wait(20) == 0, server.output
    sealed = server.wait_line("gunicorn-grace: sealed")
    for address in server.addresses:
        assert (address if isinstance(address, str) else f":{address[1]}") in sealed


@pytest.mark.long
@pytest.mark.parametrize("how", ["SIGINT", "SIGQUIT", "no time to drain"])
def test_a_unix_socket_whose_queue_is_not_served_to_its_end(
    how: str, serve: Serve, connect: Connect, tmp_path: Path
) -> None:
    """Ctrl-C in the middle of it, or a graceful_timeout of 0: gunicorn, which would unlink the path
    once more, ends with 0 and leaves nothing behind."""
    args = ("-k", "sync", "-w", "1", *(("--graceful-timeout", "0") if how.startswith("no") else ()))
    server = serve(args=args, bind=f"unix:{tmp_path / 'socket'}", settings=SHORT)
    busy = connect(server)
    hold_a_request(server, busy)
    connect(server).send("/")
    server.terminate()
    if how.startswith("SIG"):
        server.wait_line("gunicorn-grace: sealed")
        server.signal(getattr(signal, how))
    server.assert_gone()
    assert server.summary()


WITHOUT_A_FILTER = """
import socket
from gunicorn_grace.shared import listener
from gunicorn_grace.conf import *

def refuse(sock):
    raise PermissionError(1, "Operation not permitted")

listener.seal_by_filter = refuse

def when_ready(server):
    # A handshake ends when data comes: tcp(7).
    server.LISTENERS[0].sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 20)
"""


@pytest.mark.long(but="sync")
def test_without_the_capability_for_a_filter_it_is_sealed_all_the_same(
    kind: str, serve: Serve, connect: Connect, tmp_path: Path
) -> None:
    """By the least hop limit. What waits in the queue is served; so is a request whose connection
    is established after that, of which the kernel drops all but the first segment until the worker
    has admitted it; and no new one comes."""
    (tmp_path / "conf.py").write_text(WITHOUT_A_FILTER)
    # It accepts two at a time at most, so that the queue is not empty until the first is let go.
    args = ("-w", "1", "--threads", "1", "--worker-connections", "2")
    server = serve(kind=kind, args=args, config=("-c", "conf.py"), settings=SHORT)
    server.wait_booted(1)
    busy = connect(server)
    release = hold_a_request(server, busy)
    waiting, late = [connect(server) for _ in range(3)], connect(server)
    for client in waiting:
        client.send("/", headers=(("Connection", "close"),))
    server.terminate()
    server.wait_line("sealed")
    request = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"
    late.sock.sendall(request[:10])
    late.sock.sendall(request[10:])
    with pytest.raises(OSError):
        connect(server, timeout=0.3)
    release()
    all_answered(busy, *waiting)
    assert late.sock.recv(15) == b"HTTP/1.1 200 OK"
    late.close()
    assert server.wait(20) == 0, server.output
    assert "cannot be sealed" not in server.output
    assert "0 cut off" in server.summary()


@pytest.mark.parametrize("pid", [False, True], ids=["address", "pid file"])
def test_a_restart_in_place_binds_while_the_old_one_finishes(
    pid: bool, serve: Serve, connect: Connect, tmp_path: Path
) -> None:
    """`pkill gunicorn; sleep 2; gunicorn ...`: the new instance asks the old one to end its delay,
    and serves the address as soon as nothing waits there, while a long request still gets its
    response from the old one."""
    args = ("-k", "gthread", "--threads", "4", *LONG_DRAIN, *(("--pid", "pid") if pid else ()))
    old = serve(args=args, settings=HOLD)
    client, waiting = connect(old), connect(old)
    release = hold_a_request(old, client)
    old.terminate()
    old.wait_phase(Phase.LAME_DUCK)
    waiting.send("/look")
    new = serve(args=args, bind=f"127.0.0.1:{old.port}", settings=HOLD)
    new.wait_line(f"arbiter {old.arbiter_pid}, which is shutting down, has 127.0.0.1:{old.port}")
    old.wait_line("lame_duck_ended after .*: successor waits")
    assert look(waiting.receive())["phase"] in ("LAME_DUCK", "DRAINING")
    assert new.get("/readyz").status == 200
    assert new.wait_booted(1)
    assert old.exit_time is None
    if pid:
        assert int((tmp_path / "pid").read_text()) == new.arbiter_pid
    release()
    assert client.receive().status == 200
    client.close()
    assert old.wait(20) == 0, old.output
    assert "cut short (successor waits)" in old.summary()
    if pid:
        assert int((tmp_path / "pid").read_text()) == new.arbiter_pid


@pytest.mark.parametrize("what", ["pid file", "probe port"])
def test_a_restart_while_the_old_one_finishes_gets_all_it_needs(
    what: str, serve: Serve, connect: Connect, tmp_path: Path
) -> None:
    """The new instance comes when the listeners of the old one are shut already: that one gives up
    its pid file and its probe port, although it still finishes a request."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        probes = f"127.0.0.1:{free.getsockname()[1]}"
    args = ("-k", "gthread", "--threads", "4", *LONG_DRAIN)
    settings: dict[str, object] = {**SHORT, "probe_bind": probes}
    if what == "pid file":
        args, settings = (*args, "--pid", "pid"), dict(SHORT)
    old = serve(args=args, settings=settings)
    client = connect(old)
    release = hold_a_request(old, client)
    old.terminate()
    old.wait_line("gunicorn-grace: shut ")
    new = serve(args=args, bind=f"127.0.0.1:{old.port}", settings=settings)
    new.wait_booted(1)
    assert new.get("/readyz").status == 200
    assert old.exit_time is None
    release()
    assert client.receive().status == 200
    client.close()
    assert old.wait(20) == 0, old.output


def test_an_address_that_somebody_else_keeps_is_not_waited_for(
    serve: Serve, tmp_path: Path
) -> None:
    """An instance that serves keeps its address: the new one fails as plain gunicorn does, and asks
    nobody for anything."""
    old = serve(settings=HOLD)
    new = serve(bind=f"127.0.0.1:{old.port}", settings=HOLD, listens=False)
    assert new.wait(20) == 1
    assert "Connection in use" in new.output or "already in use" in new.output
    assert not old.memory.header.successor
    assert old.get("/readyz").status == 200


@pytest.mark.parametrize("reloaded", [False, True], ids=["from the beginning", "by a reload"])
def test_a_unix_socket_of_the_next_instance_stays(
    reloaded: bool, serve: Serve, connect: Connect, tmp_path: Path
) -> None:
    """The next instance puts its own socket at the path while the old one has its delay: the old
    one's drain does not remove it, also if a reload has made it serve at that path."""
    path, config = tmp_path / "socket", tmp_path / "conf.py"
    imports = "from gunicorn_grace.conf import *\n"
    config.write_text(f"{imports}bind = 'unix:{tmp_path / 'first' if reloaded else path}'\n")
    old = serve(bind="", config=("-c", "conf.py"), settings=HOLD)
    if reloaded:
        # Of another size: Python takes a file of the same second and size for the one that it has
        # compiled.
        config.write_text(f"{imports}\n\nbind = 'unix:{path}'\n")
        old.signal(signal.SIGHUP)
        old.wait_line(f"Listening at: unix:{path}")
    old.terminate()
    old.wait_phase(Phase.LAME_DUCK)
    new = serve(bind=f"unix:{path}", settings=HOLD)
    new.wait_booted(1)  # Until then it is the old one that answers.
    old.end_delay()
    assert old.wait(20) == 0, old.output
    assert path.exists(), old.output + new.output
    assert new.get("/readyz").status == 200
