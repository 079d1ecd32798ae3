"""The probes as Flask routes: a blueprint, or ``init_app``. Runs in workers.

Both add the same routes. The routes appear in ``app.url_map``, ``url_for`` knows them, and the
application's ``before_request`` functions and error handlers apply to them. If an application uses
neither, the overlay answers the probes.
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

blueprint: Blueprint = Blueprint(EXTENSION, __name__)
"""The blueprint with the probes: ``app.register_blueprint(blueprint)``. The settings give the
paths."""


def init_app(app: Flask) -> None:
    """Add the probes to an application. Runs where the application is built.

    :param app: the Flask application.
    """
    app.register_blueprint(blueprint)


def _answer(kind: Kind, check: str | None = None, **host: str) -> Response:
    from flask import current_app

    held: dict[str, Any] = current_app.extensions[EXTENSION]
    answers: WorkerAnswers | None = held.get("answers")
    if answers is None or answers.worker is not process.this_worker:
        # With preload_app the application is built in the arbiter, so this must wait for the first
        # request in a worker.
        answers = held["answers"] = WorkerAnswers(process.this_worker, held["settings"])
    answer = answers.answer(Target(kind, check), request.environ)
    return Response(answer.body, status=answer.status, headers=list(answer.headers))


@blueprint.record
def _add_routes(setup: BlueprintSetupState) -> None:
    loaded = settings.loaded() or Settings()
    setup.app.extensions[EXTENSION] = {"settings": loaded}
    # With host_matching a rule belongs to one host. The kubelet uses the pod's address as the host,
    # so these rules have to match any host.
    options = {"host": "<_grace_host>"} if setup.app.url_map.host_matching else {}
    for path, kind in Answers(loaded).paths.items():
        for rule in (path, f"{path.rstrip('/')}/<check>"):
            # All methods are routed here, because the plugin answers a wrong one with 405 and
            # Allow.
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
    """Return the endpoint of a path. An alias has its own endpoint, because Flask would redirect
    routes that differ only in the path to the first one."""
    if path == LIVENESS_ALIAS or path in DOCKERFLOW_PATHS:
        return path.strip("/_")
    return kind.value
