"""``grace_enabled = False``: the probes answer, and everything else is plain gunicorn."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from gunicorn_grace.rehearsal.load.wire import fetch, parse_address
from gunicorn_grace.rehearsal.processes import procfs
from support.servers import WORKERS, Connect, Serve, Server

pytestmark = pytest.mark.ends

LINE = (
    "gunicorn-grace: switched off (grace_enabled): only the probes answer, and the shutdown is "
    "plain gunicorn's"
)
OFF = {"enabled": "false"}

FILE = """
import handlers
def when_ready(server):
    server.log.info("user: arbiter %s %s", handlers.classes(server), handlers.signals())
def post_worker_init(worker):
    worker.log.info("user: worker booted")
def worker_int(worker):
    worker.log.info("user: worker_int")
def on_exit(server):
    server.log.info("user: on_exit")
"""
INSTALL = "import gunicorn_grace\ngunicorn_grace.install(globals())\n"

LOADING = """
import os, time
from speech import say
say("import begins")
while not os.path.exists("go"):
    time.sleep(0.02)
from service import app
"""

ENDS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
DELAY = 10.0
"""The plugin's delay by default, in seconds."""


def pair(
    serve: Serve, tmp_path: Path, *args: str, app: str = "insides:app", **options: Any
) -> tuple[Server, Server]:
    """Plain gunicorn, and the plugin switched off: the same file but for our two lines."""
    (tmp_path / "plain.py").write_text(FILE)
    (tmp_path / "off.py").write_text(FILE + INSTALL)
    plain = serve(app, config=("-c", "plain.py"), args=args, **options)
    off = serve(app, config=("-c", "off.py"), args=args, settings=OFF, **options)
    workers = int(args[args.index("-w") + 1])
    for server in (plain, off):
        # gunicorn's worker misses a signal that comes while it boots.
        server.wait_for(lambda s=server: s.output.count("user: worker booted") == workers, "boot")
    return plain, off


def log_of(server: Server) -> list[str]:
    """What it has logged, without what differs from run to run."""
    text = server.output.replace(str(server.runtime_dir), "TMP")
    text = re.sub(r"(?m)^\[[^]]*\] \[\d+\] ", "", text)
    # The signals that the kernel knows are hexadecimal numbers, and stay.
    return sorted(re.sub(r"\b\d{1,7}\b", "N", text).splitlines())


def assert_alike(off: Server, plain: Server) -> None:
    """Both have logged the same, but for the one line."""
    lines = log_of(off)
    assert [line for line in lines if "grace" in line] == [f"[WARNING] {LINE}"]
    lines.remove(f"[WARNING] {LINE}")
    assert lines == log_of(plain)


def shut_down(
    server: Server, number: int, connect: Connect, seconds: float = 0.6
) -> tuple[Any, ...]:
    """End it by a signal, SIGTERM in the middle of a request: the exit code, and the answer."""
    answer: tuple[Any, ...] = ()
    if number == signal.SIGTERM:
        client = connect(server)
        client.send(f"/slow?s={seconds:g}")
        server.wait_line("slow request begins")
    sent = time.monotonic()
    server.signal(number)
    if number == signal.SIGTERM:
        response = client.receive()
        answer = response.status, response.body, response.headers.get("Connection")
        client.close()
    code = server.wait(20)
    assert server.exit_time is not None
    assert server.exit_time - sent < DELAY / 2, server.output
    return code, *answer


@pytest.mark.long(but="gthread")
@pytest.mark.parametrize("number", ENDS, ids=lambda number: number.name)
def test_the_shutdown_is_plain_gunicorns(
    kind: str, number: signal.Signals, serve: Serve, connect: Connect, tmp_path: Path
) -> None:
    """No delay, the same exit code, the same answer to the request in flight, the same arbiter with
    the same signals, and the same log but for one line."""
    plain, off = pair(serve, tmp_path, *WORKERS[kind])
    assert shut_down(off, number, connect) == shut_down(plain, number, connect)
    assert_alike(off, plain)


def test_a_worker_is_plain_gunicorns(kind: str, serve: Serve, tmp_path: Path) -> None:
    """Its signals, its class, its hooks, and the functions of gunicorn's that the plugin would
    otherwise replace: all as without it."""
    plain, off = pair(serve, tmp_path, *WORKERS[kind])
    inside = insides_of(off)
    assert inside == insides_of(plain)
    assert (inside["phase"], inside["terminating"], inside["seconds_left"]) == (
        "SERVING",
        False,
        None,
    )


