"""A program that starts gunicorn in Python, and reads no configuration file.

    python program.py [HOST:PORT]

It derives from ``BaseApplication``, sets everything in ``load_config``, and switches the plugin on
there. The order does not matter: what stands before ``install`` here might as well stand after it.
SIGHUP calls ``load_config`` again.
"""

from __future__ import annotations

import sys
from typing import Any

import gunicorn.app.base
from hello import app

import gunicorn_grace


def when_ready(server: Any) -> None:
    server.log.info("program: ready for connections")


def post_request(worker: Any, req: Any, environ: Any, resp: Any) -> None:
    worker.log.info("program: %s %s", req.method, req.path)


def on_exit(server: Any) -> None:
    server.log.info("program: bye")


class Program(gunicorn.app.base.BaseApplication):
    """The server of this program."""

    def __init__(self, bind: str) -> None:
        self.bind = bind
        super().__init__()

    def load_config(self) -> None:
        self.cfg.set("bind", self.bind)
        self.cfg.set("worker_class", "gthread")
        self.cfg.set("workers", 2)
        self.cfg.set("threads", 4)
        self.cfg.set("post_request", post_request)
        self.cfg.set("grace_shutdown_delay", 15)

        gunicorn_grace.install(self.cfg)

        self.cfg.set("when_ready", when_ready)
        self.cfg.set("on_exit", on_exit)
        self.cfg.set("grace_termination_period", 90)
        self.cfg.set("graceful_timeout", 60)

    def load(self) -> Any:
        return app


if __name__ == "__main__":
    Program(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8080").run()
