"""``?down=true`` and ``prestop`` against real workers: who may begin the shutdown, and what becomes
of it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from gunicorn_grace.shared import cells
from gunicorn_grace.shared.phase import Phase
from support.servers import GRACE_COMMAND, HOLD, Serve, Server, load_on, look, looks, needs_curl

pytestmark = [pytest.mark.ends, needs_curl]


def curl(url: str, *options: str) -> int:
    """The status that a real, one-shot curl gets, as a preStop hook would run it."""
    command = ["curl", "-s", "-o", os.devnull, "-w", "%{http_code}", *options, url]
    return int(subprocess.run(command, capture_output=True, text=True, timeout=20).stdout)


def url(server: Server) -> str:
    host, port = server.address
    return f"http://{host}:{port}/readyz?down=true"


def untouched(server: Server) -> bool:
    """No worker flipped, nor did the memory."""
    return server.get("/readyz").status == 200 and not server.memory.is_terminating()


@pytest.mark.long(but="gthread")
def test_a_real_curl_flips_every_worker(kind: str, serve: Serve) -> None:
    """`curl localhost:port/readyz?down=true` gets 503, and from then on every worker is not ready,
    and serves."""
    server = serve(kind=kind, settings=HOLD)
    assert curl(url(server)) == 503
    server.wait_line(
        r"trigger obeyed, from 127\.0\.0\.1:\d+: asked by pid \d+ \(curl\), started 0\."
    )
    assert server.memory.is_terminating(), "red at once, before the arbiter's loop knows"
    assert {answer["phase"] for answer in looks(server)} == {"LAME_DUCK"}
    assert {server.get("/readyz").status for _ in range(8)} == {503}
    server.wait_line("shutdown_initiated by trigger \\(http\\)")


def test_the_hook_of_the_documentation_works_through_a_shell(serve: Serve) -> None:
    """The preStop hook as it is documented, `curl -f ... || true` under `sh -c`, flips readiness
    and exits with 0."""
    server = serve(kind="gthread", settings=HOLD)
    done = subprocess.run(
        ["sh", "-c", f"curl -sf '{url(server)}' || true"], capture_output=True, timeout=20
    )
    assert done.returncode == 0
    assert server.get("/readyz").status == 503


@pytest.mark.long
def test_our_own_long_lived_process_may_not(kind: str, serve: Serve) -> None:
    """A client that has lived longer than 10 s, as every proxy has, gets 403, and nothing flips."""
    server = serve(kind=kind)
    with old_process() as ask:
        assert ask(url(server)) == 403
    assert untouched(server)
    server.wait_line("trigger refused")


@pytest.mark.long
def test_a_proxy_that_adds_no_header_may_not(serve: Serve) -> None:
    """Through a reverse proxy on the same host, which shows no forwarding header, the trigger is
    refused."""
    server = serve(kind="gthread")
    with old_process("proxy", f"http://{server.address[0]}:{server.address[1]}") as proxy:
        assert curl(f"{proxy('url')}/readyz?down=true") == 403
        assert curl(f"{proxy('url')}/readyz") == 200, "the proxy does forward"
    assert untouched(server)


@pytest.mark.long(but="gthread")
def test_the_application_may_not_be_made_to(kind: str, serve: Serve) -> None:
    """A request forged through the application, whose workers are our own processes, is refused
    (SSRF)."""
    server = serve(kind=kind)
    answer = look(server.get(f"/fetch?url={url(server)}"))
    assert answer["status"] == 403
    assert untouched(server)


@pytest.mark.parametrize(
    "header",
    [
        "X-Forwarded-For: 10.0.0.1",
        "X-Forwarded-Proto: https",
        "Forwarded: for=10.0.0.1",
        "Via: 1.1 x",
        "X-Real-IP: ::1",
    ],
)
def test_a_forwarded_request_may_not(header: str, serve: Serve) -> None:
    """A forwarding header, of whatever kind, gives 403 even to a curl of this very host."""
    server = serve(kind="gthread")
    assert curl(url(server), "-H", header) == 403
    assert untouched(server)


def test_another_address_may_not(serve: Serve) -> None:
    """A request to and from another address of this machine than loopback gets 403."""
    address = other_address()
    if address is None:
        pytest.skip("this machine has no other address than loopback")
    server = serve(kind="gthread", bind=f"{address}:0")
    assert curl(f"http://{address}:{server.port}/readyz?down=true") == 403
    assert untouched(server)


def test_off_leaves_the_query_to_the_application(serve: Serve) -> None:
    """With grace_trigger = "off", ?down=true is a probe like any other."""
    server = serve(kind="gthread", settings={"trigger": "off"})
    assert curl(url(server)) == 200
    assert untouched(server)


def test_a_token_opens_from_anywhere(serve: Serve) -> None:
    """With grace_trigger = "token" the right X-Grace-Token triggers, also forwarded; a wrong one or
    none is refused."""
    server = serve(kind="gthread", settings={**HOLD, "trigger": "token", "trigger_token": "s3cret"})
    assert curl(url(server)) == 403
    assert curl(url(server), "-H", "X-Grace-Token: wrong") == 403
    assert untouched(server)
    assert (
        curl(url(server), "-H", "X-Grace-Token: s3cret", "-H", "X-Forwarded-For: 10.0.0.1") == 503
    )
    assert server.get("/readyz").status == 503
    assert "s3cret" not in server.output


def test_a_trigger_without_sigterm_expires(serve: Serve) -> None:
    """After grace_termination_period without SIGTERM it is ready again, says so, and the HTTP
    trigger is shut."""
    server = serve(
        kind="gthread", settings={"shutdown_delay": 1, "min_delay": 0, "termination_period": 2}
    )
    assert curl(url(server)) == 503
    server.wait_line("ERROR.*trigger_expired: http was not followed by SIGTERM")
    server.wait_for(lambda: server.get("/readyz").status == 200, "ready again")
    assert curl(url(server)) == 403
    assert untouched(server)
    prestop = subprocess.run(
        [*GRACE_COMMAND, "prestop", "--pid", str(server.pid)], capture_output=True, timeout=20
    )
    assert prestop.returncode == 0, "the shared memory stays open to the platform"
    assert server.get("/readyz").status == 503


def test_the_command_waits_also_where_its_output_fails(serve: Serve) -> None:
    """With standard output on a full disk the delay is waited for all the same, and the exit code
    is 0."""
    server = serve(
        kind="gthread", settings={"shutdown_delay": 1, "min_delay": 0, "extend_delay": "false"}
    )
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as full:
        prestop = subprocess.run(
            [*GRACE_COMMAND, "prestop", "--pid", str(server.pid)],
            env=env,
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=20,
        )
    assert server.memory.header.delay_over
    assert (prestop.returncode, prestop.stderr) == (0, b"")


def test_sigterm_after_the_trigger_does_not_restart_the_clock(serve: Serve) -> None:
    """Delay and deadline count from the trigger: a SIGTERM that comes when the delay is over drains
    at once."""
    server = serve(
        kind="gthread", settings={"shutdown_delay": 2, "min_delay": 0, "extend_delay": "false"}
    )
    assert curl(url(server)) == 503
    server.wait_phase(Phase.LAME_DUCK)
    header = server.memory.header
    t0 = header.t0
    server.wait_for(lambda: header.delay_over, "the end of the delay")
    server.signal(signal.SIGTERM)
    server.wait_phase(Phase.DRAINING)
    assert header.t0 == t0
    assert header.deadline == t0 + (30 - 2) * cells.NS, (
        "grace_termination_period less grace_exit_margin"
    )
    assert t0 + 2 * cells.NS <= header.delay_over <= header.sigterm <= header.drain
    assert header.drain - header.sigterm < 2 * cells.NS, "no second delay"
    server.wait_line("lame_duck_ended after .* s: delay elapsed")
    assert server.wait(20) == 0


def test_a_hook_over_an_operators_drain_starts_the_platforms_clock(serve: Serve) -> None:
    """The pod of a drained instance is deleted while requests still come: the hook returns when the
    budget is spent, which began with it, and the process is gone within the period."""
    server = serve(
        kind="gthread",
        settings={
            "shutdown_delay": 1,
            "min_delay": 0,
            "termination_period": 7,
            "exit_margin": 1,
            "drain_reserve": 3,
        },
    )
    assert server.operate("drain").stdout.endswith(": not ready until undrain\n")
    server.wait_phase(Phase.LAME_DUCK)
    assert not server.memory.header.deadline
    with load_on(server, paths=("/",), rate=20.0) as load:
        began = time.monotonic()
        hook = server.operate("prestop")
        returned = time.monotonic()
        server.terminate()
        server.wait_phase(Phase.DRAINING)
        load.stop()
    assert hook.returncode == 0, hook.stderr
    header = server.memory.header
    assert began < header.deadline / cells.NS - 6 < returned, "it counts from the hook"
    server.wait_line("lame_duck_ended after .*: budget")
    server.assert_gone()
    assert server.exit_time is not None
    assert server.exit_time - began < 7


def test_a_drain_over_a_trigger_does_not_expire(serve: Serve) -> None:
    """An operator holds what the platform began: when the platform's period is over without a
    SIGTERM, the drain goes on, until ``undrain``."""
    server = serve(
        kind="gthread", settings={"shutdown_delay": 1, "min_delay": 0, "termination_period": 5}
    )
    assert server.operate("prestop").returncode == 0
    held = server.operate("drain")
    assert held.stdout.endswith("it was not ready before; now it stays so until undrain\n")
    server.wait_line("trigger_expired: prestop .* the operator's drain goes on")
    assert server.get("/readyz").status == 503
    assert not server.memory.header.deadline, "the platform's clock has stopped"
    assert server.operate("undrain").stdout.endswith(": serving\n")
    assert server.get("/readyz").status == 200
    # What was wished in that shutdown does not count for the next one.
    assert server.operate("prestop").returncode == 0
    server.wait_line("trigger_expired: prestop .* serving again")


def test_a_delay_that_is_ended_before_its_sigterm(serve: Serve) -> None:
    """``end-delay`` after a hook: the hook returns, and the SIGTERM that follows drains at once."""
    server = serve(kind="gthread", settings=HOLD)
    run = [*GRACE_COMMAND, "prestop", "--pid", str(server.arbiter_pid)]
    with subprocess.Popen(run, stdout=subprocess.PIPE, text=True) as hook:
        server.wait_phase(Phase.LAME_DUCK)
        ended = server.operate("end-delay")
        assert hook.wait(20) == 0
    assert ended.stdout.endswith("the delay is over: a SIGTERM drains at once\n")
    server.terminate()
    server.assert_gone()
    assert "ended by command" in server.summary()


OLD = """
import http.server, sys, urllib.error, urllib.request

