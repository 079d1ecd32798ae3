"""A program that starts gunicorn in Python, and switches the plugin on in one of many ways.

``python embedded.py WAY HOST:PORT [DELAY]``
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import gunicorn.app.base
from speech import say

WAY, BIND = sys.argv[1:3]
sys.argv = sys.argv[:1]

DELAY = Path("delay")
OPTIONS: dict[str, Any] = {"bind": BIND, "workers": 1, "worker_class": "gthread"}
OURS = {"grace_shutdown_delay": 0.25, "grace_min_delay": 0, "grace_extend_delay": False}

if not WAY.startswith("import-in"):
    importlib.import_module("gunicorn_grace")
if WAY == "import":
    importlib.import_module("gunicorn_grace.conf")


def switch_on(cfg: Any) -> None:
    import gunicorn_grace

    gunicorn_grace.install(cfg)


def late(server: Any) -> None:
    switch_on(server.cfg)
    for name, value in OURS.items():
        server.cfg.set(name, value)


def too_late(server: Any) -> None:
    switch_on(server.cfg)


def app(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]


def hooks() -> dict[str, Any]:
    """The hooks that the environment names; each says that it was called."""

    def hook(name: str) -> Any:
        two = name in ("pre_fork", "post_fork", "pre_request", "post_request", "child_exit")
        if two:
            return lambda first, second: say(f"hook {name}")
        return lambda first: say(f"hook {name}")

    return {name: hook(name) for name in os.environ.get("HOOKS", "").split()}


class Program(gunicorn.app.base.BaseApplication):
    """As gunicorn's documentation has it: what is no setting is left out."""

    def load_config(self) -> None:
        ours = OURS
        if DELAY.exists():
            ours = {**OURS, "grace_shutdown_delay": float(DELAY.read_text())}
        if WAY.startswith("import-in"):
            importlib.import_module("gunicorn_grace")
        if WAY in ("first", "import-in-first"):
            switch_on(self.cfg)
        if WAY in ("late", "after"):
            ours = {}
        if WAY == "wrong":
            ours = {"grace_shutdown_dely": 1}
        for name, value in {**OPTIONS, **ours, **hooks()}.items():
            if name in self.cfg.settings:
                self.cfg.set(name, value)
        if WAY in ("before", "import-in-before"):
            switch_on(self.cfg)
        if WAY == "config":
            self.cfg.set("config", "python:gunicorn_grace.conf")
        if WAY == "late":
            self.cfg.set("on_starting", late)
        if WAY == "too-late":
            self.cfg.set("when_ready", too_late)

    def load(self) -> Any:
        if os.environ.get("IMPORT_IN_WORKER"):
            import gunicorn_grace.conf  # noqa: F401
        return app


if __name__ == "__main__":
    program = Program()
    if WAY == "after":
        switch_on(program.cfg)
        for name, value in OURS.items():
            program.cfg.set(name, value)
    program.run()