def insides_of(server: Server) -> Any:
    """What a worker is made of."""
    found = json.loads(server.get("/insides").body)
    del found["pid"]
    return found


@pytest.mark.once
def test_a_boot_as_pid_1_is_plain_gunicorns(
    serve: Serve, container: tuple[str, ...], tmp_path: Path
) -> None:
    """The kernel drops a signal for which PID 1 has no handler, and a preload has none: gunicorn
    serves after it."""
    (tmp_path / "loading.py").write_text(LOADING)
    server = serve(
        "loading:app",
        args=("--preload",),
        settings=OFF,
        executable_prefix=container,
        listens=False,
    )
    server.wait_line("import begins")
    first = next(pid for pid in server.processes() if procfs.inner_pid(pid) == 1)
    os.kill(first, signal.SIGTERM)
    (tmp_path / "go").touch()
    server.wait_line("Booting worker")
    assert "Handling signal" not in server.output


# -- probes ----


def with_json(server: Server, path: str) -> Any:
    """The JSON answer of a probe."""
    return json.loads(server.get(path, headers=(("Accept", "application/json"),)).body)


def test_the_probes_go_on_answering(kind: str, serve: Serve) -> None:
    """As in an instance that serves, with the paths of the settings, in front of an application
    that knows nothing of them; and a request is served as ever."""
    server = serve(kind=kind, settings={**OFF, "readiness_path": "/ready"})
    for path in ("/ready", "/livez", "/healthz", "/startupz", "/ready/shutdown"):
        assert server.get(path).body == b"ok\n", path
    assert server.get("/readyz").status == 404
    assert with_json(server, "/ready")["phase"] == "SERVING"
    assert server.get("/").body == b"hello\n"


@pytest.mark.parametrize("way", ["overlay", "blueprint", "init_app", "middleware"])
def test_every_way_of_answering_them_works(way: str, serve: Serve, tmp_path: Path) -> None:
    """The overlay, the blueprint and the middleware have the paths of the settings, and run the
    application's checks."""
    settings = {**OFF, "readiness_path": "/ready"}
    server = serve("probe_service:app", settings=settings, env={"SWITCHES": str(tmp_path)})
    host = (("Host", way),)
    assert server.get("/ready", headers=host).body == b"ok\n"
    assert server.get("/ready/database", headers=host).status == 200
    (tmp_path / "database-down").touch()
    assert server.get("/ready?verbose", headers=host).status == 503
    server.wait_line("s3cret place of database")


def test_an_application_keeps_its_own_probe(serve: Serve) -> None:
    """As in an instance that serves: it is asked first."""
    server = serve("catch_all:app", settings=OFF)
    assert server.get("/readyz").body == b"theirs\n"


def test_probes_stay_out_of_the_access_log(serve: Serve) -> None:
    """As in an instance that serves, unless they are to be there."""
    server = serve(args=("-w", "1", "--access-logfile", "-"), settings=OFF)
    assert server.get("/readyz").status == 200
    assert server.get("/").status == 200
    server.wait_line("GET / HTTP")
    assert "GET /readyz" not in server.output


@pytest.mark.once
@pytest.mark.parametrize("worker_class", ["asgi", "uvicorn_worker.UvicornWorker"])
def test_an_asgi_worker_is_plain_gunicorns_too(
    worker_class: str, serve: Serve, connect: Connect, tmp_path: Path
) -> None:
    """A wrapped application answers the probes. Worker, shutdown and log are as without us."""
    module = "gunicorn.workers.gasgi" if worker_class == "asgi" else "uvicorn_worker"
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"no {module} here")
    args = ("-k", worker_class, "-w", "1")
    plain, off = pair(serve, tmp_path, *args, app="insides:wrapped")
    assert off.get("/readyz").body == b"ok\n"
    assert with_json(off, "/readyz")["phase"] == "SERVING"
    assert insides_of(off) == insides_of(plain)
    # gunicorn's own worker looks once a second whether it shall go.
    ended = [shut_down(server, signal.SIGTERM, connect, 1.8) for server in (plain, off)]
    assert ended[0] == ended[1]
    assert_alike(off, plain)


