"""The probe port: answers while every worker is busy, and ends with the instance, whatever ends
that."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gunicorn_grace.rehearsal.load.wire import Response, fetch, parse_address
from gunicorn_grace.rehearsal.processes import procfs
from gunicorn_grace.shared.agreed import ARBITER
from gunicorn_grace.shared.phase import Phase
from support.servers import (
    HOLD,
    LOADED_BY_ROOT,
    SHORT,
    Client,
    Connect,
    Serve,
    Server,
    booted_in,
    end_delay_of,
    memory_of,
    needs_curl,
)

pytestmark = pytest.mark.ends

BIND = {"probe_bind": "127.0.0.1:0"}
PORT = re.compile(r"gunicorn-grace: probe port at (\S+)$")


def port(server: Server) -> Any:
    """Where the probe port is, from the log."""
    found = PORT.search(server.wait_line(PORT))
    assert found is not None
    return parse_address(found[1])


def probe(server: Server, path: str = "/readyz", **options: Any) -> Response:
    return fetch(port(server), path, **options)


def responders(server: Server, arbiter: int | None = None) -> list[int]:
    """The responders of an arbiter: processes of the server with our own command line, whose
    descriptor of a process is the arbiter's."""
    arbiter = server.arbiter_pid if arbiter is None else arbiter
    found = []
    for pid in server.processes():
        with contextlib.suppress(OSError):
            proc = Path(f"/proc/{pid}")
            if b"gunicorn_grace.responder.process" in (proc / "cmdline").read_bytes():
                is_its = f"Pid:\t{arbiter}\n" in (proc / "fdinfo" / str(ARBITER)).read_text()
                is_starter = pid in procfs.children(arbiter)
                if is_its and not is_starter:
                    found.append(pid)
    return found


def responder(server: Server) -> int:
    """The one responder, when there is one that answers."""
    assert probe(server, "/livez").status == 200
    (pid,) = server.wait_for(lambda: responders(server), "the responder")
    return int(pid)


Block = Callable[[Server, int], Path]


@pytest.fixture
def block(connect: Connect, tmp_path_factory: pytest.TempPathFactory) -> Block:
    """Keep so many workers busy until the file that is returned is there."""

    def start(server: Server, workers: int) -> Path:
        release = tmp_path_factory.mktemp("release") / "it"
        for _ in range(workers):
            connect(server).send(f"/wait?for={release}")
        server.wait_in_flight(workers)
        return release

    return start


def is_refused(address: Any) -> bool:
    try:
        with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as sock:
            sock.connect(address)
    except (ConnectionRefusedError, FileNotFoundError):
        return True
    return False


# -- answering ----


def test_it_answers_while_every_sync_worker_is_busy(
    serve: Serve, connect: Connect, block: Block
) -> None:
    """Ready, then not ready from SIGTERM on and live all the while, when the plain port answers
    nobody."""
    server = serve(args=("-k", "sync", "-w", "2"), settings={**SHORT, **BIND})
    server.wait_booted(2)
    release = block(server, 2)
    plain = connect(server)
    plain.send("/readyz")
    assert probe(server).status == 200
    assert probe(server, "/startupz").body == b"ok\n"
    server.terminate()
    server.wait_phase(Phase.LAME_DUCK)
    answer = probe(server)
    assert (answer.status, answer.body) == (503, b"[-]shutdown failed: reason withheld\n")
    assert answer.headers["cache-control"] == "no-store"
    assert (probe(server, "/livez").status, probe(server, "/healthz").status) == (200, 200)
    assert not select.select([plain.sock], [], [], 0)[0]
    release.touch()
    assert plain.receive().status == 503
    address = port(server)
    server.assert_gone()
    assert is_refused(address)


def test_readiness_turns_red_with_the_signal_itself(serve: Serve) -> None:
    """The store of the signal handler is what it reads: whatever the arbiter is doing, the next
    probe says 503."""
    server = serve(args=("-k", "gthread", "-w", "1"), settings={**HOLD, **BIND})
    server.wait_booted(1)
    assert probe(server).status == 200
    server.terminate()
    server.wait_for(lambda: server.memory.header.sigterm, "the signal")
    assert probe(server).status == 503
    server.terminate()
    server.assert_gone()


