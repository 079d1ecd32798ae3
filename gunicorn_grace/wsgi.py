"""The probes in front of a WSGI application: the overlay that is always there, and a middleware for those who ask.

Thin adapters: :class:`Responder` turns an environ into an :class:`~gunicorn_grace.probes.Answer`, and everything else
only puts it on the wire. Runs in worker processes; outside gunicorn every answer is that of a serving instance.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from werkzeug.wsgi import ClosingIterator

from . import worker
from .lifecycle import Origin
from .phase import Phase, is_terminating
from .probes import FORBIDDEN, NOT_ALLOWED, Answer, Kind, Situation
from .probes import Probes as Core
from .settings import OFF, Settings
from .state import ARBITER, HTTP_SHUT
from .trigger import Gate

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

REFUSAL_LOG_INTERVAL = 60.0
"""Seconds between two log lines about refused triggers: whoever forges them must not be able to fill the disk."""

NO_ANSWER = frozenset({"301", "302", "303", "307", "308", "400", "401", "403", "404", "405", "421"})
"""What an application says that has no probe there: no such route (404, 405), a host that it does not trust (400, 421),
a login that it wants first (401, 403, a redirect). Any other answer is one, a 429 or a 503 among them."""

LEARNED = 64
"""How many paths-at-hosts the overlay remembers as not the application's own."""


class Responder:
    """Answers the probes of this process, the trigger included.

    :param seat: the worker's place in the shared memory; ``None`` outside gunicorn.
    """

    def __init__(self, seat: worker.Seat | None, settings: Settings | None = None) -> None:
        self.seat = seat
        self.settings = settings or (seat.settings if seat else Settings())
        self.probes = seat.probes if seat else Core(self.settings)
        self.log: Any = seat.log if seat else logging.getLogger("gunicorn_grace")
        self.gate: Gate | None = None
        if seat is not None and self.settings.trigger != OFF:
            token = self.settings.trigger_token
            secret = token.reveal().decode("utf-8", "surrogateescape") if token else None
            self.gate = Gate(self.settings.trigger, secret, seat.cells[ARBITER])
        self._refusal_logged = -REFUSAL_LOG_INTERVAL

    def situation(self) -> Situation:
        """What the answers are given from, now."""
        return self.seat.situation() if self.seat else Situation(Phase.SERVING)

    def is_trigger(self, kind: Kind, environ: WSGIEnvironment) -> bool:
        """Whether this is ``?down=true``, which is always ours unless ``grace_trigger`` is off."""
        query = environ.get("QUERY_STRING")
        return bool(
            query
            and self.gate is not None
            and kind is Kind.READINESS
            and parse_qs(query).get("down", [""])[-1].lower() == "true"
        )

    def answer(self, kind: Kind, environ: WSGIEnvironment) -> Answer:
        """The complete answer to a request for a probe path."""
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return NOT_ALLOWED
        if self.is_trigger(kind, environ):
            refused = self._trigger(environ)
            if refused is not None:
                return refused
        return self.probes.answer(kind, self.situation())

    def _trigger(self, environ: WSGIEnvironment) -> Answer | None:
        assert self.gate is not None
        assert self.seat is not None
        verdict = self.gate.admit(environ)
        reason = verdict.reason
        if verdict.allowed:
            if not self.seat.cells[HTTP_SHUT]:
                self.seat.state.trigger(Origin.HTTP)
                # With grace_readiness_delay readiness is still 200; whoever triggers is told that it worked.
                return Answer(503, "[-]shutdown failed: reason withheld\n")
            reason = "an earlier trigger was not followed by SIGTERM, so it is shut; use gunicorn-grace prestop"
        now = time.monotonic()
        if now - self._refusal_logged >= REFUSAL_LOG_INTERVAL:
            self._refusal_logged = now
            self.log.warning("gunicorn-grace: trigger refused, from %s: %s", verdict.source, reason)
        return FORBIDDEN


