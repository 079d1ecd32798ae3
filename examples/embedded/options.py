"""A program that takes gunicorn's options as a dictionary, as gunicorn's documentation has it, and
knows nothing of the plugin.

    python options.py --config python:gunicorn_grace.conf [HOST:PORT]
    GUNICORN_CMD_ARGS="-c python:gunicorn_grace.conf" python options.py [HOST:PORT]
    gunicorn-grace run -- python options.py [HOST:PORT]

gunicorn itself reads neither the option ``config`` nor that variable here, because the program
derives from ``BaseApplication``. The plugin takes both for a request to be switched on, if anything
in the program imports it, as ``hello`` does. The third way needs no import. Settings come from the
environment: ``GRACE_SHUTDOWN_DELAY=15``.
"""

from __future__ import annotations

import argparse
from typing import Any

import gunicorn.app.base
from hello import app


class StandaloneApplication(gunicorn.app.base.BaseApplication):
    """An application, and gunicorn's options for it."""

    def __init__(self, application: Any, options: dict[str, Any]) -> None:
        self.application = application
        self.options = options
        super().__init__()

    def load_config(self) -> None:
        for name, value in self.options.items():
            if name in self.cfg.settings and value is not None:
                self.cfg.set(name, value)

    def load(self) -> Any:
        return self.application


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("bind", nargs="?", default="127.0.0.1:8080")
    parser.add_argument("--config")
    parser.add_argument("--worker-class", default="gthread")
    parser.add_argument("--threads", type=int, default=4)
    StandaloneApplication(app, vars(parser.parse_args())).run()
