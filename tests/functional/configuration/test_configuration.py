"""The ways in, and what gunicorn says to settings, good and bad, asked on its real command line."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support.paths import APPS
from support.servers import Serve

IMPORT_FIRST = "from gunicorn_grace.conf import *\n"
INSTALL_LAST = "import gunicorn_grace\ngunicorn_grace.install(globals())\n"

HOOKS = """
def when_ready(server):
    server.log.info("user: when_ready")
def on_starting(server):
    server.log.info("user: on_starting")
def post_fork(server, worker):
    server.log.info("user: post_fork")
def post_worker_init(worker):
    worker.log.info("user: post_worker_init")
def pre_request(worker, req):
    worker.log.info("user: pre_request %s", req.path)
def post_request(worker, req, environ):
    worker.log.info("user: post_request %s", req.path)
def child_exit(server, worker):
    pass
def on_exit(server):
    server.log.info("user: on_exit")
"""


def gunicorn(
    *args: str, cwd: Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run gunicorn to its end."""
    return subprocess.run(
        [sys.executable, "-m", "gunicorn", *args, "service:app"],
        cwd=cwd,
        env={**__import__("os").environ, "PYTHONPATH": str(APPS), **(env or {})},
        capture_output=True,
        text=True,
        timeout=60,
    )


def ways_in(body: str, tmp_path: Path) -> dict[str, tuple[str, ...]]:
    """The three ways to configure the same thing, as arguments for gunicorn."""
    return {
        "module": _write(tmp_path / "gunicorn.conf.py", body, ("-c", "python:gunicorn_grace.conf")),
        "import": _write(tmp_path / "first.py", IMPORT_FIRST + body, ("-c", "first.py")),
        "install": _write(tmp_path / "last.py", body + INSTALL_LAST, ("-c", "last.py")),
    }


def _write(path: Path, text: str, args: tuple[str, ...]) -> tuple[str, ...]:
    path.write_text(text)
    return args


WAYS = ("module", "import", "install")