@pytest.mark.once
@pytest.mark.parametrize("worker_class", ["asgi", "uvicorn_worker.UvicornWorker"])
def test_an_asgi_application_has_the_probes_in_front_of_it(worker_class: str, serve: Serve) -> None:
    """Without a line of code, as in an instance that serves; and a hook does not fail."""
    module = "gunicorn.workers.gasgi" if worker_class == "asgi" else "uvicorn_worker"
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"no {module} here")
    server = serve("asgi_service:bare", args=("-k", worker_class, "-w", "1"), settings=OFF)
    assert server.get("/readyz").body == b"ok\n"
    assert with_json(server, "/readyz")["phase"] == "SERVING"
    assert server.get("/readyz?down=true").body.startswith(b"gunicorn-grace is switched off")
    assert server.get("/").status == 200


# -- triggers and commands ----


def test_a_trigger_does_nothing_and_does_not_fail(serve: Serve) -> None:
    """`curl -f` of a hook gets 200, from anywhere. One line of each worker says that nothing was
    done, and the instance stays ready."""
    server = serve(args=("-w", "1"), settings=OFF)
    for _ in range(3):
        answer = server.get("/readyz?down=true", headers=(("X-Forwarded-For", "192.0.2.1"),))
        assert answer.status == 200
        assert answer.body == b"gunicorn-grace is switched off: nothing was done\n"
    server.wait_line(r"WARNING.*\?down=true does nothing: gunicorn-grace is switched off")
    assert server.output.count("?down=true does nothing") == 1
    assert server.get("/readyz").status == 200


def test_a_trigger_that_was_off_before_is_a_probe(serve: Serve) -> None:
    """With grace_trigger = "off" it is one like any other, as in an instance that serves."""
    server = serve(args=("-w", "1"), settings={**OFF, "trigger": "off"})
    assert server.get("/readyz?down=true").body == b"ok\n"
    assert "down=true" not in server.output


@pytest.mark.once
@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("prestop", 0, "gunicorn-grace is switched off in this instance.*no delay"),
        ("drain", 1, "is switched off in this instance.*so it stays ready"),
        ("undrain", 0, "is switched off in this instance.*nothing to do"),
        ("end-delay", 0, "is switched off in this instance.*no delay, nothing to do"),
    ],
)
def test_a_command_says_so(command: str, code: int, words: str, serve: Serve) -> None:
    """What a hook or a deploy script asks for at the end of an instance does not fail, and returns
    at once. What cannot be had does."""
    server = serve(settings=OFF)
    began = time.monotonic()
    done = server.operate(command)
    assert time.monotonic() - began < DELAY / 2
    assert done.returncode == code, done.stderr
    (line,) = (done.stdout + done.stderr).splitlines()
    assert re.search(words, line), line
    assert server.get("/readyz").status == 200


@pytest.mark.once
def test_status_says_so(serve: Serve) -> None:
    """It is told by what it serves, as every instance is, and shows no figure."""
    server = serve(settings=OFF)
    (shown,) = json.loads(server.operate("status", "--json").stdout)["instances"]
    assert (shown["phase"], shown["is_switched_off"]) == ("SERVING", True)
    assert (shown["application"], shown["in_flight"], shown["rate"]) == ("service:app", None, None)
    assert shown["workers"] == []
    assert "switched off (grace_enabled)" in server.operate("status").stdout


# -- what the application sees, and bad values ----


@pytest.mark.once
def test_the_metrics_show_no_zero_that_nobody_has_counted(serve: Serve) -> None:
    """The phase is SERVING. What is not counted is absent."""
    pytest.importorskip("prometheus_client")
    server = serve("metrics_service:app", settings=OFF)
    page = server.get("/metrics").body.decode()
    samples = [line for line in page.splitlines() if line.startswith("gunicorn_grace")]
    assert 'gunicorn_grace_phase{phase="SERVING"} 1.0' in samples
    assert all(line.startswith("gunicorn_grace_phase{") for line in samples), samples


def test_callbacks_holds_and_streams_are_as_outside_gunicorn(serve: Serve) -> None:
    """No callback is called, and a hold keeps nobody: gunicorn alone says when a worker goes."""
    server = serve(
        "application_service:app",
        kind="gthread",
        settings=OFF,
        env={"CALLBACKS": "lame_duck:first:say drain:last:say", "SWITCHES": "/nowhere"},
    )
    assert server.get("/hold?name=job").status == 200
    server.terminate()
    assert server.wait(20) == 0, server.output
    assert server.exit_time is not None
    assert server.sent is not None
    assert server.exit_time - server.sent < DELAY / 2
    assert "first in" not in server.output
    assert "last in" not in server.output


