"""Who may begin a shutdown, asked through real proxies; what a flood of forged triggers does; what
becomes of garbage.

Only the first part depends on how gunicorn hands a request over, and that is tested for every
version in ``test_prestop.py`` and ``test_faults_peers.py``: one version is enough for this file.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from gunicorn_grace.rehearsal.kubernetes.routing import EndpointTable
from gunicorn_grace.rehearsal.load.load import Load
from gunicorn_grace.rehearsal.load.tally import Tally
from gunicorn_grace.rehearsal.load.wire import Address, fetch
from gunicorn_grace.rehearsal.processes.balancer import Balancer, Setup
from gunicorn_grace.rehearsal.processes.balancers import PRODUCTS
from support.paths import APPS
from support.servers import HOLD, SHORT, Serve, Server, look, needs_curl
from support.trials import trials

pytestmark = pytest.mark.once

DOWN = "/readyz?down=true"
TOKEN = "7h3-t0ken-n0body-guesses"
ONE = ("-k", "gthread", "-w", "1", "--threads", "4")
"""One worker: what it refuses first is what it logs."""


def untouched(server: Server) -> bool:
    """No worker flipped, nor did the memory."""
    return server.get("/readyz").status == 200 and not server.memory.is_terminating()


def refusal(server: Server) -> str:
    """The first line about a refused trigger."""
    return server.wait_line("trigger refused")


def sent(address: Address, head: bytes) -> bytes:
    """What comes back for the bytes of a request; none of them is looked at before it is sent."""
    answer = b""
    with socket.create_connection(address, timeout=30) as sock:
        sock.sendall(head + b"\r\nConnection: close\r\n\r\n")
        # gunicorn closes with something of a body unread.
        with contextlib.suppress(ConnectionResetError):
            while part := sock.recv(65536):
                answer += part
    return answer


# -- proxies ----


INSIDE = ("unshare", "-p", "-f", "--mount-proc", "--kill-child")
"""A PID namespace of its own for what follows, as another container has it."""


def _may_unshare() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*INSIDE, "true"], capture_output=True, timeout=20).returncode == 0


needs_namespaces = pytest.mark.skipif(
    not _may_unshare(), reason="no PID namespace may be made here (unshare -p)"
)
namespaces = pytest.mark.parametrize(
    "namespace", ["same", pytest.param("other", marks=needs_namespaces)]
)


@contextlib.contextmanager
def proxy(
    product: type[Balancer], upstream: Address, namespace: str = "same", **setup: object
) -> Iterator[Balancer]:
    """A proxy in front of an instance, a moment old."""
    prefix = INSIDE if namespace == "other" else ()
    with product([upstream], Setup(**setup), executable_prefix=prefix) as balancer:  # type: ignore[arg-type]
        yield balancer


@pytest.mark.long
@namespaces
@pytest.mark.parametrize("forwarded", [True, False], ids=["with headers", "without headers"])
@pytest.mark.parametrize("over", ["tcp", "unix"])
def test_no_proxy_may_trigger(
    product: type[Balancer],
    over: str,
    forwarded: bool,
    namespace: str,
    serve: Serve,
    tmp_path: Path,
) -> None:
    """A stranger's ?down=true through HAProxy, nginx or Envoy gets 403 and nothing flips, however
    young the proxy is: refused by its headers, where it says some; else by its namespace, or by the
    socket that it is asked through."""
    server = serve(bind="127.0.0.1:0" if over == "tcp" else f"unix:{tmp_path}/app.sock", args=ONE)
    with proxy(product, server.address, namespace, forwarded=forwarded) as balancer:
        assert fetch(balancer.address, "/look").status == 200, "it does forward"
        assert fetch(balancer.address, DOWN).status == 403
    assert untouched(server)
    if forwarded:
        assert "forwarded by a proxy (X-Forwarded-" in refusal(server)
    elif namespace == "other":
        assert "is in another PID namespace" in refusal(server)
    else:
        assert f"({product.product}) has another socket (" in refusal(server)


@pytest.mark.long
@needs_namespaces
@pytest.mark.parametrize("over", ["tcp", "unix"])
def test_a_proxy_outside_our_container_may_not(
    product: type[Balancer], over: str, serve: Serve, tmp_path: Path
) -> None:
    """The other way round: gunicorn in the inner namespace, from where a proxy on the host cannot
    be seen at all."""
    bind = "127.0.0.1:0" if over == "tcp" else f"unix:{tmp_path}/app.sock"
    server = serve(bind=bind, args=ONE, executable_prefix=INSIDE)
    with proxy(product, server.address, forwarded=False) as balancer:
        assert fetch(balancer.address, "/look").status == 200, "it does forward"
        assert fetch(balancer.address, DOWN).status == 403
    assert untouched(server)
    reason = "may inspect holds the other end" if over == "tcp" else "in another PID namespace"
    assert reason in refusal(server)


@pytest.mark.long
def test_a_worker_of_a_proxy_is_young_after_a_reload(serve: Serve) -> None:
    """nginx that was told anew has workers of an age at which a hook is believed; they are not."""
    nginx = PRODUCTS["nginx"]
    if nginx.find() is None:
        pytest.skip("nginx is not installed")
    server = serve(args=ONE)
    with proxy(nginx, server.address, forwarded=False) as balancer:
        balancer.route([server.address])
        assert fetch(balancer.address, DOWN).status == 403
    assert untouched(server)
    assert "(nginx) has another socket (tcp)" in refusal(server)


@pytest.mark.long
def test_a_relay_for_one_client_may_not(serve: Serve) -> None:
    """socat forks a child for each connection: as young as a hook, and it listens nowhere. Its
    client gives it away."""
    if shutil.which("socat") is None:
        pytest.skip("socat is not installed")
    server = serve(args=ONE)
    host, port = server.address
    with socket.create_server(("127.0.0.1", 0)) as free:
        front = free.getsockname()
    with subprocess.Popen(
        ["socat", f"TCP-LISTEN:{front[1]},bind={front[0]},fork,reuseaddr", f"TCP:{host}:{port}"]
    ) as relay:
        try:
            server.wait_for(lambda: _status(front, "/look") == 200, "the relay")
            assert fetch(front, DOWN).status == 403
        finally:
            relay.terminate()
    assert untouched(server)
    assert "(socat) has another socket (tcp)" in refusal(server)


def _status(address: Address, path: str) -> int:
    with contextlib.suppress(OSError):
        return fetch(address, path).status
    return 0


@pytest.mark.long
def test_a_token_opens_through_a_proxy(product: type[Balancer], serve: Serve) -> None:
    """With grace_trigger = "token" the right token is as good from behind a proxy, and a wrong one
    as bad."""
    server = serve(args=ONE, settings={**HOLD, "trigger": "token", "trigger_token": TOKEN})
    with proxy(product, server.address) as balancer:
        assert fetch(balancer.address, DOWN, headers=[("X-Grace-Token", "wrong")]).status == 403
        assert untouched(server)
        assert fetch(balancer.address, DOWN, headers=[("X-Grace-Token", TOKEN)]).status == 503
    assert server.memory.is_terminating()


# -- the application itself ----


@needs_curl
@pytest.mark.long
@pytest.mark.parametrize("way", ["/fetch", "/fetch-here"])
@pytest.mark.parametrize("through", ["directly", "through a proxy"])
def test_the_application_may_not_be_made_to(way: str, through: str, serve: Serve) -> None:
    """A request forged through the application (SSRF), by a process that it starts or by the worker
    itself, to itself or around through a proxy that adds no header, gets 403 and nothing flips."""
    server = serve(args=ONE)
    product = next((made for made in PRODUCTS.values() if made.find()), None)
    if through == "directly":
        host, port = server.address
        assert look(server.get(f"{way}?url=http://{host}:{port}{DOWN}"))["status"] == 403
        assert "belongs to this instance" in refusal(server)
    elif product is None:
        pytest.skip("no proxy is installed")
    else:
        with proxy(product, server.address, forwarded=False) as balancer:
            host, port = balancer.address
            assert (
                look(fetch(balancer.address, f"{way}?url=http://{host}:{port}{DOWN}"))["status"]
                == 403
            )
    assert untouched(server)


@needs_curl
@pytest.mark.long(but="orphan")
@pytest.mark.parametrize("of", ["orphan", "another gunicorn"])
def test_what_an_application_leaves_behind_may_not(of: str, serve: Serve) -> None:
    """A curl that a worker has put into the background has no parent here any more, and a child of
    another gunicorn's worker never had one here. Both get 403."""
    server = serve(args=ONE)
    asked = server if of == "orphan" else serve(args=ONE, bind="127.0.0.1:0")
    host, port = server.address
    way = "/fetch-later" if of == "orphan" else "/fetch"
    answer = look(asked.get(f"{way}?url=http://{host}:{port}{DOWN}"))
    if of == "orphan":
        server.wait_for(lambda: Path(answer["file"]).read_text() == "403", "the refusal")
        assert "was started by the application of a gunicorn" in refusal(server)
    else:
        assert answer["status"] == 403
        assert "belongs to another gunicorn" in refusal(server)
    assert untouched(server)


