"""Envoy, HAProxy and nginx for real, in front of real gunicorn. What they are told to do does not
depend on gunicorn's version, so that one version is enough for this file.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gunicorn_grace.rehearsal.errors import InstanceFailed
from gunicorn_grace.rehearsal.kubernetes.routing import EndpointTable
from gunicorn_grace.rehearsal.load.connection import Ending
from gunicorn_grace.rehearsal.load.held import HeldClients
from gunicorn_grace.rehearsal.load.tally import RequestOutcome
from gunicorn_grace.rehearsal.load.wire import fetch
from gunicorn_grace.rehearsal.plan import GRACE, PLAIN
from gunicorn_grace.rehearsal.processes import procfs
from gunicorn_grace.rehearsal.processes.balancer import Balancer, Setup
from gunicorn_grace.rehearsal.processes.balancers import PRODUCTS
from gunicorn_grace.rehearsal.run import play
from support.paths import APPS
from support.servers import HOLD, Serve, Server, look, plan, told

pytestmark = [pytest.mark.once, pytest.mark.long]

Balance = Callable[..., Balancer]

QUICK = Setup(interval=0.2, check_timeout=30, connect_timeout=10)
"""Checks at short intervals, and patience: a busy machine must not look like an instance that does
not answer."""


def processes_of(leader: int) -> list[str]:
    """Command lines of what runs in a process group; nginx hides the mark that other processes
    carry."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, group = stat.read_text().rpartition(")")[2].split()[:3]
            if state not in "ZX" and int(group) == leader:
                found.append(stat.with_name("cmdline").read_text())
    return found


@pytest.fixture
def balance(product: type[Balancer]) -> Iterator[Balance]:
    """Start balancers; they end with the test, and leave no process."""
    with contextlib.ExitStack() as stack:

        def start(*servers: Server, setup: Setup = QUICK, **options: Any) -> Balancer:
            balancer = product([server.address for server in servers], setup, **options)
            stack.callback(balancer.stop)
            balancer.start()
            return balancer

        yield start


def answering(balancer: Balancer, burst: int = 12) -> set[int]:
    """The pids of the workers that answer so many requests, one after the other."""
    return {look(fetch(balancer.address, "/look"))["pid"] for _ in range(burst)}


def one_worker(serve: Serve, **options: Any) -> tuple[Server, int]:
    """An instance, and the pid that it answers with."""
    server = serve(args=("-k", "gthread", "-w", "1", "--threads", "4"), **options)
    return server, look(server.get("/look"))["pid"]


def test_it_sends_where_it_is_told_to(serve: Serve, balance: Balance) -> None:
    """Every endpoint is sent to; a new one is from when it is told, and what is removed is no
    more."""
    (a, a_pid), (b, b_pid), (c, c_pid) = (one_worker(serve) for _ in range(3))
    balancer = balance(a, b)
    assert answering(balancer) == {a_pid, b_pid}
    balancer.route([b.address, c.address])
    a.wait_for(
        lambda: answering(balancer) == {b_pid, c_pid} and not balancer.unrouted(),
        "the new endpoints",
    )
    processes = processes_of(balancer.pid)
    assert processes
    balancer.stop()
    assert processes_of(balancer.pid) == []
    assert balancer.exit_code in (0, -signal.SIGTERM, 128 + signal.SIGTERM), balancer.output


def test_it_works_over_unix_sockets(serve: Serve, balance: Balance, tmp_path: Path) -> None:
    """Instances and the balancer itself may be at paths; the application sees the same."""
    (a, a_pid), (b, b_pid) = (
        one_worker(serve, bind=f"unix:{tmp_path}/{name}.sock") for name in "ab"
    )
    balancer = balance(a, b, bind=str(tmp_path / "front.sock"))
    assert balancer.address == str(tmp_path / "front.sock")
    assert answering(balancer) == {a_pid, b_pid}


