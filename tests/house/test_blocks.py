"""What the pages show can be used: each block of code is parsed by what it is for.

The tutorial is run as a whole (``tests/long/test_tutorial.py``), and what an application can do is
executed (``tests/unit/test_testing.py``). Here are all blocks of all pages, and of those beside the README.
"""

from __future__ import annotations

import ast
import configparser
import importlib
import json
import re
import shlex
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from gunicorn.config import Config

import gunicorn_grace.conf
from gunicorn_grace import cli
from gunicorn_grace.shared.platforms import PLATFORMS
from support.paths import DOCS, ROOT

pytestmark = pytest.mark.once

PAGES = {path.relative_to(ROOT).as_posix(): path for path in [*DOCS.rglob("*.md")]}
PAGES |= {name: ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")}
BLOCK = re.compile(r"^(?P<indent> *)```(?P<kind>\w*)\n(?P<body>.*?)^ *```$", re.M | re.S)
KINDS = {
    *("python", "sh", "yaml", "json", "toml", "ini", "dockerfile"),
    *("text", "log", "mermaid"),
}
"""What a block may be. Text is what is printed, or a language that nobody parses here."""

BETWEEN = {";", "&&", "||", "|", "&", "(", ")"}
"""What stands between two commands of a shell."""


def blocks(kind: str) -> list[Any]:
    """Every block of this kind, with its page and its line as a name."""
    found = []
    for name, path in sorted(PAGES.items()):
        text = path.read_text(encoding="utf-8")
        for block in BLOCK.finditer(text):
            if block["kind"] == kind:
                line = text.count("\n", 0, block.start()) + 1
                found.append(pytest.param(textwrap.dedent(block["body"]), id=f"{name}:{line}"))
    assert found, kind
    return found


def test_every_block_says_what_it_is() -> None:
    """A block without a name would be looked at by nobody."""
    strange = {
        (name, block["kind"])
        for name, path in PAGES.items()
        for block in BLOCK.finditer(path.read_text(encoding="utf-8"))
        if block["kind"] not in KINDS
    }
    assert strange == set()


@pytest.mark.parametrize("body", blocks("python"))
def test_python_compiles_and_imports_what_there_is(body: str) -> None:
    """Names of the package are those that it has."""
    for node in ast.walk(ast.parse(body)):
        if isinstance(node, ast.Import):
            for name in node.names:
                if name.name.startswith("gunicorn_grace"):
                    importlib.import_module(name.name)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gunicorn_grace"):
            module = importlib.import_module(node.module or "")
            assert [
                x.name for x in node.names if x.name != "*" and not hasattr(module, x.name)
            ] == []
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "gunicorn_grace"
        ):
            assert hasattr(gunicorn_grace, node.attr) or importlib.import_module(
                f"gunicorn_grace.{node.attr}"
            )


def commands(body: str) -> Iterator[list[str]]:
    """The simple commands of a piece of shell, without their assignments and redirections."""
    for line in body.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word in BETWEEN:
                while words and re.match(r"\w+=", words[0]):
                    words.pop(0)
                if words:
                    yield words
                words = []
            else:
                words.append(word)


def accept(words: list[str]) -> None:
    """Have a command line parsed by the program that it is for."""
    program = words[0].rpartition("/")[2]
    if program == "gunicorn-grace" and len(words) > 1 and not words[1].startswith("-"):
        command = cli.cli.commands[words[1]]
        command.make_parser(click.Context(command)).parse_args(words[2:])
    elif program == "gunicorn":
        arguments = Config().parser().parse_args(words[1:])
        assert len(arguments.args) == 1 or arguments.version, words


@pytest.mark.parametrize("body", blocks("sh"))
def test_shell_parses_and_commands_are_accepted(body: str) -> None:
    """bash parses it; gunicorn and gunicorn-grace know each option that they are given."""
    subprocess.run(["bash", "-n", "-c", body], check=True, timeout=10)
    for words in commands(body):
        accept(words)


def test_a_wrong_option_is_noticed() -> None:
    """The parsers refuse what they do not know."""
    for line in ("gunicorn-grace check --sarif x", "X=1 gunicorn --bnd x app:app"):
        (words,) = commands(line)
        with pytest.raises((click.UsageError, SystemExit)):
            accept(words)


def lists(value: Any) -> Iterator[list[Any]]:
    """Every list within a value."""
    if isinstance(value, list):
        yield value
    for each in (
        value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    ):
        yield from lists(each)


@pytest.mark.parametrize("body", blocks("yaml"))
def test_yaml_parses_and_manifests_pass(body: str, tmp_path: Path) -> None:
    """Commands in it are accepted; what is a whole manifest has no error for ``check``."""
    documents = list(yaml.safe_load_all(body))
    for found in lists(documents):
        if found and all(isinstance(word, str) for word in found):
            accept(found)
            if found[:2] == ["sh", "-c"]:
                subprocess.run(["bash", "-n", "-c", found[2]], check=True, timeout=10)
    if any(isinstance(each, dict) and "kind" in each for each in documents):
        path = tmp_path / "manifest.yaml"
        path.write_text(body)
        assert cli.main(["check", str(path)]) == 0


@pytest.mark.parametrize("body", blocks("json"))
def test_json_parses(body: str) -> None:
    """Commands in it are accepted as well."""
    for found in lists(json.loads(body)):
        if found and isinstance(found[0], str):
            accept(found)


@pytest.mark.parametrize("body", blocks("toml"))
def test_toml_parses(body: str) -> None:
    """The tables and values are TOML's."""
    pytest.importorskip("tomllib").loads(body)


@pytest.mark.parametrize("body", blocks("ini"))
def test_units_parse_and_their_commands_are_accepted(body: str) -> None:
    """Units of systemd, and sections of supervisord."""
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.read_string(body)
    for section in parser.sections():
        for key in ("execstart", "command"):
            if key in parser[section]:
                accept(shlex.split(parser[section][key]))


@pytest.mark.parametrize("body", blocks("dockerfile"))
def test_images_start_gunicorn_as_their_first_process(body: str) -> None:
    """The command is a list, which no shell runs."""
    (command,) = re.findall(r"^CMD (.*)$", body, re.M)
    accept(json.loads(command))


@pytest.mark.parametrize("page", sorted(PAGES))
def test_commands_named_in_the_text_exist(page: str) -> None:
    """No sentence sends a reader to a command that is not there."""
    text = BLOCK.sub("", PAGES[page].read_text(encoding="utf-8"))
    named = set(re.findall(r"`(?:docker exec \w+ )?gunicorn-grace ([a-z][a-z-]*)", text))
    # The last two are what is printed: "gunicorn-grace lost none", "gunicorn-grace is switched off".
    assert named <= {*cli.cli.commands, "lost", "is"}


@pytest.mark.parametrize("platform", PLATFORMS, ids=lambda platform: platform.name)
def test_each_platform_has_a_page_with_its_period_and_its_sign(platform: Any) -> None:
    """They are those of the code's table, by which ``auto`` goes."""
    name = platform.name.lower().replace(" ", "-")
    page = "systemd" if name == "supervisord" else name
    text = (DOCS / "how-to" / f"{page}.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| period \| (.*) \|$\n\| signal \| (.*) \|$\n\| known .* \| (.*) \|$", text, re.M
    )
    (period, signal, _) = next(row for row in rows if f"`{platform.sign}`" in row[2])
    assert period.startswith(f"{platform.period:g} s")
    assert f"`{platform.knob}`" in period if platform.knob else "cannot be changed" in period
    assert signal.startswith("SIGINT" if platform.signal else "SIGTERM")
