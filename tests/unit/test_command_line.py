"""What every command has in common: help, usage, completion, and one line for what is wrong."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from gunicorn_grace import __version__, cli

pytestmark = pytest.mark.once

COMMANDS = sorted(cli.cli.commands)


def run(
    *args: str, env: dict[str, str] | None = None, **more: object
) -> subprocess.CompletedProcess[str]:
    """``python -m gunicorn_grace`` with these arguments."""
    return subprocess.run(
        [sys.executable, "-m", "gunicorn_grace", *args],
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("option", ["-h", "--help"])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(
    capsys: pytest.CaptureFixture[str], command: str, option: str
) -> None:
    """``-h`` and ``--help`` are the same, fit 80 columns, and show how the command is called."""
    assert cli.main([command, option]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith(f"Usage: gunicorn-grace {command} ")
    assert "Example" in out
    example = " ".join(out.partition("Example")[2].replace(",", "").split())
    assert f"gunicorn-grace {command}" in example
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["statos"], "Error: No such command 'statos'"),
        (["status", "--pid", "x"], "Error: Invalid value for '--pid': 'x' is not a valid integer"),
        (["status", "--pid", "-1"], "Error: there is no process -1; the arbiters here: "),
        (["status", "more"], "Error: Got unexpected extra argument (more)"),
        (["reports"], "Error: Missing argument 'FILE...'"),
        (["reports", "a\nb"], r"Error: a\nb: No such file or directory"),
        (["check"], "Error: Missing argument 'FILE...'"),
        (["check", "-", "--format", "xml"], "Error: Invalid value for '--format': 'xml'"),
        (["check", "-", "--config", "a\x1b[1m"], r"check: --config a\x1b[1m: No such file"),
        (["manifest"], "Error: Missing option '--for'. Choose from: deployment, kustomize"),
        (["manifest", "--for", "k8s"], "Error: Invalid value for '--for': 'k8s' is not one of"),
        (["manifest", "--for", "ecs", "--config", "\udcff"], r"Error: --config \udcff: No such"),
        (["rehearse"], "Error: Missing argument 'APP'"),
        (["run"], "Error: Missing argument 'COMMAND...'"),
        (["drain", "--no-such"], "Error: No such option"),
    ],
    ids=lambda value: ascii(" ".join(value))[:40] if isinstance(value, list) else "",
)
def test_what_is_wrong_is_one_line(
    capsys: pytest.CaptureFixture[str], args: list[str], said: str
) -> None:
    """On standard error, without control characters, and with exit code 1 or 2."""
    assert cli.main(args) in (1, 2)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(said)
    assert err.count("\n") == 1
    assert err.rstrip("\n").isprintable()
    if err.startswith("Error: ") and "-1" not in args and "a\nb" not in args:
        assert "--help" in err or "--config" in args


def test_the_package_is_a_command() -> None:
    """``python -m gunicorn_grace``, under the name that people know."""
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"gunicorn-grace, version {__version__}\n")
    none = run()
    assert none.returncode in (0, 2)
    assert "Usage: gunicorn-grace " in none.stdout + none.stderr


@pytest.mark.parametrize(
    ("words", "completed"),
    [("gunicorn-grace ma", "manifest"), ("gunicorn-grace manifest --for cl", "cloudrun")],
)
def test_the_shell_completes_commands_and_their_choices(words: str, completed: str) -> None:
    """With the variable that the docs name."""
    script = run(env={"_GUNICORN_GRACE_COMPLETE": "bash_source"})
    assert "complete" in script.stdout
    asked = {
        "_GUNICORN_GRACE_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    assert run(env=asked).stdout == f"plain,{completed}\n"


def test_colours_are_for_terminals_that_want_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """None where the output is no terminal, and none where NO_COLOR is set."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    cli.main(["check", "/nowhere"])
    assert "\x1b" not in capsys.readouterr().out
    controller, terminal = os.openpty()
    shown = []
    for env in ({}, {"NO_COLOR": "1"}):
        subprocess.run(
            [sys.executable, "-m", "gunicorn_grace", "check", "/nowhere"],
            stdout=terminal,
            env={**os.environ, "TERM": "xterm", **env},
            timeout=60,
        )
        shown.append(os.read(controller, 10_000))
    os.close(terminal)
    os.close(controller)
    assert [b"\x1b[31m" in text for text in shown] == [True, False]
