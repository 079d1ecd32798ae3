"""The probes as a WSGI middleware, for Django and every other WSGI application.

Without this middleware the overlay (:mod:`gunicorn_grace.worker.overlay`) answers the probes. Runs
in workers. Outside gunicorn every answer is that of a serving instance.
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
    """WSGI middleware that answers the probe paths.

    :param app: the application that gets all other requests.
    """

    def __init__(self, app: WSGIApplication) -> None:
        self.app = app
        self._answers: WorkerAnswers | None = None

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        answers = self._answers
        if answers is None or answers.worker is not process.this_worker:
            # With preload_app the application is built in the arbiter, so this must wait for the
            # first request in a worker.
            answers = self._answers = WorkerAnswers(process.this_worker)
        target = answers.answers.target(environ.get("PATH_INFO", ""))
        if target is None:
            return self.app(environ, start_response)
        return send(answers.answer(target, environ), environ, start_response)
