"""Applications that had probes before, or that keep strangers out, each at a host of its own.

kubelet asks by the pod's address: those are ``10.1.2.x``, and no application knows its own as a
name.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import django
import falcon
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path
from flask import Flask, Response, abort

from gunicorn_grace.wsgi import Probes

NOT_READY = Path(os.environ.get("NOT_READY", os.devnull + "/none"))
"""While this file is there the probes of the applications themselves say 503."""


def own_readiness() -> tuple[int, str]:
    return (503, "theirs: no database") if NOT_READY.exists() else (200, "theirs: ready")


# -- with probes of their own ----


MINE = ("X-Mine", "1")

flask_own = Flask("own")


@flask_own.get("/readyz")
def flask_readyz() -> Response:
    status, body = own_readiness()
    return Response(body, status, dict([MINE]))


@flask_own.get("/livez")
def flask_livez() -> Response:
    return Response("theirs: alive", headers=dict([MINE]))


def django_readyz(request: Any) -> HttpResponse:
    status, body = own_readiness()
    return HttpResponse(body, status=status, headers=dict([MINE]))


def django_livez(request: Any) -> HttpResponse:
    return HttpResponse("theirs: alive", headers=dict([MINE]))


urlpatterns = [path("readyz", django_readyz), path("livez", django_livez)]
settings.configure(
    ALLOWED_HOSTS=["10.1.2.3"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="of a test",
    MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
    LOGGING_CONFIG=None,
)
django.setup()
django_app = get_wsgi_application()


class FalconReadyz:
    def on_get(self, req: Any, resp: Any) -> None:
        status, resp.text = own_readiness()
        resp.status = falcon.code_to_http_status(status)
        resp.set_header(*MINE)


class FalconLivez:
    def on_get(self, req: Any, resp: Any) -> None:
        resp.text = "theirs: alive"
        resp.set_header(*MINE)


falcon_own = falcon.App()
falcon_own.add_route("/readyz", FalconReadyz())
falcon_own.add_route("/livez", FalconLivez())


def bare_own(environ: Any, start_response: Any) -> list[bytes]:
    match environ["PATH_INFO"]:
        case "/readyz" if environ["REQUEST_METHOD"] == "GET":
            status, body = own_readiness()
        case "/livez":
            status, body = 200, "theirs: alive"
        case _:
            status, body = 404, "theirs: no such route"
    start_response(
        f"{status} Status",
        [MINE, ("Content-Type", "text/plain"), ("Content-Length", str(len(body)))],
    )
    return [body.encode()]


OWN = {"flask": flask_own, "django": django_app, "falcon": falcon_own, "bare": bare_own}

# -- that keep strangers out ----


trusting = Flask("trusting")
trusting.config["TRUSTED_HOSTS"] = ["example.com"]

guarded = Flask("guarded")


@guarded.before_request
def login() -> None:
    abort(401)


redirecting = Flask("redirecting")


@redirecting.before_request
def to_login() -> Response:
    return Response(status=302, headers={"Location": "https://login.example.com/"})


matching = Flask("matching", host_matching=True, static_host="example.com")
matching.add_url_rule("/", "index", lambda: "theirs", host="example.com")

falcon_empty = falcon.App()

catching_all = Flask("catching_all")


@catching_all.route("/", defaults={"rest": ""})
@catching_all.route("/<path:rest>")
def everything(rest: str) -> str:
    return "theirs: everything"


STRICT = {
    "TRUSTED_HOSTS": trusting,
    "before_request": guarded,
    "redirect": redirecting,
    "host_matching": matching,
    "ALLOWED_HOSTS": django_app,
    "Django in the middleware": Probes(django_app),
    "no such route": falcon_empty,
}

HOSTS = {name: f"10.1.2.{number}" for number, name in enumerate((*OWN, *STRICT, "catch-all"), 2)}
"""Django's is the one that its ALLOWED_HOSTS knows: 10.1.2.3."""

AT = {HOSTS[name]: app for name, app in {**OWN, **STRICT, "catch-all": catching_all}.items()}


def app(environ: Any, start_response: Any) -> Any:
    return AT[environ["HTTP_HOST"]](environ, start_response)
