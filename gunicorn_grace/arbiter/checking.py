"""``gunicorn --check-config`` also says when delay and drain do not fit into the period, and which
environment variables are ignored.

gunicorn loads the configuration and the application, and exits before there is an arbiter
(``Application.run``, 22.0 to 27.0). So the hook ``on_starting``, which logs the sum, never runs.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from ..shared import names
from ..shared.settings import Settings
from . import budget, stack


def told_of_variables(cfg: Any) -> list[str]:
    """Return a line about the environment variables that look like settings and are none, and one
    about those that come too late, where there are such.

    :param cfg: the loaded ``Config``.
    """
    try:
        given = cfg.env
    except RuntimeError:  # gunicorn refuses it at boot.
        given = {}
    lines = names.told_of({**os.environ, **given}), names.told_of_late(given, cfg.env_orig)
    return [line for line in lines if line is not None]


def watch(cfg: Any) -> None:
    """Say it after the application was loaded, if this gunicorn only checks its configuration.

    The command line is read after the configuration file, so this waits for its word.

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
        warn, line = budget.line_of(app.cfg, Settings.of(app.cfg))
        for told in (*told_of_variables(app.cfg), *([line] if warn else [])):
            print(f"Warning: gunicorn-grace: {told}", file=sys.stderr, flush=True)
        return application

    app.load = loaded
