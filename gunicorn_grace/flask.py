"""The probes as Flask routes: a blueprint, or ``init_app``.

Both do the same: the routes appear in ``app.url_map`` and run through the application's own
``before_request``, error handlers and ``url_for``. An application that registers neither has the
probes all the same, from the overlay.
"""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Flask, Response, request
from flask.blueprints import BlueprintSetupState

from .probes.answers import DOCKERFLOW_PATHS, LIVENESS_ALIAS, Target
from .probes.answers import Probes as Core
from .probes.checks import Kind
from .shared import settings
from .shared.settings import Settings
from .worker import process as worker
from .wsgi import Responder

EXTENSION = "gunicorn_grace"

blueprint = Blueprint(EXTENSION, __name__)
"""Register it: ``app.register_blueprint(blueprint)``. The paths are those of the settings."""


def init_app(app: Flask) -> None:
    """Add the probes to ``app``."""
    app.register_blueprint(blueprint)


def _answer(kind: Kind, check: str | None = None, **host: str) -> Response:
    from flask import current_app

    held: dict[str, Any] = current_app.extensions[EXTENSION]
    responder: Responder | None = held.get("responder")
    if responder is None or responder.seat is not worker.current:
        # Made in the worker, and not where the application is built: with preload_app that is the
        # arbiter.
        responder = held["responder"] = Responder(
            worker.current, held["settings"] if worker.current is None else None
        )
    answer = responder.answer(Target(kind, check), request.environ)
    return Response(answer.body, status=answer.status, headers=list(answer.headers))


@blueprint.record
def _add_routes(setup: BlueprintSetupState) -> None:
    loaded = settings.loaded() or Settings()
    setup.app.extensions[EXTENSION] = {"settings": loaded}
    # With host_matching a rule belongs to one host: whatever kubelet asks by, the pod's address, is
    # to be found.
    options = {"host": "<_grace_host>"} if setup.app.url_map.host_matching else {}
    for path, kind in Core(loaded).paths.items():
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
