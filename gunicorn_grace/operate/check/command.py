"""The command ``gunicorn-grace check``."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import NoReturn

import click

from ...shared.text import in_one_line
from ..routers import ROUTERS, Router

FOUND, COULD_NOT_RUN = 1, 2

_COLOURS: dict[str, dict[str, object]] = {
    "error": {"fg": "red", "bold": True},
    "warning": {"fg": "yellow"},
    "note": {"fg": "cyan"},
    "dim": {"dim": True},
}


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option(
    "--config",
    metavar="FILE",
    help="Your gunicorn configuration. It is read, not executed.",
)
@click.option(
    "--container",
    "containers",
    metavar="NAME",
    multiple=True,
    help="A container that runs gunicorn, although its command does not say so. May be repeated.",
)
@click.option(
    "--lag",
    "lags",
    metavar="ROUTER|[NAME=]SECONDS",
    multiple=True,
    help="A router that is known, such as `aws-alb`, or how long yours goes on sending to a pod "
    "that is going, such as `edge=25`. May be repeated.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json", "sarif"]),
    default="text",
    help="How the findings are written.",
)
@click.option("--strict", is_flag=True, help="Warnings count as errors.")
@click.option(
    "--fix",
    "is_fix",
    is_flag=True,
    help="Print a strategic-merge patch that mends what it can, and no findings.",
)
@click.pass_context
def check(
    context: click.Context,
    /,
    files: Sequence[str],
    config: str | None,
    containers: Sequence[str],
    lags: Sequence[str],
    form: str,
    strict: bool,
    is_fix: bool,
) -> None:
    """Judge Kubernetes manifests: do the seconds add up, and do the probes ask the right thing?

    FILE may be - for standard input. Nothing of a manifest is run.

    \b
    Examples:
    helm template . | gunicorn-grace check -
    kubectl kustomize . | gunicorn-grace check --config gunicorn.conf.py -

    Exit code: 0 if there are no errors; 1 if there are, or warnings with --strict; 2 if the command
    could not be run.
    """
    try:
        from . import output
        from .configuration import ConfigurationUnreadable, read_configuration
        from .documents import read_all
        from .judging import judge
        from .patch import fix
    except ModuleNotFoundError as error:
        if error.name != "yaml":
            raise
        _fail(context, "PyYAML is missing: pip install 'gunicorn-grace[manifest]'")
    known = [_lag(context, text) for text in lags]
    try:
        configuration = None if config is None else read_configuration(config)
    except ConfigurationUnreadable as error:
        _fail(context, str(error))
    found = read_all(files)
    verdict = judge(found, configuration, known, containers)
    if is_fix:
        fixed = fix(found, configuration, known, containers)
        click.echo(fixed.text, nl=False)
        for left in fixed.left:
            told = f"{left.workload}: {left.rule.id}: {left.what}; {left.fix}"
            click.echo(f"check: not fixed: {output.printable(told.removeprefix(': '))}", err=True)
        fails = any(f.severity.value == "error" or strict for f in fixed.left)
        context.exit(FOUND if fails else 0)
    if form == "json":
        click.echo(output.as_json(verdict, strict), nl=False)
    elif form == "sarif":
        click.echo(output.as_sarif(verdict), nl=False)
    else:
        told = output.text(verdict, paint)
        click.echo(told, nl=False, color=False if os.environ.get("NO_COLOR") else None)
    if verdict.fails(strict):
        context.exit(FOUND)


def paint(text: str, what: str) -> str:
    """Return a text with colours for a terminal. ``click.echo`` removes them if the output is not a
    terminal.

    :param text: the text.
    :param what: ``error``, ``warning``, ``note`` or ``dim``.
    """
    return click.style(text, **_COLOURS[what])  # type: ignore[arg-type]


def _lag(context: click.Context, text: str) -> Router:
    if text in ROUTERS:
        return ROUTERS[text]
    name, _, seconds = text.rpartition("=")
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", seconds, re.ASCII):
        _fail(
            context,
            f"--lag {text!r}: {seconds!r} is no number of seconds, such as edge=25, and no router "
            f"that is known: {', '.join(ROUTERS)}",
        )
    return Router(name, float(seconds), "the user gave the number", ())


def _fail(context: click.Context, line: str) -> NoReturn:
    click.echo(f"check: {in_one_line(line)}", err=True)
    context.exit(COULD_NOT_RUN)