def test_streams_and_websockets_last_longer_than_a_request(serve: Serve, balance: Balance) -> None:
    """Neither is cut off by the balancer's limit for a response, and the beginning of a stream is
    passed on at once."""
    server = serve("asgi_service:bare", args=("-k", "uvicorn_worker.UvicornWorker"))
    balancer = balance(
        server, setup=replace(QUICK, timeout=1.5, stream_path="/stream?n=60&pause=0.1")
    )

    async def hold() -> list[Ending]:
        clients = HeldClients(
            EndpointTable(),
            stream_path="/stream?n=60&pause=0.1",
            websocket_path="/websocket",
            held=1,
            clients=1,
            timeout=5.0,
            host=None,
            seed=0,
            record=lambda record: None,
        )
        return await asyncio.gather(
            *(
                clients.hold(kind, path, balancer.address, 2.5)
                for kind, path in clients.kinds.items()
            )
        )

    stream, websocket = asyncio.run(hold())
    assert stream == Ending(RequestOutcome.OK, 200, "")
    assert websocket == Ending(RequestOutcome.OK, 101, "")


def test_what_it_learns_by_itself(serve: Serve, balance: Balance) -> None:
    """An instance that is not ready gets no more requests, long before the platform tells: by
    active checks alone. nginx has none, and goes on sending; the instance serves, as it does all
    through its delay."""
    (a, a_pid), (b, b_pid) = (one_worker(serve, settings=HOLD) for _ in range(2))
    balancer = balance(a, b)
    a.terminate()
    if balancer.product == "nginx":
        assert answering(balancer) == {a_pid, b_pid}
        return
    a.wait_for(lambda: balancer.unrouted(), "the failed check")
    a.wait_for(lambda: answering(balancer) == {b_pid}, "the end of its requests")


def test_a_scale_down_through_it_loses_nothing(product: type[Balancer], tmp_path: Path) -> None:
    """One of two instances deleted under load, fresh and kept-alive connections, told to the
    balancer 1.5 s later."""
    planned = plan(
        "gthread",
        tmp_path,
        lag=1.5,
        through=product.product,
        setup=QUICK,
        warm_up=40,
        cool_down=40,
        settings={"shutdown_delay": 2, "min_delay": 0},
        slow_path="/slow?s=1",
        slow_share=0.05,
    )
    result = play(planned, GRACE)
    assert result.flawless, told(result)
    assert result.plugin_spoke
    assert product.product in result.outputs


def test_plain_gunicorn_is_asked_for_what_it_has(tmp_path: Path) -> None:
    """Without a readiness path in the application, checks of plain gunicorn ask for a path of the
    load, and it is said: with checks that never pass no request would reach it at all."""
    lines: list[str] = []
    planned = plan(
        "gthread", tmp_path, lag=0.5, through="envoy", setup=QUICK, warm_up=40, cool_down=40
    )
    if PRODUCTS["envoy"].find() is None:
        pytest.skip("envoy is not installed")
    result = play(planned, PLAIN, lines.append)
    assert any(
        line.startswith("GET /readyz answers 404: envoy asks for / instead") for line in lines
    )
    assert result.tally.total > 60
    assert result.lost_elsewhere == 0


def test_a_balancer_that_ends_under_load_is_told(serve: Serve, balance: Balance) -> None:
    """Nothing is concluded from a rehearsal whose balancer died: an error, with what it printed."""
    server, _ = one_worker(serve)
    balancer = balance(server)
    table = EndpointTable()
    table.add(server.address)

    def die() -> None:
        with balancer.following(table):
            os.kill(balancer.pid, signal.SIGKILL)
            assert balancer.wait_exit(20)

    with pytest.raises(
        InstanceFailed, match=f"{balancer.product} ended with exit code -9 under load"
    ):
        die()


