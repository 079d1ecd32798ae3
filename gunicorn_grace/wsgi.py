"""The probes for a WSGI application: a middleware, for Django and everything else.

The overlay (:mod:`gunicorn_grace.worker.overlay`) serves them without it. Runs in worker processes;
outside gunicorn every answer is that of a serving instance.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from .worker import process
from .worker.answering import WorkerAnswers, send

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["Probes"]


class Probes:
    """WSGI middleware that answers the probe paths, for Django and everything else.

    :param app: the application that gets all other requests.
    """

    def __init__(self, app: WSGIApplication) -> None:
        self.app = app
        self._answers: WorkerAnswers | None = None

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        answers = self._answers
        if answers is None or answers.worker is not process.this_worker:
            # Made in the worker, and not where the application is built: with preload_app that is
            # the arbiter.
            answers = self._answers = WorkerAnswers(process.this_worker)
        target = answers.answers.target(environ.get("PATH_INFO", ""))
        if target is None:
            return self.app(environ, start_response)
        return send(answers.answer(target, environ), environ, start_response)
