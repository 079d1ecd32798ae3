"""docs/how-to/operate.md explains every line of the log and every alert, and no other."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import gunicorn_grace
from gunicorn_grace import cli
from gunicorn_grace.arbiter.report import Report
from support.paths import DOCS
from support.promql import MONITORING, rules

pytestmark = pytest.mark.once

PACKAGE = Path(gunicorn_grace.__file__).parent
PAGE = (DOCS / "how-to" / "operate.md").read_text(encoding="utf-8")
BEGIN = "gunicorn-grace: "

OF_COMMANDS = {"operate", "rehearsal"}
"""Rooms whose lines are not in gunicorn's log."""

BEHIND = {
    "environment variables that are no settings are ignored: ...": "no settings are ignored: ",
    "raw_env (--env) comes too late for ...": "raw_env (--env) comes too late for ",
    "lame duck ...": "lame duck {",
    "trigger obeyed, from ...": "trigger obeyed, from ",
    "trigger refused, from ...": "trigger refused, from ",
    "?down=true does nothing: ...": "?down=true does nothing: ",
    "StatsD cannot be told: ...": "StatsD cannot be told",
    "NOTIFY_SOCKET cannot be told: ...": "NOTIFY_SOCKET cannot be told",
    "grace_report ... cannot be written: ...": " cannot be written",
}
"""Lines that a mere ``%s`` stands for in the log's format, and what the code has of them."""

MERE = {"...", "...: ..."}
"""Formats that say nothing by themselves."""


def formats() -> Iterator[str]:
    """The format of every line in the log, with ``...`` for what differs."""
    for path in PACKAGE.rglob("*.py"):
        if OF_COMMANDS & set(path.relative_to(PACKAGE).parts):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docstrings = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        joined = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
        parts = {id(part) for node in joined for part in ast.walk(node)}
        for node in joined:
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else "..." for part in node.values
            )
        for node in ast.walk(tree):
            is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
            if is_text and id(node) not in docstrings | parts:
                text = node.value.replace("%%", "%")
                yield re.sub(r"%(?:\.\d)?[sdrfg]", "...", text)


def logged() -> set[str]:
    """Those of the plugin's lines, without what all of them begin with."""
    return {each.removeprefix(BEGIN) for each in formats() if each.startswith(BEGIN)}


def cells(part: str) -> list[str]:
    """What the first columns of a part's tables name."""
    return re.findall(r"^\| `([^`]+)`", part, re.M)


def explained() -> list[str]:
    """The lines that the page explains."""
    return cells(PAGE[PAGE.index("## What each line of the log means") :])


def fits(cell: str, line: str) -> bool:
    """Whether the page means this line: a cell may leave out the line's end."""
    return line == cell or (cell.endswith("...") and line.startswith(cell.removesuffix("...")))


def test_every_line_of_the_log_is_explained() -> None:
    """Each format of the code has its row, once."""
    lines = logged() - MERE
    assert len(lines) > 60
    rows = {line: [cell for cell in explained() if fits(cell, line)] for line in lines}
    # A line of one word or two may also fit a row that begins with "...".
    assert [line for line, found in rows.items() if not found] == []
    assert len(explained()) == len(set(explained()))


def test_every_line_that_is_explained_is_one_of_the_code() -> None:
    """No row is about a line that nobody writes."""
    lines, source = logged(), [*formats()]
    for cell in explained():
        if cell in BEHIND:
            assert any(BEHIND[cell].replace("{", "...") in each for each in source), cell
        else:
            assert any(fits(cell, line) for line in lines), cell


def test_every_alert_has_its_remedy() -> None:
    """The table has those of the examples, and no other."""
    part = PAGE.partition("## What each alert asks for")[2].partition("\n## ")[0]
    named = re.findall(r"`(GunicornGrace\w+)`", "".join(re.findall(r"^\|[^|]*", part, re.M)))
    loki = yaml.safe_load((MONITORING / "loki-rules.yaml").read_text(encoding="utf-8"))
    of_the_log = [rule["alert"] for group in loki["groups"] for rule in group["rules"]]
    alerts = [rule["alert"] for rule in rules() if "alert" in rule] + of_the_log
    assert sorted(named) == sorted(alerts)


def test_the_report_that_is_shown_has_the_keys_of_a_report() -> None:
    """All of them, in their order."""
    (shown,) = re.findall(r"^```json\n(.*?)^```", PAGE, re.M | re.S)
    assert list(json.loads(shown)) == [field.name for field in dataclasses.fields(Report)]


def test_the_commands_in_use_exist() -> None:
    """Each that a shell would run."""
    used = set(re.findall(r"(?:^\$ |-- |\| |`)gunicorn-grace ([a-z-]+)", PAGE, re.M))
    assert {"status", "drain", "undrain", "end-delay", "reports"} <= used <= set(cli.cli.commands)
