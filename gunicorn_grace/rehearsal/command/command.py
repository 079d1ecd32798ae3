"""The command ``gunicorn-grace rehearse``: a scale-down under load, with the plugin and without
it."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from types import FrameType
from typing import Any, NoReturn

import click
from click.core import ParameterSource

from .options import platform_options, resolve

LOST, COULD_NOT_RUN, INTERRUPTED = 1, 2, 130

RAISED_AGAIN_AFTER = 0.01
"""Seconds until an interrupt that Python dropped is raised again."""

_COLOURS: dict[str, dict[str, Any]] = {
    "good": {"fg": "green"},
    "bad": {"fg": "red", "bold": True},
    "head": {"bold": True},
    "dim": {"dim": True},
}


@click.command(context_settings={"show_default": True})
@click.argument("app")
@click.argument("gunicorn_args", nargs=-1, type=click.UNPROCESSED)
@click.option("--instances", default=3, help="Number of instances before the scale-down.")
@click.option(
    "--to", type=int, help="Number of instances after the scale-down.  [default: one fewer]"
)
@click.option("--rate", default=100.0, help="Requests per second to all instances together.")
@click.option(
    "--lag",
    default="3",
    help="Seconds until the routing has forgotten a deleted instance, or a range: 1..8.",
)
@click.option("--period", default=30.0, help="terminationGracePeriodSeconds.")
@click.option(
    "--prestop",
    metavar="CMD",
    default="",
    help="preStop hook: a command with {host}, {port}, {pid}, or GET /path.",
)
@platform_options
@click.option("--worker-class", metavar="CLASS", help="Worker class, as for gunicorn.")
@click.option("--workers", type=int, help="Workers of an instance, as for gunicorn.")
@click.option("--threads", type=int, help="Threads of a worker, as for gunicorn.")
@click.option(
    "--path",
    "paths",
    multiple=True,
    default=["/"],
    help="Path to request, or a line as in a --requests file. May be repeated.",
)
@click.option("--host", help="Host header.  [default: the instance's address]")
@click.option(
    "--keepalive-share", default=0.5, help="Share of requests on kept-alive connections, 0 to 1."
)
@click.option("--slow-path", metavar="PATH", help="Path of slow requests.")
@click.option(
    "--slow-share", type=float, help="Share of slow requests.  [default: 0.02 with --slow-path]"
)
@click.option(
    "--stream-path", metavar="PATH", help="Path of a stream that clients hold open, such as SSE."
)
@click.option("--websocket-path", metavar="PATH", help="Path of WebSockets that are held open.")
@click.option("--held", default=10, help="How many streams, and how many WebSockets, are open.")
@click.option("--timeout", default=10.0, help="Time limit for a request, in seconds.")
@click.option(
    "--config", metavar="FILE", help="Your gunicorn configuration, which loads the plugin."
)
@click.option("--delay", type=float, help="grace_shutdown_delay, instead of the configured value.")
@click.option(
    "--only", type=click.Choice(["plain", "sleep", "grace"]), help="Play this contender alone."
)
@click.option(
    "--beside",
    metavar="NAME",
    multiple=True,
    help="Play this contender too, before the last one. `sleep:15` is plain gunicorn with a "
    "preStop hook that sleeps. May be repeated.",
)
@click.option("--max-lost", default=0, help="Lost requests that still count as a success.")
@click.option(
    "--through",
    type=click.Choice(["envoy", "haproxy", "nginx"]),
    help="Put a real balancer in front of the instances.",
)
@click.option("--show-config", is_flag=True, help="Print the balancer's configuration and exit.")
@click.option(
    "--json",
    "json_file",
    metavar="FILE",
    help="Also write the result as JSON. `-` prints only the JSON, to stdout.",
)
@click.option(
    "--html",
    "html_file",
    metavar="FILE",
    help="Also write the result as an HTML page with the timeline drawn.",
)
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
    stream_path: str | None,
    websocket_path: str | None,
    held: int,
    timeout: float,
    config: str | None,
    delay: float | None,
    only: str | None,
    beside: Sequence[str],
    max_lost: int,
    through: str | None,
    show_config: bool,
    json_file: str | None,
    html_file: str | None,
    **platform: object,
) -> None:
    """Scale APP down under load, as Kubernetes would, and count the requests that it costs.

    Runs real gunicorn on loopback, first plain, then with the plugin. Further arguments for
    gunicorn go after --.

    \b
    Example: gunicorn-grace rehearse app:app --config gunicorn.conf.py --delay 5

    Exit code: 0 if at most --max-lost requests were lost; 1 if more were lost, or an instance had
    to be killed; 2 if the rehearsal could not be run; 130 after Ctrl-C, with a report on the run
    until then. Only the last contender decides between 0 and 1: by default the plugin.
    """
    try:
        from ..errors import PlanFailed, RehearsalError
        from ..plan import Plan
        from ..processes import balancers
        from ..report import page, schema
        from ..report import text as report_text
        from ..result import Result
        from ..run import Interrupted, play
        from .contenders import contender_named, expect_plugin, refuse_clashes
        from .output import give_up_stdout, opened
        from .progress import ProgressLine
    except ModuleNotFoundError as error:
        if error.name != "h11":
            raise
        _fail(context, "h11 is missing: pip install 'gunicorn-grace[rehearse]'")

    given = (("--worker-class", worker_class), ("--workers", workers), ("--threads", threads))
    args = [part for option, value in given if value is not None for part in (option, str(value))]
    env = {} if delay is None else {"GRACE_SHUTDOWN_DELAY": f"{delay:g}"}
    try:
        if show_config:
            if through is None:
                _fail(context, "--show-config needs a balancer: name one with --through")
            click.echo(balancers.show_config(through, instances), nl=False)
            return
        refuse_clashes(gunicorn_args)
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
            stream_path=stream_path,
            websocket_path=websocket_path,
            held=held,
            timeout=timeout,
            host=host,
            through=through,
        )
        plan = replace(
            plan,
            **resolve(context.params, _explicit(context), lambda line: click.echo(line, err=True)),
        )
        if max_lost < 0:
            raise PlanFailed(f"--max-lost {max_lost} is negative: use 0 or more")
        *others, judged = [only] if only else ["plain", "grace"]
        contenders = [contender_named(name, config) for name in (*others, *beside, judged)]
        files = {"--json": json_file if json_file != "-" else None, "--html": html_file}
        results: list[Result] = []
        made = datetime.now(timezone.utc)
        with (
            _interruptible(),
            opened({option: path for option, path in files.items() if path}) as outputs,
        ):
            interrupted = False
            try:
                with ProgressLine(sys.stderr) as progress:
                    for contender in contenders:
                        results.append(play(plan, contender, progress.tell, progress.watch))
                        tally = results[-1].tally
                        progress.done(f"{contender.name}: {tally.lost} of {tally.total} lost")
                expect_plugin(results[-1], config)
            except Interrupted as error:
                results.append(error.result)
                interrupted = True
            except KeyboardInterrupt:
                interrupted = True
            if interrupted:
                click.echo("rehearse: interrupted; all instances have been stopped", err=True)
            if results:
                document = schema.document(
                    results, made=made, max_lost=max_lost, interrupted=interrupted
                )
                as_json = json.dumps(document, indent=2) + "\n"
                if json_file == "-":
                    click.echo(as_json, nl=False)
                else:
                    told = report_text.render(results, max_lost, interrupted, paint)
                    click.echo(told, nl=False, color=False if os.environ.get("NO_COLOR") else None)
                if "--json" in outputs:
                    outputs["--json"].write(as_json)
                if "--html" in outputs:
                    outputs["--html"].write(
                        page.page(results, made=made, max_lost=max_lost, interrupted=interrupted)
                    )
    except KeyboardInterrupt:
        context.exit(INTERRUPTED)
    except RehearsalError as error:
        _fail(context, error.line)
    except OSError as error:
        if not error.filename:
            give_up_stdout()
        _fail(context, f"{error.filename or 'standard output'}: {error.strerror or error}")
    if interrupted:
        context.exit(INTERRUPTED)
    if not report_text.passed(results, max_lost, interrupted):
        context.exit(LOST)


def paint(text: str, what: str) -> str:
    """Return a text with colours for a terminal. ``click.echo`` removes them if the output is not a
    terminal.

    :param text: the text.
    :param what: ``good``, ``bad``, ``head`` or ``dim``.
    """
    return click.style(text, **_COLOURS[what])


def _fail(context: click.Context, line: str) -> NoReturn:
    click.echo(f"rehearse: {line}", err=True)
    context.exit(COULD_NOT_RUN)


def _explicit(context: click.Context) -> Callable[[str], bool]:
    """Return a function that returns whether the user gave a parameter. Such a parameter overrides
    the manifest."""
    return lambda name: context.get_parameter_source(name) is not ParameterSource.DEFAULT


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end a rehearsal as Ctrl-C does, by an exception that also ends the
    instances. Runs in the main thread.

    Python drops an exception that is raised in a weak reference's callback or in ``__del__``, and
    signal handlers run there too. An interrupt that was dropped is raised again a moment later.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    def raise_again(dropped: sys.UnraisableHookArgs) -> None:
        if issubclass(dropped.exc_type, KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, RAISED_AGAIN_AFTER)
        else:
            say(dropped)

    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)
    before = {number: signal.signal(number, interrupt) for number in numbers}
    say, sys.unraisablehook = sys.unraisablehook, raise_again
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.unraisablehook = say
        for number, handler in before.items():
            signal.signal(number, handler)
