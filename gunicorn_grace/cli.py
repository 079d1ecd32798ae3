"""The ``gunicorn-grace`` command. Each subcommand hands over to :mod:`gunicorn_grace.operate` or to
the rehearsal.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import click

from .errors import GraceError
from .operate import drain as _drain
from .operate import prestop as _prestop
from .operate import reports as _reports
from .operate import reports_text
from .operate import run as _run
from .operate import status as _status
from .operate.check.command import check
from .operate.fragments.command import manifest
from .rehearsal.command.command import rehearse
from .rehearsal.command.output import give_up_stdout
from .shared.text import in_one_line
from .shared.version import __version__

PID_HELP = "The arbiter, where there is more than one instance."

EXIT_OK, EXIT_FAILED, EXIT_USAGE = 0, 1, 2


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="gunicorn-grace")
def cli() -> None:
    """Shut gunicorn services down without losing a request.

    Example: gunicorn-grace status
    """


@cli.command()
@click.option("--pid", type=int, help="Show this arbiter's instance alone.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one document a line.")
@click.option("--watch", is_flag=True, help="Print it again each second, until Ctrl-C.")
def status(pid: int | None, as_json: bool, watch: bool) -> None:
    """Show every instance that this user may see: its phase, what is in flight, how much time is
    left, and its workers. Nothing is asked of the instance, so a busy one shows too.

    Example: gunicorn-grace status --watch
    """
    try:
        _status.show(pid, click.echo, as_json=as_json, again=watch)
    except BrokenPipeError:
        give_up_stdout()
    except OSError as error:
        give_up_stdout()
        raise GraceError(f"standard output cannot be written: {error.strerror}") from None


@cli.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def reports(files: tuple[str, ...], as_json: bool) -> int:
    """Say what the shutdowns of a fleet tell, service by service: how they ended, what was cut off,
    when the last request came, and which delay and period would do. FILE is the JSON of kubectl, a
    report, or a log; - is standard input.

    Example: kubectl get pods -A -o json | gunicorn-grace reports -
    """
    found = _reports.collect(files)
    _say(json.dumps(reports_text.document(found)) if as_json else reports_text.text(found))
    return EXIT_OK if all(service.is_well for service in found.values()) else EXIT_FAILED


@cli.command()
@click.option("--pid", type=int, help=PID_HELP)
def prestop(pid: int | None) -> None:
    """Begin the shutdown and return when the delay is over: when a SIGTERM drains at once.

    \b
    Example, for a Kubernetes preStop hook:
    exec: {command: [gunicorn-grace, prestop]}
    """
    _prestop.prestop(pid, _say)


@cli.command()
@click.option("--pid", type=int, help=PID_HELP)
@click.option("--wait", is_flag=True, help="Return only when no request is in flight.")
def drain(pid: int | None, wait: bool) -> None:
    """Take the instance out of rotation until `undrain` or a SIGTERM. It is not ready, and goes on
    serving.

    Example: gunicorn-grace drain --wait
    """
    _drain.drain(pid, _say, wait=wait)


@cli.command()
@click.option("--pid", type=int, help=PID_HELP)
@click.option("--wait", is_flag=True, help="Return only when a request has come since.")
def undrain(pid: int | None, wait: bool) -> None:
    """Take the instance back into rotation, whatever took it out; too late after a SIGTERM.

    Example: gunicorn-grace undrain --wait
    """
    _drain.undrain(pid, _say, wait=wait)


@cli.command("end-delay")
@click.option("--pid", type=int, help=PID_HELP)
def end_delay(pid: int | None) -> None:
    """End the delay of an instance that is shutting down. It drains at once: it takes no new
    connection, and finishes what is in flight. A SIGTERM that is repeated does not do that.

    Example: gunicorn-grace end-delay --pid 4711
    """
    _drain.end_delay(pid, _say)


@cli.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(command: tuple[str, ...]) -> int:
    """Run a command that starts gunicorn in Python, with the plugin in it. For programs that nobody
    can edit. The command takes the place of this process.

    Example: gunicorn-grace run -- mlflow server --gunicorn-opts "--threads 4"
    """
    code, why = _run.run(command)
    click.echo(f"Error: {why}", err=True)
    return code


def _say(line: str) -> None:
    """Print what was done. An error such as a full disk is ignored, because the work is done all
    the same, and a preStop hook still has to wait."""
    try:
        click.echo(line)
    except OSError:
        give_up_stdout()


def _show(error: click.ClickException) -> None:
    """Print what is wrong with the command line, in one line. If there is no command at all, click
    shows the help."""
    if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):
        error.show()
        return
    told = in_one_line(" ".join(error.format_message().split())).removesuffix(".")
    context = getattr(error, "ctx", None)
    fix = f": see {context.command_path} --help" if context is not None else ""
    click.echo(f"Error: {told}{fix}", err=True)


cli.add_command(check)
cli.add_command(manifest)
cli.add_command(rehearse)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line, and return its exit code: 0 done, 1 could not be done, 2 wrong usage,
    130 after Ctrl-C. ``check``, ``rehearse`` and ``run`` have their own codes.

    :param argv: the arguments; those of this process by default.
    """
    try:
        result = cli.main(
            args=None if argv is None else list(argv),
            prog_name="gunicorn-grace",
            standalone_mode=False,
        )
    except GraceError as error:
        click.echo(f"Error: {in_one_line(str(error))}", err=True)
        return EXIT_FAILED
    except click.ClickException as error:
        _show(error)
        return error.exit_code
    except OSError as error:
        # A full disk behind standard output, for example; click itself handles a closed pipe.
        give_up_stdout()
        click.echo(f"Error: {error.filename or 'standard output'}: {error.strerror}", err=True)
        return EXIT_FAILED
    except (click.Abort, KeyboardInterrupt):
        click.echo("Aborted!", err=True)
        return 130
    return result if isinstance(result, int) else EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