# -- a flood ----


FORGERIES = 6000
A_SECOND = 1000.0


class Flood:
    """Forged triggers on kept-alive connections, ``A_SECOND`` of them a second if this machine can,
    from threads."""

    def __init__(self, address: Address, header: bytes, connections: int = 4) -> None:
        self.request = b"GET /readyz?down=true HTTP/1.1\r\nHost: forged\r\n" + header + b"\r\n"
        self.statuses: list[int] = []
        self.seconds = 0.0
        self._address = address
        self._threads = [
            threading.Thread(target=self._run, args=(connections,)) for _ in range(connections)
        ]

    def _run(self, share: int) -> None:
        count, spacing = FORGERIES // share, share / A_SECOND
        sock: socket.socket | None = None
        due = time.monotonic()
        for _ in range(count):
            due = max(due + spacing, time.monotonic() - 0.1)
            # The pace of the flood, not a wait for something.
            time.sleep(max(0.0, due - time.monotonic()))
            if sock is None:
                sock = socket.create_connection(self._address, timeout=30)
            sock.sendall(self.request)
            answer = b""
            while not answer.endswith(b"forbidden\n"):
                part = sock.recv(65536)
                assert part, answer
                answer += part
            self.statuses.append(int(answer.split()[1]))
            if b"connection: close" in answer.lower():
                sock.close()
                sock = None
        if sock is not None:
            sock.close()

    def run(self) -> None:
        """All of it; returns when the last one was answered."""
        began = time.monotonic()
        for thread in self._threads:
            thread.start()
        for thread in self._threads:
            thread.join()
        self.seconds = time.monotonic() - began