def test_a_balancer_that_cannot_be_told_is_told(serve: Serve, balance: Balance) -> None:
    """With its folder gone, its files and its socket are: what the table says cannot be passed on,
    an error."""
    server, _ = one_worker(serve)
    balancer = balance(server)
    table = EndpointTable()
    table.add(server.address)

    def followed() -> bool:
        return any(thread.name == f"{balancer.product} follows" for thread in threading.enumerate())

    def lose_its_folder() -> None:
        with balancer.following(table):
            shutil.rmtree(balancer.runtime_dir)
            table.add(("127.0.0.1", 1))
            server.wait_for(lambda: not followed(), "the end of the attempts")

    with pytest.raises(InstanceFailed, match="could not be given its endpoints"):
        lose_its_folder()


def test_a_configuration_that_it_refuses_is_shown(product: type[Balancer]) -> None:
    """It ends at once; the first line of the error says why, in its own words, and no process is
    left."""
    balancer = product([("127.0.0.1", 1)], Setup(connect_timeout=-1.0))
    said = {
        "envoy": r"Invalid duration",
        "haproxy": r"unexpected character '-' in 'timeout connect'",
        "nginx": r'"proxy_connect_timeout" directive invalid value',
    }[product.product]
    with pytest.raises(
        InstanceFailed, match=f"^{product.product} ended with .* before it could listen: .*{said}"
    ):
        balancer.start()
    assert processes_of(balancer.pid) == []


# -- the command ----


COMMAND = (sys.executable, "-m", "gunicorn_grace.cli", "rehearse")


def rehearse(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(APPS)}
    return subprocess.run(
        [*COMMAND, *args], cwd=folder, env=env, capture_output=True, text=True, timeout=150
    )


def test_the_command_rehearses_through_it(product: type[Balancer], tmp_path: Path) -> None:
    """``--through`` names what stands between, in the report and while it runs; nothing is lost,
    exit code 0."""
    name = product.product
    args = (
        "--instances",
        "2",
        "--rate",
        "40",
        "--lag",
        "1",
        "--delay",
        "2",
        "--worker-class",
        "gthread",
    )
    run = rehearse(
        tmp_path, "service:app", "--only", "grace", "--through", name, *args, "--json", "out.json"
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"All requests go through {name}." in run.stdout
    assert f"through {name}, which learns {product.learns}" in run.stderr
    (result,) = json.loads((tmp_path / "out.json").read_text())["results"]
    assert result["lost"] == 0


def test_an_interrupted_rehearsal_leaves_none(product: type[Balancer], tmp_path: Path) -> None:
    """Ctrl-C in the middle: exit code 130, and the balancer with all of its workers is gone."""
    env = {**os.environ, "PYTHONPATH": str(APPS)}
    command = [
        *COMMAND,
        "service:app",
        "--only",
        "grace",
        "--instances",
        "2",
        "--through",
        product.product,
    ]
    with subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True) as run:
        assert run.stderr is not None
        assert any("to warm up" in line for line in run.stderr)
        (balancer,) = (
            child
            for child in procfs.children(run.pid)
            if product.main_file in Path(f"/proc/{child}/cmdline").read_text()
        )
        assert processes_of(balancer)
        run.send_signal(signal.SIGINT)
        _, said = run.communicate(timeout=60)
    assert run.returncode == 130, said
    assert processes_of(balancer) == []


@pytest.mark.parametrize("name", PRODUCTS)
def test_show_config_prints_and_starts_nothing(name: str, tmp_path: Path) -> None:
    """The application is not even imported."""
    run = rehearse(tmp_path, "nowhere:app", "--through", name, "--show-config")
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    assert re.search(r"^# (envoy\.yaml|haproxy\.cfg|nginx\.conf)$", run.stdout, re.M)


def test_show_config_needs_a_name(tmp_path: Path) -> None:
    """Of no balancer there is no configuration: exit code 2."""
    run = rehearse(tmp_path, "service:app", "--show-config")
    assert (run.returncode, run.stdout) == (2, "")
    assert "--show-config needs a balancer: name one with --through" in run.stderr