def send(answer: Answer, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Put an answer on the wire."""
    body = answer.body.encode()
    start_response(answer.status_line, [*answer.headers, ("Content-Length", str(len(body)))])
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]


class Probes:
    """WSGI middleware that answers the probe paths, for Django and everything else.

    :param app: the application that gets all other requests.
    """

    def __init__(self, app: WSGIApplication) -> None:
        self.app = app
        self._responder: Responder | None = None

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        responder = self._responder
        if responder is None or responder.seat is not worker.current:
            # Made in the worker, and not where the application is built: with preload_app that is the arbiter.
            responder = self._responder = Responder(worker.current)
        kind = responder.probes.paths.get(environ.get("PATH_INFO", ""))
        if kind is None:
            return self.app(environ, start_response)
        return send(responder.answer(kind, environ), environ, start_response)


class Overlay:
    """Serves the probes in front of an application that may have its own.

    While the instance is not terminating the application is asked first, so an existing ``/readyz`` keeps its meaning;
    once it is, readiness is ours. Some answers are none to a probe (:data:`NO_ANSWER`): then the core answers.
    """

    def __init__(self, app: WSGIApplication, responder: Responder) -> None:
        self.app = app
        self.responder = responder
        self.paths = responder.probes.paths
        self._not_theirs: set[tuple[str, str]] = set()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        kind = self.paths.get(environ["PATH_INFO"])
        if kind is None:
            return self.app(environ, start_response)
        return self._probe(kind, environ, start_response)

    def _probe(self, kind: Kind, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        responder = self.responder
        situation = responder.situation()
        ours = (kind is Kind.READINESS and is_terminating(situation.phase)) or responder.is_trigger(kind, environ)
        # A route is one of a path at a host, for applications that look at it.
        where = (environ["PATH_INFO"], environ.get("HTTP_HOST", ""))
        if not ours and where not in self._not_theirs:
            status, headers, body = _ask(self.app, dict(environ))
            if status[:3] not in NO_ANSWER:
                start_response(status, headers)
                return body
            body.close()
            if status[:3] == "404" and len(self._not_theirs) < LEARNED:
                self._not_theirs.add(where)
        return send(responder.answer(kind, environ), environ, start_response)


def _ask(app: WSGIApplication, environ: WSGIEnvironment) -> tuple[str, list[tuple[str, str]], ClosingIterator]:
    """Run an application until its status is known. Closing the body that comes back closes the application's.

    werkzeug.test.run_wsgi_app would do, were it not that it drops what is written with ``write()`` when it buffers, and
    raises when an error handler replaces the response, as PEP 3333 allows before anything was sent.
    """
    answer: list[Any] = []
    written: list[bytes] = []

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        answer[:] = status, headers
        return written.append

    iterable = app(environ, start_response)
    close = getattr(iterable, "close", None)
    try:
        iterator = iter(iterable)
        first: list[bytes] = []
        while not answer:
            first.append(next(iterator))
    except BaseException as error:
        if close is not None:
            close()
        if isinstance(error, StopIteration):
            raise AssertionError("the application ended without calling start_response") from None
        raise
    body = ClosingIterator(itertools.chain(written, first, iterator), [close] if close is not None else None)
    return answer[0], answer[1], body


@dataclass(eq=False)  # Two requests for one path are two.
class Request:
    """What is counted where there is no request of gunicorn's."""

    method: str
    path: str


class Counting:
    """Counts requests around the application, for worker classes that call no request hooks.

    A request is in flight until its iterable is closed (PEP 3333, "the server must call that method"). Once the
    shutdown has begun its response says ``Connection: close``: tornado and pywsgi ask no ``should_close``, and send the
    header as they get it. tornado leaves the closing to the client, and to the drain.
    """

    def __init__(self, app: WSGIApplication, seat: worker.Seat) -> None:
        self.app = app
        self.seat = seat

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        request = Request(environ["REQUEST_METHOD"], environ.get("PATH_INFO", ""))

        def shedding(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Any:
            if self.seat.state.is_terminating():
                headers = [(name, value) for name, value in headers if name.lower() != "connection"]
                headers.append(("Connection", "close"))
            return start_response(status, headers, *exc_info)

        self.seat.begin(request)
        try:
            return ClosingIterator(self.app(environ, shedding), lambda: self.seat.end(request))
        except BaseException:
            self.seat.end(request)
            raise