@pytest.mark.long
@pytest.mark.parametrize("mode", ["local", "forwarded", "token"])
def test_a_thousand_forged_triggers_a_second_harm_nothing(mode: str, serve: Serve) -> None:
    """6,000 of them, 1,000 a second, beside a steady load: each gets 403, no request of the load is
    lost, nothing flips, the log stays short, and the shutdown that follows is as ever."""
    token = {"trigger": "token", "trigger_token": TOKEN} if mode == "token" else {}
    args = ("-k", "gthread", "-w", "2", "--threads", "8", "--keep-alive", "30")
    server = serve(args=args, settings={**SHORT, **token})
    memory = server.memory
    header = {
        "local": b"",
        "forwarded": b"X-Forwarded-For: 127.0.0.1\r\n",
        "token": b"X-Grace-Token: guess\r\n",
    }[mode]
    flood = Flood(server.address, header)
    table = EndpointTable()
    table.add(server.address)
    with Load(table, rate=40, timeout=30) as load:
        flood.run()
        assert untouched(server)
        tally: Tally = load.stop()
    print(f"{len(flood.statuses)} forged triggers in {flood.seconds:.1f} s; {tally.summary()}")
    assert set(flood.statuses) == {403}
    assert len(flood.statuses) == FORGERIES
    assert tally.lost == 0, tally.lost_records[:5]
    assert tally.total > 0
    assert memory.header.trigger == 0
    server.terminate()
    server.assert_gone()
    assert server.output.count("trigger refused") <= 2, "once a minute in each worker"
    assert "shutdown_initiated by SIGTERM" in server.output


# -- what is told of a token ----


