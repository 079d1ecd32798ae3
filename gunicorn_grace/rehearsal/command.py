"""The command ``gunicorn-grace rehearse``: a scale-down under load, with the plugin and without it."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click
from click.core import ParameterSource

from .options import platform_options, resolve

LOST, COULD_NOT_RUN, INTERRUPTED = 1, 2, 130


@click.command(context_settings={"show_default": True})
@click.argument("app")
@click.argument("gunicorn_args", nargs=-1, type=click.UNPROCESSED)
@click.option("--instances", default=3, help="How many there are before the scale-down.")
@click.option("--to", type=int, help="How many remain.  [default: one fewer]")
@click.option("--rate", default=100.0, help="Requests per second, to all instances together.")
@click.option("--lag", default="3", help="Seconds for which a deleted instance is still routed to, or a range: 1..8.")
@click.option("--period", default=30.0, help="terminationGracePeriodSeconds.")
@click.option("--prestop", metavar="CMD", default="", help="preStop hook, with {host}, {port}, {pid}; or GET /path.")
@platform_options
@click.option("--worker-class", metavar="CLASS", help="As for gunicorn.")
@click.option("--workers", type=int, help="As for gunicorn.")
@click.option("--threads", type=int, help="As for gunicorn.")
@click.option(
    "--path",
    "paths",
    multiple=True,
    default=["/"],
    help="Path to request, or a line as in --requests; may be repeated.",
)
@click.option("--host", help="Host header.  [default: the instance's address]")
@click.option("--keepalive-share", default=0.5, help="Share of requests on kept-alive connections, 0 to 1.")
@click.option("--slow-path", metavar="PATH", help="Path of slow requests.")
@click.option("--slow-share", type=float, help="Share of slow requests.  [default: 0.02 with --slow-path]")
@click.option("--timeout", default=10.0, help="Seconds that a request may take.")
@click.option("--config", metavar="FILE", help="Your gunicorn configuration, with the plugin in it.")
@click.option("--delay", type=float, help="grace_shutdown_delay, in place of what is configured.")
@click.option("--only", type=click.Choice(["plain", "grace"]), help="Play with one of the two.")
@click.option("--json", "json_file", metavar="FILE", help="Write the result as JSON too; `-`: only that, to stdout.")
@click.pass_context
def rehearse(
    context: click.Context,
    /,
    app: str,
    gunicorn_args: Sequence[str],
    instances: int,
    to: int | None,
    rate: float,
    period: float,
    worker_class: str | None,
    workers: int | None,
    threads: int | None,
    host: str | None,
    keepalive_share: float,
    slow_path: str | None,
    slow_share: float | None,
    timeout: float,
    config: str | None,
    delay: float | None,
    only: str | None,
    json_file: str | None,
    **platform: object,
) -> None:
    """Scale APP down under load, as Kubernetes would, and count the requests that it costs.

    Boots real gunicorn on loopback, first plain, then with the plugin. Further arguments for gunicorn go
    behind --.

    Exit code: 0 if nothing was lost; 1 if something was, or an instance had to be killed (by the plugin,
    where it took part); 2 if it could not be run; 130 after Ctrl-C.
    """
    try:
        from . import report
        from .errors import RehearsalError
        from .scene import GRACE, PLAIN, Contender, Plan, play
    except ModuleNotFoundError as error:
        if error.name != "h11":
            raise
        _fail(context, "h11 is missing: pip install 'gunicorn-grace[rehearse]'")

    given = (("--worker-class", worker_class), ("--workers", workers), ("--threads", threads))
    args = [part for option, value in given if value is not None for part in (option, str(value))]
    env = {} if delay is None else {"GRACE_SHUTDOWN_DELAY": f"{delay:g}"}
    plain, grace = PLAIN, GRACE
    if config is not None:
        if not config.startswith("python:"):
            file = Path(config.removeprefix("file:"))
            if not file.is_file():
                _fail(context, f"--config {config}: there is no such file")
            config = str(file.resolve())
        plain = Contender(PLAIN.name, PLAIN.args, {"REHEARSAL_CONFIG": config})
        grace = Contender(GRACE.name, ("-c", config))
    contenders = {"plain": [plain], "grace": [grace], None: [plain, grace]}[only]

    try:
        plan = Plan(
            app,
            instances=instances,
            to=to,
            rate=rate,
            period=period,
            args=[*args, *gunicorn_args],
            env=env,
            keepalive_share=keepalive_share,
            slow_path=slow_path,
            slow_share=(0.02 if slow_path else 0.0) if slow_share is None else slow_share,
            timeout=timeout,
            host=host,
        )
        plan = replace(plan, **resolve(context.params, _explicit(context), lambda line: click.echo(line, err=True)))
        with _interruptible():
            results = [play(plan, contender, lambda line: click.echo(line, err=True)) for contender in contenders]
    except KeyboardInterrupt:
        click.echo("rehearse: interrupted; every instance has been ended", err=True)
        context.exit(INTERRUPTED)
    except RehearsalError as error:
        _fail(context, error.line)
    judged = results[-1]
    if contenders[-1] is grace and not judged.plugin_spoke:
        _fail(
            context,
            f"the plugin was not at work: does {config or 'gunicorn_grace.conf'} load it, and log at info?",
        )

    document = json.dumps({"app": app, "results": [result.as_dict() for result in results]}, indent=2)
    if json_file == "-":
        click.echo(document)
    else:
        click.echo(report.render(results), nl=False)
        if json_file is not None:
            try:
                Path(json_file).write_text(document + "\n", encoding="utf-8")
            except OSError as error:
                _fail(context, f"--json {json_file}: {error.strerror}")
    if not judged.flawless:
        context.exit(LOST)


def _fail(context: click.Context, line: str) -> NoReturn:
    click.echo(f"rehearse: {line}", err=True)
    context.exit(COULD_NOT_RUN)


def _explicit(context: click.Context) -> Callable[[str], bool]:
    """Whether a parameter was given by the user, and so wins over what else has a say."""
    return lambda name: context.get_parameter_source(name) is not ParameterSource.DEFAULT


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP end a rehearsal as Ctrl-C does, by an exception that ends the instances too."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