@pytest.mark.parametrize("way", WAYS)
def test_print_config_lists_the_settings_of_the_file(way: str, tmp_path: Path) -> None:
    """`--print-config` shows ours beside gunicorn's: the file's value, and the default of what it
    does not name."""
    args = ways_in("grace_shutdown_delay = 7\nworkers = 3\n", tmp_path)[way]
    shown = gunicorn(*args, "--print-config", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    values = dict(line.split("=", 1) for line in shown.stdout.splitlines() if "=" in line)
    values = {name.strip(): value.strip() for name, value in values.items()}
    assert values["grace_shutdown_delay"] == "7"
    assert values["grace_extend_delay"] == "True"
    assert values["workers"] == "3"


@pytest.mark.parametrize("way", WAYS)
def test_the_environment_wins_over_the_file(way: str, tmp_path: Path) -> None:
    """A Deployment sets GRACE_SHUTDOWN_DELAY; the image's configuration file does not change it."""
    args = ways_in("grace_shutdown_delay = 7\n", tmp_path)[way]
    shown = gunicorn(*args, "--print-config", cwd=tmp_path, env={"GRACE_SHUTDOWN_DELAY": "4.5"})
    assert "= 4.5" in next(
        line for line in shown.stdout.splitlines() if line.startswith("grace_shutdown_delay")
    )


@pytest.mark.long(but="module")
@pytest.mark.parametrize("way", WAYS)
def test_check_config_says_what_does_not_fit(way: str, tmp_path: Path) -> None:
    """`--check-config` warns with the sum that the boot would warn with, and says nothing where it
    fits. The command line counts as well: it is read after the file."""
    args = ways_in("grace_termination_period = 30\ngrace_shutdown_delay = 7\n", tmp_path)[way]
    fits = gunicorn(*args, "--check-config", cwd=tmp_path)
    assert (fits.returncode, fits.stdout, fits.stderr) == (0, "", "")
    cut = gunicorn(*args, "--check-config", "--graceful-timeout", "25", cwd=tmp_path)
    assert (cut.returncode, cut.stdout) == (0, "")
    assert cut.stderr.startswith(
        "Warning: gunicorn-grace: grace_shutdown_delay 7 + graceful_timeout 25 + "
        "grace_exit_margin 2 = 34 s > grace_termination_period 30 s"
    )
    assert cut.stderr.count("\n") == 1


@pytest.mark.ends
def test_a_misspelled_variable_is_told(tmp_path: Path, serve: Serve) -> None:
    """At boot and by ``--check-config``, in one line, with the nearest name. Another program's
    variable gets no more than that, and no error. What gunicorn itself sets comes too late to be a
    setting, and that is told as well."""
    misspelled = {"GRACE_SHUTDOWN_DELY": "3", "GRACE_PERIOD_DAYS": "30"}
    late = ("--env", "GRACE_MIN_DELAY=3", "--env", "GRACE_OVERLAI=false")
    args = ways_in("grace_termination_period = 30\n", tmp_path)["module"]
    lines = [
        "environment variables that are no settings are ignored: "
        "GRACE_OVERLAI (did you mean GRACE_OVERLAY?), GRACE_PERIOD_DAYS, "
        "GRACE_SHUTDOWN_DELY (did you mean GRACE_SHUTDOWN_DELAY?)",
        "raw_env (--env) comes too late for GRACE_MIN_DELAY, because gunicorn reads the settings "
        "before it: set grace_min_delay in the configuration file",
    ]
    checked = gunicorn(*args, *late, "--check-config", cwd=tmp_path, env=misspelled)
    assert (checked.returncode, checked.stdout) == (0, "")
    assert checked.stderr.splitlines() == [f"Warning: gunicorn-grace: {line}" for line in lines]
    server = serve(kind="sync", args=late, env=misspelled)
    told = [line for line in server.output.splitlines() if "_env" in line or "ignored" in line]
    assert [line.partition("[WARNING] gunicorn-grace: ")[2] for line in told] == lines


@pytest.mark.once
def test_check_config_says_where_the_report_cannot_be_written(tmp_path: Path) -> None:
    """A warning: the server serves without it. The pod's termination message is no fault outside of
    the pod, and nothing is created."""
    args = ways_in("grace_termination_period = 60\n", tmp_path)["module"]
    missing = tmp_path / "reports" / "web.json"
    told = gunicorn(*args, "--check-config", cwd=tmp_path, env={"GRACE_REPORT": str(missing)})
    assert (told.returncode, told.stdout) == (0, "")
    assert told.stderr.startswith(
        f"Warning: gunicorn-grace: grace_report {missing} cannot be written here: No such file"
    )
    assert told.stderr.count("\n") == 1
    missing.parent.mkdir()
    for path in (str(missing), "/dev/termination-log"):
        fine = gunicorn(*args, "--check-config", cwd=tmp_path, env={"GRACE_REPORT": path})
        assert (fine.returncode, fine.stdout, fine.stderr) == (0, "", "")
    assert list(missing.parent.iterdir()) == []


@pytest.mark.long(but="module")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("grace_shutdown_delay = -3", ("grace_shutdown_delay", "-3", "0 or more")),
        ("grace_shutdown_delay = 'soon'", ("grace_shutdown_delay", "'soon'", "number of seconds")),
        ("grace_shutdown_dely = 3", ("grace_shutdown_dely", "did you mean grace_shutdown_delay?")),
        ("grace_readiness_path = 'ready'", ("grace_readiness_path", "'ready'", '"/ready"')),
        ("grace_trigger = 'remote'", ("grace_trigger", "'remote'", "'token'")),
        ("grace_quiet_period = 'sometimes'", ("grace_quiet_period", "'sometimes'", '"auto"')),
        ("grace_trigger = 'token'", ("grace_trigger_token is not set", "file:")),
    ],
)
def test_gunicorn_refuses_to_start_with_one_line(
    way: str, line: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    """A setting that is wrong stops gunicorn before it listens, with one line that names it, its
    value and the fix."""
    done = gunicorn(*ways_in(line + "\n", tmp_path)[way], "-b", "127.0.0.1:0", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "Listening" not in done.stderr
    errors = [text for text in done.stderr.splitlines() if text.startswith("Error: ")]
    assert len(errors) == 1, done.stderr
    assert all(word in errors[0] for word in words), errors[0]


@pytest.mark.long(but="module")
@pytest.mark.parametrize("way", WAYS)
def test_a_bad_environment_is_refused_as_well(way: str, tmp_path: Path) -> None:
    """The line names the environment variable, because that is where the value is."""
    done = gunicorn(*ways_in("", tmp_path)[way], cwd=tmp_path, env={"GRACE_MIN_DELAY": "5s"})
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "Error: GRACE_MIN_DELAY = '5s' is not a number" in done.stderr


@pytest.mark.parametrize("way", WAYS)
def test_users_hooks_are_chained(way: str, serve: Serve, tmp_path: Path) -> None:
    """Every hook of the user's runs beside ours, whichever way and order they were defined in."""
    settings = {"shutdown_delay": 0.2, "min_delay": 0, "extend_delay": "false"}
    server = serve(kind="gthread", config=ways_in(HOOKS, tmp_path)[way], settings=settings)
    assert server.get("/").status == 200
    server.signal(signal.SIGTERM)
    assert server.wait(20) == 0, server.output
    for hook in (
        "when_ready",
        "on_starting",
        "post_fork",
        "post_worker_init",
        "pre_request /",
        "post_request /",
        "on_exit",
    ):
        assert f"user: {hook}" in server.output, server.output
    assert "shutdown_initiated" in server.output


def test_a_hook_that_a_worker_sets_takes_the_place_of_the_users(
    serve: Serve, tmp_path: Path
) -> None:
    """Set in post_worker_init, when ours are already where gunicorn looks first: it is called, the
    one before is not, and requests go on being counted."""
    late = """
def post_worker_init(worker):
    worker.cfg.set("pre_request", lambda worker, req: worker.log.info("late: pre_request %s", req.path))
    worker.cfg.set("post_request", lambda worker, req: worker.log.info("late: post_request %s", req.path))
"""
    config = ways_in(HOOKS + late, tmp_path)["install"]
    server = serve(config=config, args=("-w", "1"), ready=False)
    server.wait_booted(1)
    assert server.get("/").status == 200
    server.wait_line("late: post_request /")
    assert "late: pre_request /" in server.output
    assert "user: pre_request" not in server.output
    assert "user: post_request" not in server.output
    (record,) = server.memory.records()
    assert (record.requests, record.in_flight) == (1, 0)


@pytest.mark.parametrize("way", WAYS)
def test_sighup_reads_the_users_file_again(way: str, serve: Serve, tmp_path: Path) -> None:
    """After SIGHUP the new delay counts, and the hooks are still chained, ours and the user's."""
    args = ways_in("grace_shutdown_delay = 11\n" + HOOKS, tmp_path)[way]
    server = serve(kind="gthread", config=args)
    server.wait_line("lame duck 11 s")
    ways_in(
        "grace_shutdown_delay = 0.25\ngrace_extend_delay = False\ngrace_min_delay = 0\n" + HOOKS,
        tmp_path,
    )
    server.signal(signal.SIGHUP)
    server.wait_line("lame duck 0.25 s")
    server.wait_ready()
    server.signal(signal.SIGTERM)
    assert server.wait(20) == 0, server.output
    assert "not ready for 0.25 s" in server.output
    assert "user: on_exit" in server.output


@pytest.mark.long(but="grace_shutdown_delay = -1\n-install")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("body", ["grace_shutdown_delay = -1\n", "this is no python\n"])
def test_a_broken_file_at_sighup_leaves_the_service_running(
    way: str, body: str, serve: Serve, tmp_path: Path
) -> None:
    """gunicorn alone would end there and orphan its workers; with us the old configuration goes on,
    and is logged."""
    server = serve(kind="gthread", config=ways_in("", tmp_path)[way])
    ways_in(body, tmp_path)
    server.signal(signal.SIGHUP)
    server.wait_line("SIGHUP: the configuration cannot be loaded, and stays as it was")
    assert server.get("/readyz").status == 200
    ways_in(
        "grace_shutdown_delay = 0.25\ngrace_extend_delay = False\ngrace_min_delay = 0\n", tmp_path
    )
    server.signal(signal.SIGHUP)
    server.wait_line("lame duck 0.25 s")
    server.signal(signal.SIGTERM)
    assert server.wait(20) == 0, server.output


def test_the_environment_variable_of_gunicorn_is_a_way_in(serve: Serve) -> None:
    """GUNICORN_CMD_ARGS="-c python:gunicorn_grace.conf" does the same as the command line."""
    server = serve(
        kind="gthread", config=(), env={"GUNICORN_CMD_ARGS": "-c python:gunicorn_grace.conf"}
    )
    assert server.memory.cells[0]
    assert server.get("/readyz").status == 200


def test_the_configuration_module_has_no_name_of_a_setting() -> None:
    """gunicorn takes every global of a configuration module that is named like a setting: ours has
    none by accident."""
    from gunicorn.config import KNOWN_SETTINGS

    import gunicorn_grace.conf

    assert {setting.name for setting in KNOWN_SETTINGS} & set(vars(gunicorn_grace.conf)) == set()


def test_the_sum_is_told_at_boot(serve: Serve) -> None:
    """One line says what the timeline comes to; it is a warning when a graceful_timeout set by hand
    will be cut."""
    calm = serve(kind="gthread", settings={"shutdown_delay": 10, "termination_period": 30})
    assert "INFO" in calm.wait_line(
        "lame duck 10 s, then up to 18 s to drain, gone by 28 s of 30 s"
    )
    cut = serve(kind="gthread", settings={"shutdown_delay": 10}, args=("--graceful-timeout", "25"))
    line = cut.wait_line("draining will be cut to 18 s")
    assert "WARNING" in line
    assert "grace_shutdown_delay 10 + graceful_timeout 25 + grace_exit_margin 2 = 37 s" in line


def test_a_gunicorn_that_nobody_has_tested_is_named_at_boot(serve: Serve, tmp_path: Path) -> None:
    """One line for a newer minor version. The versions that are tested get none."""
    newer = "import gunicorn\ngunicorn.version_info, gunicorn.__version__ = (99, 1, 2), '99.1.2'\n"
    file = tmp_path / "newer.py"
    file.write_text(IMPORT_FIRST + newer)
    server = serve(config=("-c", str(file)))
    server.wait_booted(1)
    (line,) = [line for line in server.output.splitlines() if "is newer than" in line]
    assert "[WARNING] gunicorn-grace: gunicorn 99.1.2 is newer than 27.0, the newest that" in line
    assert "is newer than" not in serve().output
