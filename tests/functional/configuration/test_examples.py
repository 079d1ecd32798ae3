"""What the examples and the README show is run as it stands."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.paths import EXAMPLES, ROOT
from support.servers import Serve, Server, needs_curl

pytestmark = pytest.mark.once

QUICK_END = {"shutdown_delay": 0.3, "min_delay": 0, "extend_delay": "false"}


@pytest.mark.parametrize(
    "config",
    [("-c", "python:gunicorn_grace.conf"), ("-c", "gunicorn_grace.conf")],
    ids=["module", "file"],
)
def test_the_example_runs_both_ways(config: tuple[str, ...], serve: Serve) -> None:
    """The example application under either `-c`: its routes, the blueprint's, the flip, and exit
    code 0."""
    server = serve(
        "app:app", cwd=EXAMPLES, config=config, settings={**QUICK_END, "shutdown_delay": 60}
    )
    assert server.get("/").body == b"hello\n"
    assert server.get("/readyz").body == b"ok\n"
    server.signal(signal.SIGTERM)
    server.wait_line("shutdown_initiated")
    assert server.get("/readyz").status == 503
    assert {server.get(path).status for path in ("/", "/healthz", "/livez", "/startupz")} == {200}
    assert server.get("/stream").body == b"tick 0\n", (
        "the stream ends itself once the shutdown has begun"
    )
    server.end_delay()
    assert server.wait(20) == 0, server.output


@pytest.mark.parametrize("worker_class", ["asgi", "uvicorn_worker.UvicornWorker"])
def test_the_example_for_fastapi_needs_no_code(worker_class: str, serve: Serve) -> None:
    """Its routes, the probes that it does not have, the flip, and the stream that ends."""
    pytest.importorskip("fastapi")
    args = ("-k", worker_class)
    settings = {**QUICK_END, "shutdown_delay": 60}
    server = serve("main:app", cwd=EXAMPLES / "asgi", args=args, settings=settings)
    assert server.get("/").body == b"hello\n"
    assert server.get("/readyz").body == b"ok\n"
    server.signal(signal.SIGTERM)
    server.wait_line("shutdown_initiated")
    assert server.get("/readyz").status == 503
    assert server.get("/healthz").status == 200
    assert server.get("/stream").body == b"", "a stream that begins now has ended"
    server.end_delay()
    assert server.wait(20) == 0, server.output
    assert "0 cut off" in server.summary()


def test_the_file_that_was_there_before_keeps_its_hooks(serve: Serve) -> None:
    """An existing gunicorn.conf.py with hooks of its own, found by gunicorn itself, plus two
    lines."""
    server = serve(
        "app:app",
        cwd=EXAMPLES / "existing",
        config=(),
        settings=QUICK_END,
        env={"BIND": "127.0.0.1:0"},
    )
    assert server.get("/").body == b"hello\n"
    assert server.get("/readyz").status == 200
    server.signal(signal.SIGTERM)
    assert server.wait(20) == 0, server.output
    for said in ("ready for connections", "worker 1 forked", "GET / -> 200 OK", "bye"):
        assert f"existing: {said}" in server.output
    assert "shutdown_initiated" in server.output


EMBEDDED = EXAMPLES / "embedded"
NAMED = {"GUNICORN_CMD_ARGS": "-c python:gunicorn_grace.conf"}
RUN = (str(Path(sys.executable).with_name("gunicorn-grace")), "run", "--")

PROGRAMS: dict[str, dict[str, Any]] = {
    "program": {"program": ("program.py",)},
    "options --config": {"program": ("options.py", "--config", "python:gunicorn_grace.conf")},
    "options GUNICORN_CMD_ARGS": {"program": ("options.py",), "env": NAMED},
    "options run": {"program": ("options.py",), "executable_prefix": RUN},
    "launcher GUNICORN_CMD_ARGS": {"program": ("launcher.py",), "env": NAMED},
}


def embedded(serve: Serve, way: str, **settings: Any) -> Server:
    """A program of the examples, started."""
    name, *words = PROGRAMS[way]["program"]
    options = {**PROGRAMS[way], "program": (str(EMBEDDED / name), *words)}
    return serve(cwd=EMBEDDED, config=(), settings=settings, **options)


@pytest.mark.parametrize("way", PROGRAMS)
def test_a_program_that_starts_gunicorn_gets_it(way: str, serve: Serve) -> None:
    """Each of the commands in the examples: its settings count, the check of its application too,
    readiness turns red for the delay, and SIGHUP keeps all of it."""
    server = embedded(serve, way, **QUICK_END)
    assert server.get("/").body == b"hello\n"
    assert server.get("/readyz/folder").body == b"ok\n"
    server.wait_line("lame duck 0.3 s")
    seen = server.mark()
    server.signal(signal.SIGHUP)
    server.wait_line("Booting worker", after=seen)
    server.wait_ready()
    server.terminate()
    assert server.wait(20) == 0, server.output
    server.wait_line("shutdown_initiated by SIGTERM: not ready for 0.3 s")
    assert "not switched on" not in server.output


def test_a_launcher_passes_the_option_on(serve: Serve) -> None:
    """What stands behind the two dashes is gunicorn's, and its last --bind wins."""
    server = serve(
        program=(
            str(EMBEDDED / "launcher.py"),
            "--",
            "--config",
            "python:gunicorn_grace.conf",
            "--bind",
        ),
        cwd=EMBEDDED,
        config=(),
        settings=QUICK_END,
    )
    server.wait_line("lame duck 0.3 s")
    server.terminate()
    assert server.wait(20) == 0, server.output
    server.wait_line("shutdown_initiated")


