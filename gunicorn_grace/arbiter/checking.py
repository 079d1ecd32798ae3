"""``gunicorn --check-config`` also says when delay and drain do not fit into the period.

gunicorn loads the configuration and the application, and exits before there is an arbiter
(``Application.run``, 22.0 to 27.0). So the hook ``on_starting``, which logs the sum, never runs.
"""

from __future__ import annotations

import sys
from typing import Any

from ..shared.settings import Settings
from . import budget, stack


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
        if warn:
            print(f"Warning: gunicorn-grace: {line}", file=sys.stderr, flush=True)
        return application

    app.load = loaded
