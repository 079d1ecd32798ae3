"""Makes the contenders of a rehearsal, and checks the user's arguments for gunicorn.

The command line and the pytest fixture share this module, so that both play the same contenders.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import PlanFailed
from ..plan import GRACE, PLAIN, Contender
from ..result import Result

NAMES = ("plain", "sleep", "grace")
"""The names of contenders on the command line; ``sleep`` may be followed by ``:SECONDS``."""

SLEEP = 15.0
"""The default for a preStop hook that only sleeps, in seconds. Most Helm charts use this value."""

_NEEDED: dict[str, str] = {
    "bind": "each instance listens on its own free port",
    "daemon": "daemon must be off, or an instance seems to have ended",
    "pidfile": "each instance has its own file",
    "config": "use --config, which both contenders read",
    "print_config": "gunicorn would end at once",
    "check_config": "gunicorn would end at once",
}
"""gunicorn's options that a rehearsal sets itself, by their names in gunicorn's parser, with the
reason."""


def contender_named(name: str, config: str | None = None) -> Contender:
    """Make a contender.

    :param name: one of :data:`NAMES`, or ``sleep:SECONDS``.
    :param config: the user's gunicorn configuration that loads the plugin: a file or
        ``python:MODULE``. Every contender reads it. For plain gunicorn, the plugin in it does
        nothing.

    :raises PlanFailed: there is no such contender, or no such file.
    """
    kind, _, given = name.partition(":")
    if kind not in NAMES or (given and kind != "sleep"):
        raise PlanFailed(
            f"contender {name!r} is unknown: choose {', '.join(NAMES)} or sleep:SECONDS"
        )
    if config is not None and not config.startswith("python:"):
        file = Path(config.removeprefix("file:"))
        if not file.is_file():
            raise PlanFailed(f"--config {config}: there is no such file")
        config = str(file.resolve())
    if kind == "grace":
        return GRACE if config is None else replace(GRACE, args=("-c", config))
    plain = PLAIN if config is None else replace(PLAIN, env={"REHEARSAL_CONFIG": config})
    if kind == "plain":
        return plain
    if not re.fullmatch(r"\d*\.?\d+", given or f"{SLEEP:g}"):
        raise PlanFailed(
            f"contender {name!r}: {given!r} is not a number of seconds, such as sleep:15"
        )
    seconds = f"{float(given or SLEEP):g}"
    return replace(plain, name=f"preStop: sleep {seconds}", pre_stop=("sleep", seconds))


def expect_plugin(result: Result, config: str | None = None) -> None:
    """Check that the plugin was at work in a result of the contender gunicorn-grace. Results of
    other contenders are not checked.

    :param result: the result.
    :param config: the user's gunicorn configuration, for the message.
    :raises PlanFailed: no deleted instance logged that the plugin took over.
    """
    if result.contender.name == GRACE.name and result.complete and not result.plugin_spoke:
        raise PlanFailed(
            f"the plugin was not at work: does {config or 'gunicorn_grace.conf'} load it, "
            "leave grace_enabled on, and log at info?"
        )


def refuse_clashes(args: Sequence[str]) -> None:
    """Refuse arguments for gunicorn that a rehearsal sets itself.

    gunicorn's own parser reads them. Arguments that it does not know are left to gunicorn.

    :raises PlanFailed: there is such an argument, or gunicorn refuses one.
    """
    from gunicorn.config import Config

    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()) as said,
    ):
        try:
            parsed, _ = Config(prog="gunicorn").parser().parse_known_args(list(args))
        except SystemExit as ended:
            if ended.code:
                cause = said.getvalue().strip().rpartition("error: ")[2]
                raise PlanFailed(f"gunicorn does not accept {' '.join(args)}: {cause}") from None
            raise PlanFailed(
                f"gunicorn would end at once with {' '.join(args)}: leave out --help or --version"
            ) from None
    for name, why in _NEEDED.items():
        if getattr(parsed, name, None) is not None:
            option = next(flag for flag in _flags(name) if flag.startswith("--"))
            raise PlanFailed(f"{option} cannot be given to the gunicorn of a rehearsal: {why}")


def _flags(name: str) -> Sequence[str]:
    from gunicorn.config import KNOWN_SETTINGS

    return next(setting.cli for setting in KNOWN_SETTINGS if setting.name == name and setting.cli)