def test_a_token_is_nowhere_to_be_read(serve: Serve, tmp_path: Path) -> None:
    """Not in the log at its most talkative, nor in the report, nor in what --print-config says:
    neither when one was refused, nor when it was right."""
    report = tmp_path / "report.json"
    values = {
        **SHORT,
        "trigger": "token",
        "trigger_token": TOKEN,
        "report": str(report),
        "termination_period": 9,
    }
    (tmp_path / "elsewhere").mkdir()
    args = (*ONE, "--log-level", "debug", "--access-logfile", "-")
    server = serve(args=args, settings=values, cwd=tmp_path / "elsewhere")
    for token in ("wrong", TOKEN[:-1], TOKEN):
        fetch(server.address, DOWN, headers=[("X-Grace-Token", token)])
    assert server.memory.is_terminating()
    server.terminate()
    server.assert_gone(code=0)
    assert report.read_text()
    assert "trigger_token" in server.output, "the debug log does show the settings"
    shown = subprocess.run(
        [
            sys.executable,
            "-m",
            "gunicorn",
            "--print-config",
            "-c",
            "python:gunicorn_grace.conf",
            "service:app",
        ],
        env={**server.env},
        cwd=APPS,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "grace_trigger_token" in shown.stdout
    for said in (server.output, report.read_text(), shown.stdout, shown.stderr):
        assert TOKEN not in said
        assert TOKEN[:-1] not in said


@pytest.mark.long
def test_a_token_may_be_any_bytes(serve: Serve) -> None:
    """A token from the environment that is no UTF-8 opens with the same bytes, and with no
    others."""
    token = b"t\xffken"
    server = serve(
        args=ONE, settings={**HOLD, "trigger": "token", "trigger_token": os.fsdecode(token)}
    )

    def trigger(given: bytes) -> bytes:
        return sent(
            server.address,
            b"GET %s HTTP/1.1\r\nHost: x\r\nX-Grace-Token: %s" % (DOWN.encode(), given),
        )

    assert trigger(b"t?ken").startswith(b"HTTP/1.1 403 ")
    assert untouched(server)
    assert trigger(token).startswith(b"HTTP/1.1 503 ")
    assert server.memory.is_terminating()


# -- garbage ----


CANARY = b"cAn4ry"

raw = some.binary(max_size=12)
targets = some.one_of(
    some.builds(
        lambda path, tail, query: path + tail + b"?" + query,
        some.sampled_from(
            [
                b"/readyz",
                b"/livez",
                b"/startupz",
                b"/healthz",
                b"/READYZ",
                b"//readyz",
                b"http://x/readyz",
            ]
        ),
        some.sampled_from([b"", b"/", b"/" + CANARY, b"/shutdown", b"%00", b"/..;/"]),
        some.one_of(
            some.sampled_from(
                [
                    b"down=true",
                    b"verbose",
                    b"exclude=" + CANARY,
                    b"exclude=shutdown&verbose",
                    b"verbose&exclude=" + CANARY,
                    CANARY,
                ]
            ),
            raw,
        ),
    ),
    raw.map(lambda data: b"/" + data),
)
fields = some.lists(
    some.builds(
        lambda name, value: name + b": " + value,
        some.sampled_from(
            [
                b"Accept",
                b"X-Grace-Token",
                b"X-Forwarded-For",
                b"Forwarded",
                b"Via",
                b"Cookie",
                b"Range",
                b"X-" + CANARY,
            ]
        ),
        some.one_of(
            raw, some.sampled_from([CANARY, b"application/json", b"*/*", TOKEN[:-1].encode()])
        ),
    ),
    max_size=5,
)
methods = some.sampled_from([b"GET", b"GET", b"HEAD", b"POST", b"OPTIONS", b"BREW", CANARY])


@pytest.fixture(scope="module")
def target() -> Iterator[Server]:
    """One instance for all the garbage."""
    values = {"trigger": "token", "trigger_token": TOKEN}
    with Server(args=(*ONE, "--log-level", "debug"), settings=values, cwd=APPS) as server:
        server.wait_ready(path="/livez")  # type: ignore[attr-defined]
        yield server  # type: ignore[misc]


@pytest.mark.long
@settings(trials(300), suppress_health_check=[HealthCheck.too_slow])
@given(methods, targets, fields)
def test_garbage_gets_an_answer_and_nothing_else(
    target: Server, method: bytes, path: bytes, lines: list[bytes]
) -> None:
    """Whatever bytes are sent to the probes of a real gunicorn: no 500, nothing of them in an
    answer of ours, no shutdown, and no worker the worse for it. What gunicorn itself finds
    malformed gets its 400 without us."""
    answer = sent(
        target.address, b"\r\n".join([method + b" " + path + b" HTTP/1.1", b"Host: x", *lines])
    )
    status = int(answer.split(None, 2)[1]) if answer.startswith(b"HTTP/") else 0
    assert status in (0, 200, 400, 403, 404, 405, 503), answer
    if status != 400:
        assert CANARY not in answer
    assert not target.memory.is_terminating()


@pytest.mark.long
def test_after_the_garbage(target: Server) -> None:
    """The worker that got it all is the one that began, it is ready, and the log holds neither
    token nor traceback."""
    assert look(target.get("/look"))["pid"] == target.wait_booted(1)[0]
    assert target.get("/readyz").status == 200
    assert target.output.count("Booting worker") == 1
    assert TOKEN[:-1] not in target.output
    assert "Traceback" not in target.output
