"""A program that starts gunicorn in Python and knows nothing of the plugin: nobody can edit it."""

from __future__ import annotations

import sys
from typing import Any

import gunicorn.app.base
from service import app

BIND = sys.argv[1]


class Launcher(gunicorn.app.base.BaseApplication):
    def load_config(self) -> None:
        self.cfg.set("bind", BIND)
        self.cfg.set("worker_class", "gthread")

    def load(self) -> Any:
        return app


if __name__ == "__main__":
    Launcher().run()