def test_a_programs_hooks_and_settings_count(serve: Serve) -> None:
    """Those that it sets before `install` and those after."""
    server = embedded(serve, "program")
    server.wait_line("lame duck 15 s, then up to 60 s to drain, gone by 75 s of 90 s")
    assert server.get("/").status == 200
    server.signal(signal.SIGINT)
    assert server.wait(20) == 0, server.output
    for said in ("ready for connections", "GET /", "bye"):
        assert f"program: {said}" in server.output


def documents(name: str) -> dict[str, Any]:
    """The documents of a manifest, by kind."""
    return {
        part["kind"]: part
        for part in yaml.safe_load_all((EXAMPLES / "kubernetes" / name).read_text())
    }


@pytest.mark.parametrize("name", ["deployment-curl.yaml", "deployment-prestop.yaml"])
def test_the_manifests_say_what_the_plugin_needs(name: str) -> None:
    """Probes, period and service fit each other and the settings' defaults."""
    parts = documents(name)
    pod = parts["Deployment"]["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert pod["terminationGracePeriodSeconds"] == 90
    assert {"name": "GRACE_TERMINATION_PERIOD", "value": "90"} in container["env"]
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert (
        container["readinessProbe"]["periodSeconds"],
        container["readinessProbe"]["failureThreshold"],
    ) == (5, 1)
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert container["livenessProbe"]["periodSeconds"] == 10
    assert parts["Service"]["spec"]["ports"][0]["targetPort"] == "http"
    assert (
        parts["Service"]["spec"]["selector"].items()
        <= parts["Deployment"]["spec"]["template"]["metadata"]["labels"].items()
    )


@needs_curl
@pytest.mark.parametrize("name", ["deployment-curl.yaml", "deployment-prestop.yaml"])
def test_the_manifests_hooks_work(name: str, serve: Serve) -> None:
    """The preStop command of the manifest, run as it stands but for the port, turns readiness red
    and exits with 0."""
    server = serve("app:app", cwd=EXAMPLES, settings={**QUICK_END, "shutdown_delay": 1})
    hook = documents(name)["Deployment"]["spec"]["template"]["spec"]["containers"][0]["lifecycle"][
        "preStop"
    ]
    command = [
        part.replace("localhost:8080", f"127.0.0.1:{server.port}")
        for part in hook["exec"]["command"]
    ]
    if command[0] == "gunicorn-grace":
        # In a container there is one instance; here, others run beside.
        command += [
            "--pid",
            str(server.pid),
        ]
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    done = subprocess.run(
        command, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    assert server.get("/readyz").status == 503


def readme_commands() -> list[str]:
    """The commands of the README's two one-line blocks."""
    return re.findall(r"^python3 -m venv .*$", (ROOT / "README.md").read_text(), re.MULTILINE)


def test_the_readme_has_two_one_line_commands_and_ci_runs_the_second() -> None:
    """One command rehearses the example, one passes the tests; .ci/run takes the second from the
    README itself."""
    main, tests = readme_commands()
    assert main.endswith(
        "gunicorn-grace rehearse app:app --config gunicorn_grace.conf --delay 5 --period 90)"
    )
    assert tests.endswith("/pytest")
    assert "README.md" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.long
def test_the_readmes_main_job(tmp_path: Path) -> None:
    """The rehearsal of the README: the example app, plain beside plugin; plain loses requests, the
    plugin none."""
    command = re.search(r"gunicorn-grace (rehearse [^)]*)\)", readme_commands()[0])
    assert command is not None
    report = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, "-m", "gunicorn_grace.cli", *command[1].split(), "--json", str(report)],
        cwd=EXAMPLES,
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    plain, grace = json.loads(report.read_text())["results"]
    assert plain["lost"] > 0
    assert grace["lost"] == 0
    assert grace["requests"] > 500
