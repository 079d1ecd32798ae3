"""The probes as Flask routes: a blueprint, or ``init_app``.

Both do the same: the routes appear in ``app.url_map`` and run through the application's own
``before_request``, error handlers and ``url_for``. An application that registers neither has the
probes all the same, from the overlay.
"""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Flask, Response, request
from flask.blueprints import BlueprintSetupState

from .probes.answers import DOCKERFLOW_PATHS, LIVENESS_ALIAS, Answers, Target
from .shared import settings
from .shared.phase import Kind
from .shared.settings import Settings
from .worker import process
from .worker.answering import WorkerAnswers

EXTENSION = "gunicorn_grace"

blueprint = Blueprint(EXTENSION, __name__)
"""Register it: ``app.register_blueprint(blueprint)``. The paths are those of the settings."""


def init_app(app: Flask) -> None:
    """Add the probes to ``app``."""
    app.register_blueprint(blueprint)


def _answer(kind: Kind, check: str | None = None, **host: str) -> Response:
    from flask import current_app

    held: dict[str, Any] = current_app.extensions[EXTENSION]
    answers: WorkerAnswers | None = held.get("answers")
    if answers is None or answers.worker is not process.this_worker:
        # Made in the worker, and not where the application is built: with preload_app that is the
        # arbiter.
        ours = process.this_worker
        answers = held["answers"] = WorkerAnswers(ours, held["settings"] if ours is None else None)
    answer = answers.answer(Target(kind, check), request.environ)
    return Response(answer.body, status=answer.status, headers=list(answer.headers))


@blueprint.record
def _add_routes(setup: BlueprintSetupState) -> None:
    loaded = settings.loaded() or Settings()
    setup.app.extensions[EXTENSION] = {"settings": loaded}
    # With host_matching a rule belongs to one host: whatever kubelet asks by, the pod's address, is
    # to be found.
    options = {"host": "<_grace_host>"} if setup.app.url_map.host_matching else {}
    for path, kind in Answers(loaded).paths.items():
        for rule in (path, f"{path.rstrip('/')}/<check>"):
            # Every method, so that the answer to a wrong one is ours as well: 405 with Allow.
            setup.add_url_rule(
                rule,
                _endpoint(path, kind),
                _answer,
                defaults={"kind": kind},
                methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"],
                provide_automatic_options=False,
                **options,
            )


def _endpoint(path: str, kind: Kind) -> str:
    """An alias has one of its own: routes that differ in nothing but the path would be redirected
    to the first."""
    if path == LIVENESS_ALIAS or path in DOCKERFLOW_PATHS:
        return path.strip("/_")
    return kind.value
