"""Who plays in a rehearsal, and which of gunicorn's options it leaves to the user."""

from __future__ import annotations

from pathlib import Path

import pytest

from gunicorn_grace.rehearsal.command.contenders import (
    contender_named,
    expect_plugin,
    refuse_clashes,
)
from gunicorn_grace.rehearsal.errors import PlanFailed
from gunicorn_grace.rehearsal.plan import GRACE, PLAIN
from support.rehearsed import plain, result

pytestmark = pytest.mark.once


def test_the_contenders_read_the_same_file(tmp_path: Path) -> None:
    """The user's configuration goes to all; where plain gunicorn plays, through the module that
    silences the plugin."""
    file = tmp_path / "mine.py"
    file.touch()
    assert contender_named("grace", str(file)).args == ("-c", str(file))
    for name in ("plain", "sleep", "sleep:5"):
        made = contender_named(name, str(file))
        assert made.args == PLAIN.args
        assert made.env == {"REHEARSAL_CONFIG": str(file)}
    assert contender_named("sleep").pre_stop == ("sleep", "15")
    assert contender_named("sleep:2.5").name == "preStop: sleep 2.5"
    assert (contender_named("plain"), contender_named("grace")) == (PLAIN, GRACE)


@pytest.mark.parametrize("name", ["uwsgi", "plain:3", "sleep:long", "sleep:-1", ""])
def test_a_contender_that_does_not_exist_is_refused(name: str) -> None:
    """With the names that there are."""
    with pytest.raises(PlanFailed, match=r"sleep:SECONDS|sleep:15"):
        contender_named(name)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (
            ["-b", ":8000"],
            "--bind cannot be given to the gunicorn of a rehearsal: each instance listens on its "
            "own free port",
        ),
        (["--bin", ":8000"], "--bind cannot"),
        (["--pid", "x"], "--pid cannot"),
        (["-c", "x.py"], "use --config"),
        (["--daemon"], "--daemon cannot"),
        (["--check-config"], "would end at once"),
        (["--version"], "would end at once with -w 2 --version"),
        (
            ["--workers"],
            "gunicorn does not accept -w 2 --workers: argument -w/--workers: expected one argument",
        ),
    ],
)
def test_arguments_that_a_rehearsal_needs_for_itself_are_refused(
    args: list[str], said: str
) -> None:
    """Also abbreviated, as gunicorn's own parser takes them; one line says why."""
    with pytest.raises(PlanFailed) as caught:
        refuse_clashes(["-w", "2", *args])
    assert said in caught.value.line
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "args", [[], ["-w", "3", "-k", "gthread"], ["--bogus"], ["--timeout", "5"]]
)
def test_all_other_arguments_are_left_to_gunicorn(args: list[str]) -> None:
    """Unknown ones among them: gunicorn says that better."""
    refuse_clashes(args)


def test_a_result_in_the_plugins_name_must_be_the_plugins() -> None:
    """A run in which it never spoke is none of it."""
    expect_plugin(result())
    expect_plugin(plain(1.0))
    with pytest.raises(PlanFailed, match=r"mine\.py"):
        expect_plugin(result(events=()), "mine.py")
