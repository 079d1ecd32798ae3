"""The warnings of ``gunicorn --check-config``: the delay and the drain do not fit into the period,
environment variables are ignored, or the report cannot be written. None of these keeps the server
from serving, so they are only warnings.

With that option gunicorn loads the configuration and the application, and exits before there is an
arbiter (``Application.run``, 22.0 to 27.0). So the hook ``on_starting``, which logs the same at
boot, never runs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

from ..shared import names
from ..shared.settings import Settings
from ..shared.text import printable
from . import budget, report, stack


def told_of_variables(cfg: Any) -> list[str]:
    """Return a line about environment variables that look like settings and are not, and a line
    about those that come too late. A line without variables is left out. Runs in the arbiter.

    :param cfg: the loaded ``Config``.
    """
    try:
        given = cfg.env
    except RuntimeError:  # raw_env is malformed, and gunicorn refuses it at boot.
        given = {}
    lines = names.told_of({**os.environ, **given}), names.told_of_late(given, cfg.env_orig)
    return [line for line in lines if line is not None]


def watch(cfg: Any) -> None:
    """Print the warnings after the application was loaded, if gunicorn only checks its
    configuration.

    gunicorn reads the command line after the configuration file. So this also takes effect when
    the option ``check_config`` is set later.

    :param cfg: the ``Config`` that is being loaded.
    """
    setting = cfg.settings["check_config"]
    cls_set = type(setting).set

    def set_value(value: Any) -> None:
        cls_set(setting, value)
        if setting.value:
            _tell_after_loading()

    setting.set = set_value
    if setting.value:
        _tell_after_loading()


def _tell_after_loading() -> None:
    found = stack.loading_application()
    if found is None:
        return
    app: Any = found[0]
    load = app.load

    def loaded() -> Any:
        application = load()
        app.load = load
        for line in _warnings(app.cfg):
            print(f"Warning: gunicorn-grace: {line}", file=sys.stderr, flush=True)
        return application

    app.load = loaded


def _warnings(cfg: Any) -> Iterator[str]:
    yield from told_of_variables(cfg)
    settings = Settings.of(cfg)
    warns, line = budget.line_of(cfg, settings)
    if warns:
        yield line
    path = settings.report
    if path is not None and getattr(cfg.settings["grace_report"], "given", False):
        why = report.why_unwritable(path)
        if why is not None:
            yield (
                f"grace_report {printable(path)} cannot be written here: {printable(why)}: give a "
                "file in a folder that this user may write to, if it is the same where it serves"
            )
