"""The ``gunicorn-grace`` command: what one does to an instance from outside, over its shared
memory.

No HTTP and no free worker is needed. Runs as a process of its own, in the container of the
instance.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import click

from . import __version__
from . import state as st
from .errors import GraceError, StateError
from .lifecycle import Origin
from .phase import Phase
from .rehearsal.command.command import rehearse
from .rehearsal.command.output import give_up_stdout

LOOK = 0.05
"""Seconds between two looks into the shared memory."""

PID_HELP = "The arbiter, where there is more than one instance."

EXIT_OK, EXIT_FAILED, EXIT_USAGE = 0, 1, 2


@click.group()
@click.version_option(__version__, prog_name="gunicorn-grace")
def cli() -> None:
    """Shut gunicorn services down without losing a request."""


def find(pid: int | None) -> st.State:
    """The memory of the instance whose arbiter is ``pid``, or of the only one there is.

    :raises StateError: there is none, or more than one, or it is not readable.
    """
    if not sys.platform.startswith("linux"):
        raise StateError(
            f"this command needs Linux (memfd), and this is {sys.platform}: use ?down=true or SIGTERM"
        )
    found: dict[int, st.State] = {}
    broken: list[str] = []
    for path in st.instances():
        try:
            state = st.State.open(path)
        except (StateError, OSError) as error:
            broken.append(str(error))
        else:
            found[state.cells[st.ARBITER]] = state
    if pid is not None:
        chosen = found.pop(pid, None)
        for other in found.values():
            other.close()
        if chosen is None:
            known = ", ".join(map(str, sorted(found))) or "none"
            raise StateError(
                f"no instance with arbiter {pid} that this user may open; found: {known}"
            )
        return chosen
    if len(found) > 1:
        raise StateError(
            f"{len(found)} instances, arbiters {', '.join(map(str, sorted(found)))}: choose with --pid"
        )
    if not found:
        why = f" ({broken[0]})" if broken else ""
        raise StateError(
            f"no gunicorn with gunicorn-grace that this user may open{why}: run it as the arbiter's user"
        )
    return next(iter(found.values()))


@cli.command()
@click.option("--pid", type=int, help=PID_HELP)
def prestop(pid: int | None) -> None:
    """Begin the shutdown and return when the delay is over: when a SIGTERM drains at once.

    For a Kubernetes preStop hook: exec, command ["gunicorn-grace", "prestop"].
    """
    state = find(pid)
    cells = state.cells
    if state.phase() is Phase.STARTING:
        _say("nothing was ever ready: no delay")
        return
    began = state.trigger(Origin.PRESTOP)
    note = "" if began else " (it had begun before)"
    _say(f"not ready for {cells[st.DELAY] / st.NS:g} s, longer while requests still come{note}")
    while (
        state.is_terminating() and not cells[st.DELAY_OVER] and cells[st.PHASE] <= Phase.LAME_DUCK
    ):
        # An arbiter that hangs takes nothing up: then the delay alone counts.
        hangs = not cells[st.T0] and time.monotonic_ns() > state.t0() + cells[st.DELAY]
        if hangs or not _lives(cells[st.ARBITER]) or state.seconds_left() == 0:
            return
        time.sleep(LOOK)


@cli.command()
@click.option("--pid", type=int, help=PID_HELP)
def drain(pid: int | None) -> None:
    """Take the instance out of rotation: not ready, and served as ever, until `undrain` or a
    SIGTERM."""
    state = find(pid)
    began = state.trigger(Origin.DRAIN)
    _say("not ready until undrain" if began else "the shutdown had begun before: nothing to do")


@cli.command()
@click.option("--pid", type=int, help=PID_HELP)
def undrain(pid: int | None) -> None:
    """Take the instance back into rotation, whoever took it out; not once a SIGTERM has come."""
    state = find(pid)
    if not state.is_terminating():
        _say("it is serving: nothing to do")
        return
    if state.cells[st.SIGTERM] or state.cells[st.PHASE] > Phase.LAME_DUCK:
        raise StateError("a SIGTERM has come: the shutdown cannot be taken back")
    state.cells[st.UNDRAIN] = time.monotonic_ns()
    while state.is_terminating() and not state.cells[st.SIGTERM]:
        if not _lives(state.cells[st.ARBITER]):
            raise StateError(f"arbiter {state.cells[st.ARBITER]} is gone")
        time.sleep(LOOK)
    if state.is_terminating():
        raise StateError("a SIGTERM has come: the shutdown cannot be taken back")
    _say("serving")


def _say(line: str) -> None:
    """Print what was done. Where that fails (a full disk) it is done all the same, and a preStop
    hook has to wait."""
    try:
        click.echo(line)
    except OSError:
        give_up_stdout()


def _lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="latin-1") as stream:
            return stream.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


cli.add_command(rehearse)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Exit codes: 0 done, 1 could not be done, 2 wrong usage (``rehearse``
    has its own)."""
    try:
        result = cli.main(
            args=None if argv is None else list(argv),
            prog_name="gunicorn-grace",
            standalone_mode=False,
        )
    except GraceError as error:
        click.echo(f"Error: {error}", err=True)
        return EXIT_FAILED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("Aborted!", err=True)
        return 130
    return result if isinstance(result, int) else EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
