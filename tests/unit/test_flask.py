"""The probes as Flask routes, in real applications, outside gunicorn and in a worker."""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.metadata import version

import pytest
from flask import Flask, request, url_for
from gunicorn.config import Config

import gunicorn_grace
from gunicorn_grace.arbiter.adoption import adopt
from gunicorn_grace.flask import blueprint, init_app
from gunicorn_grace.shared.memory import Memory
from gunicorn_grace.shared.phase import Phase
from gunicorn_grace.shared.settings import Settings
from gunicorn_grace.worker import process
from gunicorn_grace.worker.answering import WorkerAnswers
from gunicorn_grace.worker.overlay import Overlay
from gunicorn_grace.worker.process import WorkerProcess

PATHS = ["/readyz", "/livez", "/startupz", "/healthz"]


def register(app: Flask) -> None:
    app.register_blueprint(blueprint)


@pytest.fixture(params=[register, init_app], ids=["blueprint", "init_app"])
def add(request: pytest.FixtureRequest) -> Callable[[Flask], None]:
    """Both ways in, which do the same."""
    way: Callable[[Flask], None] = request.param
    return way


@pytest.fixture
def app(add: Callable[[Flask], None]) -> Flask:
    """An application with a catch-all route, and the probes."""
    made = Flask("app")

    @made.route("/<path:rest>")
    def everything(rest: str) -> str:
        return f"theirs {rest}"

    add(made)
    return made