def status(url):
    try:
        return urllib.request.urlopen(url).status
    except urllib.error.HTTPError as error:
        return error.code

if sys.argv[1:2] == ["proxy"]:
    class Proxy(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status(sys.argv[2] + self.path))
            self.end_headers()
        def log_message(self, *args):
            pass
    server = http.server.HTTPServer(("127.0.0.1", 0), Proxy)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()
else:
    print("started", flush=True)
    for line in sys.stdin:
        print(status(line.strip()), flush=True)
"""


@contextmanager
def old_process(*args: str) -> Iterator[Callable[[str], Any]]:
    """A process that has lived for more than 10 s: a client that fetches URLs, or a proxy
    (``"proxy", upstream``)."""
    with subprocess.Popen(
        [sys.executable, "-c", OLD, *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdin is not None
            first = process.stdout.readline().strip()
            ripe = time.monotonic() + 10.5
            # Age is what is tested, so here time itself is waited for.
            threading.Event().wait(ripe - time.monotonic())

            def ask(url: str) -> Any:
                if args:
                    return first
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(url + "\n")
                process.stdin.flush()
                return int(process.stdout.readline())

            yield ask
        finally:
            process.kill()


def other_address() -> str | None:
    """An address of this machine that is not loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # A datagram socket that connects sends nothing; the kernel only chooses the address it
            # would use.
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return None
        address = str(probe.getsockname()[0])
    return None if address.startswith("127.") else address