@pytest.mark.once
@pytest.mark.parametrize("way", ["environment", "file"])
def test_a_bad_value_is_refused_in_one_line(way: str, tmp_path: Path) -> None:
    """Neither on nor off is not a state."""
    (tmp_path / "off.py").write_text(
        INSTALL + ("grace_enabled = 'maybe'\n" if way == "file" else "")
    )
    given = {"GRACE_ENABLED": "maybe"} if way == "environment" else {}
    done = subprocess.run(
        [sys.executable, "-m", "gunicorn", "-c", "off.py", "-b", "127.0.0.1:0", "x:y"],
        cwd=tmp_path,
        env={**os.environ, **given},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    name = "GRACE_ENABLED" if way == "environment" else "grace_enabled"
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert f"Error: {name} = 'maybe' is not a boolean: give true or false" in done.stderr


# -- SIGHUP ----


def wait_status(server: Server, path: str, status: int, address: Any = None) -> None:
    """Wait until a path has this status. Plain gunicorn may reset a request while it reloads."""

    def has_it() -> bool:
        with contextlib.suppress(ConnectionError):
            return fetch(address or server.address, path).status == status
        return False

    server.wait_for(has_it, f"{status} of {path}")


SHORT_FILE = "grace_shutdown_delay = 0.25\ngrace_min_delay = 0\ngrace_extend_delay = False\n"


@pytest.mark.parametrize("is_on", [True, False], ids=["on", "off"])
def test_sighup_switches_it_neither_on_nor_off(is_on: bool, serve: Serve, tmp_path: Path) -> None:
    """A line says that it needs a restart. Everything else of the file counts, the probes answer,
    and the shutdown is the one that the instance began with."""
    file = tmp_path / "gunicorn.conf.py"
    file.write_text(f"{SHORT_FILE}grace_enabled = {is_on}\n")
    server = serve(kind="gthread")
    file.write_text(f"{SHORT_FILE}grace_enabled = {not is_on}\ngrace_readiness_path = '/ready'\n")
    server.signal(signal.SIGHUP)
    server.wait_line(
        f"WARNING.*grace_enabled = {not is_on} needs a restart: this instance stays "
        f"switched {'on' if is_on else 'off'}"
    )
    wait_status(server, "/ready", 200)
    server.terminate()
    assert server.wait(20) == 0, server.output
    assert ("shutdown_initiated" in server.output) is is_on
    assert server.output.count(LINE) == (not is_on)


@pytest.mark.once
def test_a_hook_sets_it_too_late(serve: Serve, tmp_path: Path) -> None:
    """When a user's on_starting runs, the plugin is already in place, and a restart would not help:
    the line says where it belongs."""
    (tmp_path / "late.py").write_text(
        f"{SHORT_FILE}def on_starting(server):\n"
        f"    server.cfg.set('grace_enabled', False)\n{INSTALL}"
    )
    server = serve(kind="gthread", config=("-c", "late.py"))
    server.wait_line(
        "WARNING.*grace_enabled = False comes too late in on_starting, so set it in the "
        "configuration: this instance stays switched on"
    )
    server.terminate()
    assert server.wait(20) == 0, server.output
    assert "shutdown_initiated" in server.output


@pytest.mark.once
def test_a_configuration_module_that_gunicorn_has_cached_keeps_the_probes(
    serve: Serve, tmp_path: Path
) -> None:
    """SIGHUP does not execute it again, and the new workers still answer the probes."""
    (tmp_path / "mine.py").write_text(INSTALL)
    server = serve(config=("-c", "python:mine"), args=("-w", "1"), settings=OFF)
    (old,) = server.wait_workers(1)
    server.signal(signal.SIGHUP)
    server.wait_for(lambda: json.loads(server.get("/look").body)["pid"] != old, "a new worker")
    assert server.get("/readyz").body == b"ok\n"
    assert server.output.count(LINE) == 1


@pytest.mark.once
def test_a_program_that_imports_it_in_a_worker_is_not_told_that_it_is_too_late(
    serve: Serve,
) -> None:
    """It was there in time, and is switched off on purpose."""
    server = serve(
        program=("embedded.py", "first"), config=(), settings=OFF, env={"IMPORT_IN_WORKER": "1"}
    )
    assert server.get("/readyz").status == 200
    assert server.output.count("gunicorn-grace") == 1


# -- the probe port ----

PROBES = ("/readyz", "/livez", "/healthz", "/startupz")
PORT = re.compile(r"gunicorn-grace: probe port at (\S+)$")


def test_the_probe_port_answers(serve: Serve, tmp_path: Path) -> None:
    """As SERVING, with the application's checks; a trigger does nothing. A reload keeps it, a
    responder that was ended is replaced, and it ends with the instance."""
    server = serve(
        "probe_service:app",
        settings={**OFF, "probe_bind": "127.0.0.1:0"},
        env={"SWITCHES": str(tmp_path)},
        args=("-w", "1"),
    )
    found = PORT.search(server.wait_line(PORT))
    assert found is not None
    address = parse_address(found[1])

    for path in (*PROBES, "/readyz/database"):
        wait_status(server, path, 200, address)
    assert fetch(address, "/readyz?down=true").status == 200
    page = fetch(address, "/metrics").body.decode()
    assert 'gunicorn_grace_phase{phase="SERVING"} 1.0' in page
    assert "\ngunicorn_grace_requests_total " not in page
    server.wait_line(r"probe port: \?down=true does nothing: gunicorn-grace is switched off")
    (tmp_path / "database-down").touch()
    wait_status(server, "/readyz", 503, address)
    (tmp_path / "database-down").unlink()
    wait_status(server, "/readyz", 200, address)
    seen = server.mark()
    server.signal(signal.SIGHUP)
    server.wait_line("Worker exiting", after=seen)
    wait_status(server, "/readyz", 200, address)
    gunicorns = {server.arbiter_pid, *procfs.children(server.arbiter_pid)}
    (responder,) = set(server.processes()) - gunicorns
    os.kill(responder, signal.SIGKILL)
    server.wait_line("another one is started")
    wait_status(server, "/readyz", 200, address)
    server.terminate()
    server.assert_gone()
    assert "shutdown_initiated" not in server.output
    with pytest.raises(ConnectionRefusedError):
        fetch(address, "/readyz")


def test_the_probe_port_is_not_ready_before_a_worker_is(serve: Serve, tmp_path: Path) -> None:
    """A worker that is still loading serves nobody."""
    (tmp_path / "loading.py").write_text(LOADING)
    server = serve(
        "loading:app", ready=False, settings={**OFF, "probe_bind": "127.0.0.1:0"}, args=("-w", "1")
    )
    found = PORT.search(server.wait_line(PORT))
    assert found is not None
    address = parse_address(found[1])
    assert fetch(address, "/readyz").status == 503
    assert fetch(address, "/livez").status == 200
    (tmp_path / "go").touch()
    wait_status(server, "/readyz", 200, address)


# -- a restart ----


def test_a_restart_in_place_switches_it_off(serve: Serve) -> None:
    """`pkill gunicorn; sleep 2; GRACE_ENABLED=false gunicorn ...`: the old instance still has its
    delay. The new one waits for it, where plain gunicorn would give up after five seconds."""
    old = serve(kind="gthread", settings={"shutdown_delay": 60, "termination_period": 90})
    old.terminate()
    old.wait_line("shutdown_initiated")
    new = serve(kind="gthread", bind=f"127.0.0.1:{old.port}", settings=OFF)
    new.wait_line(f"arbiter {old.arbiter_pid}, which is shutting down, has 127.0.0.1:{old.port}")
    assert old.wait(20) == 0, old.output
    assert new.get("/readyz").status == 200
    new.wait_line("switched off")


@pytest.mark.parametrize("is_on", [True, False], ids=["on-to-off", "off-to-on"])
def test_an_upgrade_switches_it(is_on: bool, serve: Serve, tmp_path: Path) -> None:
    """The successor of SIGUSR2 reads the setting anew, and each of the two ends as it began."""
    file = tmp_path / "gunicorn.conf.py"
    file.write_text(f"{SHORT_FILE}grace_enabled = {is_on}\n")
    pidfile = tmp_path / "pid"
    server = serve(kind="gthread", args=("--pid", str(pidfile)), script=True)
    file.write_text(f"{SHORT_FILE}grace_enabled = {not is_on}\n")
    server.signal(signal.SIGUSR2)
    second = tmp_path / "pid.2"
    new = int(
        server.wait_for(
            lambda: second.exists() and second.read_text().strip(), "the second pid file"
        )
    )
    server.wait_for(lambda: len(procfs.children(new)) == 2, "the new workers")
    server.signal(signal.SIGTERM)
    assert server.wait(20) == 0, server.output
    assert "shutdown_initiated" not in server.output
    wait_status(server, "/readyz", 200)
    os.kill(new, signal.SIGTERM)
    server.wait_for(lambda: not server.processes(), "the end")
    assert ("shutdown_initiated" in server.output) is not is_on
    assert server.output.count(LINE) == 1