@needs_curl
@pytest.mark.long
def test_nothing_but_probes_is_answered(serve: Serve) -> None:
    """Other paths are 404 and other methods 405, and neither reaches the application."""
    server = serve(args=("-w", "1"), settings=BIND)
    assert probe(server, "/").status == 404
    assert probe(server, "/slow?s=1").status == 404
    assert probe(server, "/crash").status == 404
    refused = probe(server, "/readyz", method="POST")
    assert (refused.status, refused.headers["allow"]) == (405, "GET, HEAD")
    address = port(server)
    done = subprocess.run(
        ["curl", "-sS", "--head", f"http://{address[0]}:{address[1]}/livez"],
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("HTTP/1.1 200 OK")
    assert "Content-Length: 3" in done.stdout


@pytest.mark.long
def test_not_ready_before_a_worker_has_booted(serve: Serve, tmp_path: Path) -> None:
    """While the application is imported it is live, and neither ready nor started."""
    (tmp_path / "late.py").write_text(
        "import os, time\nfrom speech import say\nsay('import begins')\n"
        f"while not os.path.exists({str(tmp_path / 'go')!r}): time.sleep(0.02)\n"
        "from service import app\n"
    )
    server = serve("late:app", args=("-w", "1"), settings=BIND, ready=False)
    server.wait_line("import begins")
    assert probe(server, "/livez").status == 200
    assert probe(server).body == b"[-]booted failed: reason withheld\n"
    assert probe(server, "/startupz").status == 503
    (tmp_path / "go").touch()
    server.wait_booted(1)
    assert (probe(server).status, probe(server, "/startupz").status) == (200, 200)


@pytest.mark.long
def test_not_ready_while_no_worker_is_left(serve: Serve, tmp_path: Path) -> None:
    """A worker that crashed and whose successor still loads serves nobody; the start-up is past all
    the same."""
    (tmp_path / "once.py").write_text(
        "import os, time\n"
        f"while os.path.exists({str(tmp_path / 'halt')!r}): time.sleep(0.02)\n"
        "from service import app\n"
    )
    server = serve("once:app", args=("-w", "1"), settings=BIND)
    (worker,) = server.wait_booted(1)
    server.wait_phase(Phase.SERVING)
    assert probe(server).status == 200
    (tmp_path / "halt").touch()
    os.kill(worker, signal.SIGKILL)
    server.wait_for(lambda: not booted_in(server.memory), "the end of the worker")
    assert probe(server).body == b"[-]booted failed: reason withheld\n"
    assert probe(server, "/startupz").status == 200
    (tmp_path / "halt").unlink()
    server.wait_booted(1)
    assert probe(server).status == 200


@pytest.mark.long
def test_a_stale_heartbeat_is_not_ready(serve: Serve) -> None:
    """No worker has told gunicorn for longer than ``timeout`` that it lives: 503. That the arbiter
    is stopped does not concern a router as long as workers serve."""
    server = serve(args=("-k", "gthread", "-w", "1", "--timeout", "3"), settings=BIND)
    (worker,) = server.wait_booted(1)
    os.kill(server.arbiter_pid, signal.SIGSTOP)
    try:
        board = server.memory.board(0)
        assert board is not None
        first = board.heartbeat
        server.wait_for(lambda: board.heartbeat > first, "another heartbeat")
        assert probe(server).status == 200
        os.kill(worker, signal.SIGSTOP)
        try:
            server.wait_for(lambda: probe(server).status == 503, "the stale heartbeat")
            assert probe(server).body == b"[-]heartbeat failed: reason withheld\n"
            assert probe(server, "/livez").status == 200
        finally:
            os.kill(worker, signal.SIGCONT)
        server.wait_for(lambda: probe(server).status == 200, "the heartbeat")
    finally:
        os.kill(server.arbiter_pid, signal.SIGCONT)


@pytest.mark.long
@pytest.mark.parametrize("bind", ["[::1]:0", "unix"])
def test_every_kind_of_address(bind: str, serve: Serve, tmp_path: Path) -> None:
    """IPv6, and a UNIX socket, whose path is gone at the end."""
    path = tmp_path / "probe.sock"
    server = serve(
        args=("-w", "1"),
        settings={**SHORT, "probe_bind": f"unix:{path}" if bind == "unix" else bind},
    )
    server.wait_booted(1)
    assert probe(server).status == 200
    assert path.is_socket() == (bind == "unix")
    server.terminate()
    server.assert_gone()
    assert not path.exists()


@pytest.mark.long
def test_slow_senders_and_garbage_do_not_stop_it(serve: Serve) -> None:
    """Hundreds of connections that send a byte or nothing, and what is no HTTP: each probe in
    between is answered."""
    server = serve(args=("-k", "sync", "-w", "1"), settings=BIND)
    server.wait_booted(1)
    pid, address = responder(server), port(server)
    with contextlib.ExitStack() as stack:
        for number in range(400):
            sock = stack.enter_context(socket.create_connection(address, timeout=20))
            sock.sendall((b"", b"G", b"GET /readyz HTTP/1.1\r\nX: ")[number % 3])
            if number % 50 == 49:
                assert probe(server).status == 200
        for garbage in (
            b"\x16\x03\x01\x02\0\x01\0\r\n\r\n",
            b"\0" * 20000,
            b"GET /readyz\r\n\r\n",
            b"\r\n" * 3000,
        ):
            sock = stack.enter_context(socket.create_connection(address, timeout=20))
            with contextlib.suppress(ConnectionError):
                sock.sendall(garbage)
            assert probe(server).status == 200
    assert responders(server) == [pid]
    assert "failed to answer" not in server.output


# -- checks ----


CHECKED = """
import os, sys, time
import gunicorn_grace
from service import app

@gunicorn_grace.check("disk", ttl=0)
def disk():
    return not os.path.exists({full!r})

@gunicorn_grace.check("alive", kind="liveness", ttl=0)
def alive():
    return not os.path.exists({dead!r})
"""


@pytest.mark.long(but="gthread")
@pytest.mark.parametrize("kind", ["sync", "gthread", "gevent"])
def test_a_check_of_the_application_counts_there(
    kind: str, serve: Serve, tmp_path: Path, block: Block
) -> None:
    """The workers run it and show its result, also while they are busy; reasons stay withheld."""
    full, dead = tmp_path / "full", tmp_path / "dead"
    (tmp_path / "checked.py").write_text(CHECKED.format(full=str(full), dead=str(dead)))
    server = serve("checked:app", args=("-k", kind, "-w", "1"), settings={**SHORT, **BIND})
    server.wait_booted(1)
    release = block(server, 1)
    server.wait_for(lambda: probe(server).status == 200, "a first result")
    assert (
        probe(server, "/readyz?verbose").body
        == b"[+]booted ok\n[+]shutdown ok\n[+]heartbeat ok\n[+]disk ok\n"
    )
    assert probe(server, "/readyz/nonsense").status == 404
    full.touch()
    server.wait_for(lambda: probe(server).status == 503, "the failed check")
    assert probe(server).body == b"[-]disk failed: reason withheld\n"
    assert (probe(server, "/readyz/disk").status, probe(server, "/readyz?exclude=disk").status) == (
        503,
        200,
    )
    assert probe(server, "/livez").status == 200
    dead.touch()
    server.wait_for(lambda: probe(server, "/livez").status == 503, "the failed liveness check")
    full.unlink()
    dead.unlink()
    server.wait_for(
        lambda: probe(server).status == probe(server, "/livez").status == 200, "both checks"
    )
    told = json.loads(probe(server, headers=(("Accept", "application/json"),)).body)
    assert told["checks"] == {"booted": "ok", "shutdown": "ok", "heartbeat": "ok", "disk": "ok"}
    assert told["phase"] == "SERVING"
    full.touch()
    server.terminate()
    server.wait_phase(Phase.LAME_DUCK)
    assert probe(server).body == b"[-]shutdown failed: reason withheld\n"
    release.touch()
    server.wait(20)


@pytest.mark.long
def test_a_check_that_has_not_run_yet_has_not_passed(serve: Serve, tmp_path: Path) -> None:
    """From the moment the worker counts as booted until the first result, readiness is red; so it
    is when the check hangs."""
    (tmp_path / "hanging.py").write_text(
        "import os, time, gunicorn_grace\nfrom service import app\n"
        "@gunicorn_grace.check('slow', timeout=600)\n"
        f"def slow():\n    while not os.path.exists({str(tmp_path / 'go')!r}): time.sleep(0.02)\n"
    )
    server = serve("hanging:app", args=("-w", "1"), settings=BIND)
    server.wait_booted(1)
    assert probe(server).body == b"[-]slow failed: reason withheld\n"
    (tmp_path / "go").touch()
    server.wait_for(lambda: probe(server).status == 200, "the result")


# -- the trigger ----


@needs_curl
def test_curl_triggers_there_while_every_worker_is_busy(serve: Serve, block: Block) -> None:
    """The preStop hook's ``curl`` may use the probe port: the proof is the same, and nobody has to
    be free for it."""
    server = serve(args=("-k", "sync", "-w", "1"), settings={**HOLD, **BIND})
    server.wait_booted(1)
    release = block(server, 1)
    host, number = port(server)
    done = subprocess.run(
        [
            "curl",
            "-s",
            "-o",
            os.devnull,
            "-w",
            "%{http_code}",
            f"http://{host}:{number}/readyz?down=true",
        ],
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.stdout == "503", server.output
    server.wait_line(r"shutdown_initiated by trigger \(http\)")
    release.touch()
    server.terminate()
    server.wait_phase(Phase.LAME_DUCK)


@pytest.mark.long
def test_a_forged_trigger_is_refused_and_logged(serve: Serve) -> None:
    """What a proxy forwards is 403 and changes nothing; the arbiter's log says who it was."""
    server = serve(args=("-w", "1"), settings=BIND)
    server.wait_booted(1)
    forwarded = (("X-Forwarded-For", "192.0.2.1"),)
    assert probe(server, "/readyz?down=true", headers=forwarded).status == 403
    server.wait_line("probe port: trigger refused, from 127.0.0.1")
    assert probe(server).status == 200


@pytest.mark.long
def test_a_token_triggers_there(serve: Serve) -> None:
    """With ``grace_trigger = "token"`` the header decides, and a wrong one is 403."""
    server = serve(
        args=("-w", "1"),
        settings={**HOLD, **BIND, "trigger": "token", "trigger_token": "s3cret"},
        ready=True,
    )
    server.wait_booted(1)
    assert probe(server, "/readyz?down=true", headers=(("X-Grace-Token", "guess"),)).status == 403
    assert probe(server).status == 200
    assert probe(server, "/readyz?down=true", headers=(("X-Grace-Token", "s3cret"),)).status == 503
    server.wait_line(r"shutdown_initiated by trigger \(http\)")
    assert "s3cret" not in server.output


# -- what the process is ----


def test_a_parent_that_counts_the_arbiters_children_counts_workers(serve: Serve) -> None:
    """Airflow's monitor ends a worker for each child too many. The responder is none, neither the
    first one nor one that has replaced it."""
    server = serve(args=("-w", "2"), settings=BIND)
    workers = set(server.wait_booted(2))
    first = responder(server)
    server.wait_for(lambda: set(procfs.children(server.arbiter_pid)) == workers, "workers alone")
    os.kill(first, signal.SIGKILL)
    server.wait_line("another one is started")
    assert responder(server) != first
    server.wait_for(lambda: set(procfs.children(server.arbiter_pid)) == workers, "workers alone")
    server.terminate()
    server.wait_phase(Phase.LAME_DUCK)
    assert probe(server).status == 503


@pytest.mark.once
def test_without_descriptors_of_processes_it_is_a_child(serve: Serve, tmp_path: Path) -> None:
    """Linux before 5.3, and some sandboxes: it answers, is replaced when it dies, and ends with the
    arbiter all the same."""
    (tmp_path / "conf.py").write_text(
        "import os\nfrom gunicorn_grace.conf import *\ndel os.pidfd_open\n"
    )
    server = serve(config=("-c", "conf.py"), args=("-w", "1"), settings={**SHORT, **BIND})
    (worker,) = server.wait_booted(1)

    def child() -> int:
        assert probe(server, "/livez").status == 200
        (pid,) = set(procfs.children(server.arbiter_pid)) - {worker}
        return pid

    first = child()
    os.kill(first, signal.SIGKILL)
    server.wait_line(rf"\(pid {first}\) (was ended by signal 9|has ended); another one is started")
    assert child() != first
    server.terminate()
    assert server.wait(20) == 0, server.output
    server.assert_gone()


@pytest.mark.long
def test_a_killed_responder_is_replaced(serve: Serve) -> None:
    """SIGTERM does not end it, SIGKILL does; what connects meanwhile is answered by the next, and
    gunicorn, which counts no such worker, does not even mention it."""
    server = serve(args=("-w", "1"), settings=BIND)
    server.wait_booted(1)
    first = responder(server)
    for harmless in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        os.kill(first, harmless)
    assert responder(server) == first
    os.kill(first, signal.SIGKILL)
    assert probe(server).status == 200
    server.wait_line(rf"probe responder \(pid {first}\) has ended; another one is started")
    assert responder(server) != first
    assert f"(pid:{first})" not in server.output
    assert len(server.worker_pids()) == 1


@pytest.mark.long
def test_it_replaces_one_that_dies_in_every_phase(serve: Serve, block: Block) -> None:
    """Also while the workers finish what is in flight."""
    server = serve(args=("-k", "gthread", "-w", "1"), settings={**HOLD, **BIND})
    server.wait_booted(1)
    release = block(server, 1)
    for phase in (Phase.LAME_DUCK, Phase.DRAINING):
        server.lead_to(phase)
        pid = responder(server)
        os.kill(pid, signal.SIGKILL)
        assert probe(server).status == 503
        assert responder(server) != pid
    release.touch()
    server.assert_gone()


@pytest.mark.long
@pytest.mark.parametrize("way", ["SIGTERM", "SIGINT", "SIGQUIT", "group", "SIGKILL"])
def test_it_ends_with_the_arbiter(way: str, serve: Serve) -> None:
    """Whatever ends the arbiter: no orphan, and the port is free."""
    # A sync worker looks every half of its timeout whether its arbiter is there.
    server = serve(args=("-w", "2", "--timeout", "4"), settings={**SHORT, **BIND})
    server.wait_booted(2)
    address, pid = port(server), responder(server)
    if way == "group":
        server.signal_group(signal.SIGTERM)
        server.wait_phase(Phase.LAME_DUCK)
        assert responder(server) == pid
    else:
        server.signal(signal.Signals[way])
    server.assert_gone(None if way == "SIGKILL" else 0, patience=20)
    assert is_refused(address)


@pytest.mark.long
def test_it_is_the_last_to_go(serve: Serve, block: Block) -> None:
    """It answers "not ready" as long as a worker finishes a request."""
    server = serve(args=("-k", "gthread", "-w", "1"), settings={**SHORT, **BIND})
    server.wait_booted(1)
    release = block(server, 1)
    server.lead_to(Phase.DRAINING)
    with pytest.raises(OSError):  # Sealed: nobody answers the SYN.
        Client(server.address, timeout=0.3)
    assert (probe(server).status, probe(server, "/livez").status) == (503, 200)
    release.touch()
    server.assert_gone()
    assert "0 cut off" in server.summary()


def test_it_tells_its_metrics_to_the_very_end(serve: Serve, block: Block) -> None:
    """Through the sealed listener nobody could see what the drain cuts off; there it is seen."""
    settings = {**SHORT, **BIND, "termination_period": 5}
    server = serve(args=("-k", "gthread", "-w", "1"), settings=settings)
    server.wait_booted(1)
    block(server, 1)
    before = probe(server, "/metrics")
    assert before.headers["content-type"].startswith("text/plain; version=")
    assert "gunicorn_grace_requests_in_flight 1.0" in before.body.decode()
    server.lead_to(Phase.DRAINING)
    with pytest.raises(OSError):  # Sealed: nobody answers the SYN.
        Client(server.address, timeout=0.3)
    address, last = port(server), ""
    with contextlib.suppress(OSError):
        while True:
            last = fetch(address, "/metrics").body.decode()
    assert 'gunicorn_grace_phase{phase="LAME_DUCK"} 0.0' in last, server.output
    # The request is cut off in the instant before the port goes.
    assert re.search(r"^gunicorn_grace_requests_(in_flight|cut_off_total) 1.0$", last, re.M), last
    server.assert_gone()


@pytest.mark.long
def test_it_holds_nothing_of_the_application_or_of_gunicorn(serve: Serve) -> None:
    """Not with ``preload_app`` either, and not the one that replaces the first: no module of the
    application, and one socket that listens, its own. gunicorn's would keep the service's port open
    after the drain."""
    server = serve("marked_app:app", args=("-w", "1", "--preload"), settings=BIND)
    server.wait_booted(1)
    assert "application-was-imported" in Path(f"/proc/{server.arbiter_pid}/maps").read_text()
    for _ in range(2):
        pid = responder(server)
        assert "application-was-imported" not in Path(f"/proc/{pid}/maps").read_text()
        assert procfs.listening(pid) == ["{}:{}".format(*port(server))]
        os.kill(pid, signal.SIGKILL)
        assert probe(server).status == 200


@pytest.mark.long
def test_no_worker_keeps_its_listener(serve: Serve) -> None:
    """One that outlives the arbiter must not keep the port."""
    server = serve(args=("-w", "1"), settings=BIND)
    (worker,) = server.wait_booted(1)
    assert "{}:{}".format(*port(server)) in procfs.listening(server.arbiter_pid)
    assert "{}:{}".format(*port(server)) not in procfs.listening(worker)


@pytest.mark.long
def test_it_runs_as_the_user_of_the_workers(serve: Serve, tmp_path: Path) -> None:
    """``user`` and ``group`` count for it as well, and it keeps no other group."""
    if os.getuid():
        pytest.skip("only root can become somebody else")
    (tmp_path / "conf.py").write_text(LOADED_BY_ROOT)
    args = ("-w", "1", "--timeout", "4", "--preload", "--user", "65534", "--group", "65534")
    server = serve(config=("-c", "conf.py"), args=args, settings={**SHORT, **BIND})
    server.wait_booted(1)
    status = dict(
        line.split(":\t", 1)
        for line in Path(f"/proc/{responder(server)}/status").read_text().splitlines()
        if ":\t" in line
    )
    assert set(status["Uid"].split()) == set(status["Gid"].split()) == {"65534"}
    assert status["Groups"].split() == []
    server.signal(signal.SIGKILL)
    server.assert_gone(None, patience=20)


# -- beginnings and changes ----


@pytest.mark.long
def test_gunicorns_own_address_is_refused(serve: Serve) -> None:
    """Bound first, it would leave gunicorn to try five times for what it has taken itself."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = "{}:{}".format(*free.getsockname())
    server = serve(args=("-w", "1"), bind=address, settings={"probe_bind": address}, listens=False)
    assert server.wait(20) == 1
    assert (
        f"grace_probe_bind = '{address}' cannot be bound: gunicorn itself binds it" in server.output
    )
    assert "Connection in use" not in server.output


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_port_in_use_is_one_clear_line(kind: str, serve: Serve, tmp_path: Path) -> None:
    """gunicorn does not start, and says which setting has which value."""
    with socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET) as taken:
        taken.bind(str(tmp_path / "taken.sock") if kind == "unix" else ("127.0.0.1", 0))
        taken.listen()
        name = taken.getsockname()
        bind = f"unix:{name}" if kind == "unix" else "{}:{}".format(*name)
        server = serve(args=("-w", "1"), settings={"probe_bind": bind}, listens=False)
        assert server.wait(20) == 1
    (line,) = [line for line in server.output.splitlines() if "probe_bind" in line]
    assert f"grace_probe_bind = '{bind}' cannot be bound: " in line
    assert "Traceback" not in server.output
    assert not server.processes()


@pytest.mark.long
def test_a_socket_that_was_left_behind_is_taken(serve: Serve, tmp_path: Path) -> None:
    """An arbiter that got SIGKILL leaves the path; the next one binds it all the same."""
    path = tmp_path / "probe.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    server = serve(args=("-w", "1"), settings={**SHORT, "probe_bind": f"unix:{path}"})
    assert probe(server, "/livez").status == 200
    server.terminate()
    server.assert_gone()
    assert not path.exists()


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_an_arbiter_that_follows_one_that_was_killed_waits_for_its_port(
    kind: str, serve: Serve, tmp_path: Path
) -> None:
    """The responder of an arbiter that got SIGKILL has the port until it has ended: a supervisor's
    restart at once boots all the same."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    bind = f"unix:{tmp_path / 'probe.sock'}" if kind == "unix" else f"127.0.0.1:{port}"
    settings = {**SHORT, "probe_bind": bind}
    first = serve(args=("-w", "1"), settings=settings)
    pid = responder(first)
    os.kill(pid, signal.SIGSTOP)  # It cannot look yet.
    first.signal(signal.SIGKILL)
    second = serve(args=("-w", "1"), settings=settings, listens=False)
    second.wait_line("gunicorn-grace: lame duck")  # Next it binds the port.
    os.kill(pid, signal.SIGCONT)
    second.wait_line("probe port at")
    second.wait_booted(1)
    assert probe(second, "/livez").status == 200
    second.terminate()
    second.assert_gone()


@pytest.mark.long
def test_sighup_brings_new_settings(serve: Serve, tmp_path: Path) -> None:
    """The file is read again: other paths are answered at the same port, and another port is said
    to take a restart."""
    conf = tmp_path / "conf.py"
    text = "from gunicorn_grace.conf import *\ngrace_probe_bind = '127.0.0.1:0'\n"
    conf.write_text(text)
    server = serve(args=("-w", "1"), config=("-c", str(conf)))
    server.wait_booted(1)
    server.wait_phase(Phase.SERVING)
    first = responder(server)
    conf.write_text(text.replace(":0", ":1") + "grace_readiness_path = '/other'\n")
    server.signal(signal.SIGHUP)
    server.wait_line("grace_probe_bind stays '127.0.0.1:0': '127.0.0.1:1' needs a restart")
    server.wait_for(lambda: probe(server, "/other").status == 200, "the new path")
    server.wait_for(lambda: first not in server.processes(), "the end of the first responder")
    assert probe(server, "/readyz").status == 404
    assert "another one is started" not in server.output


@pytest.mark.long
@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_an_upgrade_passes_the_port_on(kind: str, serve: Serve, tmp_path: Path) -> None:
    """SIGUSR2, then SIGTERM to the old arbiter: each probe is answered 200, before, between and
    after, and the path of a UNIX socket stays."""
    bind = f"unix:{tmp_path / 'probe.sock'}" if kind == "unix" else "127.0.0.1:0"
    server = serve(
        args=("-k", "gthread", "-w", "1"), settings={**HOLD, "probe_bind": bind}, script=True
    )
    server.wait_booted(1)
    address = port(server)
    assert probe(server).status == 200
    server.signal(signal.SIGUSR2)
    listens = re.compile(r"Listening at: .*\((\d+)\)")

    def ready_and(condition: bool) -> bool:
        assert fetch(address, "/readyz").status == 200
        return condition

    server.wait_for(lambda: ready_and(len(listens.findall(server.output)) == 2), "its successor")
    new = int(listens.findall(server.output)[1])
    with contextlib.closing(memory_of(new)) as memory:
        server.wait_for(lambda: ready_and(bool(booted_in(memory))), "a new worker that has booted")
        server.wait_for(lambda: ready_and(bool(responders(server, new))), "the new responder")
        server.signal(signal.SIGTERM)
        server.wait_for(lambda: ready_and(server.exit_time is not None), "the end of the old one")
        for _ in range(20):
            assert fetch(address, "/readyz").status == 200
        os.kill(new, signal.SIGTERM)
        server.wait_line("shutdown_initiated")
        assert fetch(address, "/readyz").status == 503
        end_delay_of(new)
        server.wait_for(lambda: not server.processes(), "the end of the new one")
    assert is_refused(address)


@pytest.mark.long
def test_without_it_there_is_none(serve: Serve) -> None:
    """Unset, the default: no process, no board."""
    server = serve(args=("-w", "1"))
    server.wait_booted(1)
    assert responders(server) == []
    assert server.memory.header.boards == 0
    assert "probe port" not in server.output