@pytest.fixture
def ours(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> WorkerProcess:
    """This process as a worker of an instance that serves."""
    memory.header.phase = Phase.SERVING
    memory.claim(0, age=1)
    made = WorkerProcess(memory, 0, Settings(), logging.getLogger("gunicorn.error"))
    monkeypatch.setattr(process, "this_worker", made)
    return made


@pytest.mark.parametrize("path", PATHS)
def test_outside_gunicorn_it_answers_as_serving(app: Flask, path: str) -> None:
    """In a development server and in the user's own tests every probe is 200, with the core's
    headers."""
    response = app.test_client().get(path)
    assert (response.status_code, response.text) == (200, "ok\n")
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers.getlist("Content-Type") == ["text/plain; charset=utf-8"]


@pytest.mark.parametrize("path", PATHS)
def test_head_and_other_methods(app: Flask, path: str) -> None:
    """HEAD has the length and no body; what is neither GET nor HEAD is 405 with Allow."""
    client = app.test_client()
    head = client.head(path)
    assert (head.status_code, head.data, head.headers["Content-Length"]) == (200, b"", "3")
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        refused = client.open(path, method=method)
        assert (refused.status_code, refused.headers["Allow"]) == (405, "GET, HEAD")


def test_the_routes_are_the_applications(app: Flask) -> None:
    """They stand in ``url_map``, have endpoints for ``url_for``, and run through
    ``before_request``."""
    rules = {rule.rule: rule.endpoint for rule in app.url_map.iter_rules()}
    assert {path: rules[path] for path in PATHS} == {
        "/readyz": "gunicorn_grace.readiness",
        "/livez": "gunicorn_grace.liveness",
        "/startupz": "gunicorn_grace.startup",
        "/healthz": "gunicorn_grace.healthz",
    }
    with app.test_request_context():
        assert url_for("gunicorn_grace.readiness") == "/readyz"
    seen = []
    app.before_request(lambda: seen.append(request.path))
    app.test_client().get("/livez")
    assert seen == ["/livez"]


def test_the_state_is_under_extensions(app: Flask) -> None:
    """As Flask's extensions do it; two applications have two."""
    other = Flask("other")
    init_app(other)
    assert app.extensions["gunicorn_grace"]["settings"] == Settings()
    assert other.extensions["gunicorn_grace"] is not app.extensions["gunicorn_grace"]
    assert other.test_client().get("/readyz").status_code == 200


def test_the_paths_are_those_of_the_loaded_configuration(add: Callable[[Flask], None]) -> None:
    """A path that the file set is where the route is; the catch-all keeps the default one."""
    cfg = Config()
    adopt(cfg, {})
    cfg.set("grace_readiness_path", "/ready")
    app = Flask("app")
    add(app)
    client = app.test_client()
    assert client.get("/ready").status_code == 200
    assert client.get("/readyz").status_code == 404


def test_readiness_may_take_the_alias(
    memory: Memory, add: Callable[[Flask], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ``grace_readiness_path = "/healthz"`` the route says what the overlay says: not
    ready."""
    cfg = Config()
    adopt(cfg, {})
    cfg.set("grace_readiness_path", "/healthz")
    memory.header.phase = Phase.LAME_DUCK
    ours = WorkerProcess(memory, None, Settings.of(cfg), logging.getLogger("gunicorn.error"))
    monkeypatch.setattr(process, "this_worker", ours)
    app = Flask("app")
    add(app)
    assert app.test_client().get("/healthz").status_code == 503


def test_in_a_worker_it_answers_from_the_shared_memory(app: Flask, ours: WorkerProcess) -> None:
    """Asked before the fork too (``preload_app``), it finds the worker that it is in."""
    client = app.test_client()
    process.this_worker = None
    assert client.get("/readyz").status_code == 200
    process.this_worker = ours
    assert client.get("/readyz").status_code == 200
    ours.memory.header.sigterm = 1
    response = client.get("/readyz")
    assert (response.status_code, response.text) == (503, "[-]shutdown failed: reason withheld\n")
    assert client.get("/livez").status_code == 200
    assert client.get("/elsewhere").text == "theirs elsewhere"


def test_a_forged_trigger_is_refused(app: Flask, ours: WorkerProcess) -> None:
    """The blueprint has the same gate as the overlay."""
    assert app.test_client().get("/readyz?down=true").status_code == 403
    assert not ours.memory.is_terminating()


def test_overlay_and_blueprint_agree(app: Flask, ours: WorkerProcess) -> None:
    """Both at once, as in every application that registers the blueprint: one answer, before and
    after T0."""
    app.wsgi_app = Overlay(app.wsgi_app, WorkerAnswers(ours))  # type: ignore[method-assign]
    client = app.test_client()
    for path in PATHS:
        assert client.get(path).text == "ok\n"
    ours.memory.header.sigterm = 1
    assert [client.get(path).status_code for path in PATHS] == [503, 200, 200, 200]


@pytest.mark.skipif(version("flask") < "3.1", reason="Flask has TRUSTED_HOSTS since 3.1")
def test_trusted_hosts_do_not_break_the_overlay(ours: WorkerProcess) -> None:
    """kubelet asks by the pod's address, which an application with TRUSTED_HOSTS answers with
    400."""
    app = Flask("app")
    app.config["TRUSTED_HOSTS"] = ["example.com"]
    bare = app.test_client().get("/readyz", base_url="http://10.0.0.7")
    assert bare.status_code == 400
    app.wsgi_app = Overlay(app.wsgi_app, WorkerAnswers(ours))  # type: ignore[method-assign]
    assert app.test_client().get("/readyz", base_url="http://10.0.0.7").status_code == 200


def test_formats_and_checks(app: Flask, ours: WorkerProcess) -> None:
    """The blueprint answers as the core does: verbose, exclude, JSON, single checks, and from T0 on
    none is run."""
    ran = []

    @gunicorn_grace.check("database", ttl=0, timeout=60)
    def database() -> bool:
        ran.append(1)
        return False

    client = app.test_client()
    down = "[-]database failed: reason withheld\n"
    assert client.get("/readyz?verbose").text == f"[+]booted ok\n[+]shutdown ok\n{down}"
    assert client.get("/readyz?exclude=database").status_code == 200
    single = client.get("/readyz/database")
    assert (single.status_code, single.text) == (503, down)
    assert client.get("/readyz/nothing").status_code == 404
    told = client.get("/readyz", headers={"Accept": "application/json"})
    assert (told.status_code, told.json["checks"]["database"]) == (503, "failed")
    assert told.headers.getlist("Content-Type") == ["application/json"]
    before = len(ran)
    ours.memory.header.sigterm = 1
    assert client.get("/readyz").text == "[-]shutdown failed: reason withheld\n"
    assert client.get("/readyz/database").status_code == 503
    assert len(ran) == before


def test_host_matching_does_not_hide_the_routes(add: Callable[[Flask], None]) -> None:
    """kubelet asks by the pod's address, which is not a host of the application's; other routes
    keep their host."""
    app = Flask("app", host_matching=True, static_host="example.com")
    app.add_url_rule("/mine", "mine", lambda: "theirs", host="example.com")
    add(app)
    client = app.test_client()
    for path in PATHS:
        assert client.get(path, base_url="http://10.1.2.3:8080").text == "ok\n"
    assert client.get("/mine", base_url="http://example.com").text == "theirs"
    assert client.get("/mine", base_url="http://10.1.2.3").status_code == 404


def test_dockerflow_routes(add: Callable[[Flask], None]) -> None:
    """With ``grace_dockerflow`` both are routes, with endpoints of their own, and neither
    redirects."""
    cfg = Config()
    adopt(cfg, {})
    cfg.set("grace_dockerflow", True)
    app = Flask("app")
    add(app)
    client = app.test_client()
    assert [client.get(path).status_code for path in ("/__heartbeat__", "/__lbheartbeat__")] == [
        200,
        200,
    ]
    with app.test_request_context():
        assert url_for("gunicorn_grace.heartbeat") == "/__heartbeat__"


def test_overlay_and_blueprint_run_a_check_once(app: Flask, ours: WorkerProcess) -> None:
    """A probe that the blueprint has answered is answered: the overlay asks the checks no second
    time."""
    ran: list[int] = []
    gunicorn_grace.check("database", ttl=0, timeout=60)(lambda: ran.append(1))
    app.wsgi_app = Overlay(app.wsgi_app, WorkerAnswers(ours))  # type: ignore[method-assign]
    assert app.test_client().get("/readyz").status_code == 200
    assert ran == [1]
