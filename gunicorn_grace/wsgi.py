"""The probes in front of a WSGI application: the overlay that is always there, and a middleware for
those who ask.

Thin adapters: :class:`Responder` turns an environ into an
:class:`~gunicorn_grace.probes.answers.Answer`, and everything else only puts it on the wire. Runs
in worker processes; outside gunicorn every answer is that of a serving instance.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .arbiter.lifecycle import Origin
from .probes.answers import FORBIDDEN, NOT_ALLOWED, TRIGGERED, Answer, Query, Situation, Target
from .probes.answers import Probes as Core
from .probes.checks import Kind, Outcome, Run, registry
from .probes.trigger import Trigger
from .shared.phase import Phase, is_terminating
from .shared.settings import Settings
from .worker import process as worker

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

NO_ANSWER = frozenset({"301", "302", "303", "307", "308", "400", "401", "403", "404", "405", "421"})
"""What an application says that has no probe there: no such route (404, 405), a host that it does
not trust (400, 421), a login that it wants first (401, 403, a redirect). Any other answer is one, a
429 or a 503 among them."""

ANSWERED = "gunicorn_grace.answered"
"""Put into the environ by whoever of ours has answered it, for an overlay that is further out."""

METHODS = frozenset({"GET", "HEAD"})

LEARNED = 64
"""How many paths-at-hosts the overlay remembers as not the application's own."""


@dataclass(frozen=True)
class Question:
    """A probe whose checks have been begun.

    :param situation: as it was then.
    :param known: the names of the application's checks of its kind.
    :param begun: those that decide: outcomes that are kept, and the runs that give the others.
    """

    probes: Core
    target: Target
    query: Query
    situation: Situation
    known: tuple[str, ...]
    begun: list[Outcome | Run]

    def is_known(self) -> bool:
        """Whether :meth:`answer` returns without waiting."""
        return all(isinstance(one, Outcome) or one.is_known() for one in self.begun)

    def answer(self, again: Callable[[], Situation]) -> Answer:
        """The answer. Waits for the checks, at most for the longest of their timeouts.

        :param again: gives the situation anew, for when it had to wait: the shutdown may have begun
            meanwhile.
        """
        outcomes = [one if isinstance(one, Outcome) else one.outcome() for one in self.begun]
        waited = any(isinstance(one, Run) for one in self.begun)
        situation = again() if waited else self.situation
        kind, check = self.target
        return self.probes.answer(
            kind, situation, outcomes, self.query, check=check, known=self.known
        )


class Responder:
    """Answers the probes of this process, the trigger included.

    :param seat: the worker's place in the shared memory; ``None`` outside gunicorn.
    """

    def __init__(self, seat: worker.Seat | None, settings: Settings | None = None) -> None:
        self.seat = seat
        self.settings = settings or (seat.settings if seat else Settings())
        self.probes = seat.probes if seat else Core(self.settings)
        self.log: Any = seat.log if seat else logging.getLogger("gunicorn_grace")
        self.trigger: Trigger | None = None
        if seat is not None:
            state = seat.state
            self.trigger = Trigger(
                state,
                self.settings,
                lambda: state.trigger(Origin.HTTP),
                lambda line: self.log.warning("gunicorn-grace: %s", line),
            )

    def situation(self) -> Situation:
        """What the answers are given from, now."""
        return self.seat.situation() if self.seat else Situation(Phase.SERVING)

    def is_trigger(self, target: Target, environ: WSGIEnvironment) -> bool:
        """Whether this is ``?down=true``, which is always ours unless ``grace_trigger`` is off."""
        return (
            self.trigger is not None
            and target == (Kind.READINESS, None)
            and self.trigger.is_pulled(environ.get("QUERY_STRING"))
        )

    def answer(self, target: Target, environ: WSGIEnvironment) -> Answer:
        """The complete answer to a request for a probe path. Waits for the application's checks, if
        they have to run, at most for the longest of their timeouts."""
        environ[ANSWERED] = True
        return self.refuse(target, environ) or self.ask(target, environ).answer(self.situation)

    def refuse(self, target: Target, environ: WSGIEnvironment) -> Answer | None:
        """The answer to what is no question: a wrong method, the trigger."""
        if environ["REQUEST_METHOD"] not in METHODS:
            return NOT_ALLOWED
        if self.trigger is None or not self.is_trigger(target, environ):
            return None
        return TRIGGERED if self.trigger.pull(environ) else FORBIDDEN

    def ask(self, target: Target, environ: WSGIEnvironment) -> Question:
        """Begin to answer. Does not wait for the checks that it begins."""
        kind, check = target
        query = Query.of(environ.get("QUERY_STRING", ""), environ.get("HTTP_ACCEPT", ""))
        situation, known = self.situation(), registry.names(kind)
        begun: list[Outcome | Run] = []
        if known and self.probes.asks_checks(kind, situation):
            begun = registry.begin(kind, exclude=query.exclude if check is None else (), only=check)
        return Question(self.probes, target, query, situation, known, begun)

    def knows(self, target: Target) -> bool:
        """Whether the check that a path names is one."""
        kind, check = target
        return check is None or check in self.probes.checks[kind] or check in registry.names(kind)

    def has_failed(self, target: Target, environ: WSGIEnvironment) -> Answer | None:
        """Our answer, if a check of the application's that is registered with us does not pass."""
        if (
            target.check is not None
            or environ["REQUEST_METHOD"] not in METHODS
            or not registry.names(target.kind)
        ):
            return None
        answer = self.answer(target, environ)
        return None if answer.status == 200 else answer


def send(
    answer: Answer, environ: WSGIEnvironment, start_response: StartResponse
) -> Iterable[bytes]:
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
            # Made in the worker, and not where the application is built: with preload_app that is
            # the arbiter.
            responder = self._responder = Responder(worker.current)
        target = responder.probes.target(environ.get("PATH_INFO", ""))
        if target is None:
            return self.app(environ, start_response)
        return send(responder.answer(target, environ), environ, start_response)


class Overlay:
    """Serves the probes in front of an application that may have its own.

    While the instance is not terminating the application is asked first, so an existing ``/readyz``
    keeps its meaning; once it is, readiness is ours. Some answers are none to a probe
    (:data:`NO_ANSWER`): then the core answers. Checks that are registered with us count beside the
    application's own answer: it passes if both do.
    """

    def __init__(self, app: WSGIApplication, responder: Responder) -> None:
        self.app = app
        self.responder = responder
        self._not_theirs: set[tuple[str, str]] = set()
        self.serve = self._as_function()
        """The same as a function, which is called in fewer steps than an object: every request
        comes here."""

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return self.serve(environ, start_response)

    def _as_function(self) -> WSGIApplication:
        app, probes, probe = self.app, self.responder.probes, self._probe
        paths, prefixes = probes.paths, probes.prefixes

        def serve(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            path = environ["PATH_INFO"]
            if path in paths or path.startswith(prefixes):
                target = probes.target(path)
                if target is not None:
                    return probe(target, environ, start_response)
            return app(environ, start_response)

        return serve

    def _probe(
        self, target: Target, environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        responder = self.responder
        ours = self._is_ours(target) or responder.is_trigger(target, environ)
        # A route is one of a path at a host, for applications that look at it.
        where = (environ["PATH_INFO"], environ.get("HTTP_HOST", ""))
        if not ours and where not in self._not_theirs:
            asked = dict(environ)
            status, headers, body = _ask(self.app, asked)
            if status[:3] not in NO_ANSWER:
                theirs = status[0] == "2" and ANSWERED not in asked
                failed = responder.has_failed(target, environ) if theirs else None
                if failed is None:
                    start_response(status, headers)
                    return body
                body.close()
                return send(failed, environ, start_response)
            body.close()
            # Only what is a probe of ours: names that somebody makes up would fill the memory.
            if status[:3] == "404" and len(self._not_theirs) < LEARNED and responder.knows(target):
                self._not_theirs.add(where)
        return send(responder.answer(target, environ), environ, start_response)

    def _is_ours(self, target: Target) -> bool:
        """Whether the application is not even asked: for readiness, once the shutdown has begun."""
        if target.kind is not Kind.READINESS or not self.responder.knows(target):
            return False
        return is_terminating(self.responder.situation().phase)


class Closing:
    """A response's body, and what is called when the server closes it: each of these, in turn, also
    if one raises.

    It is werkzeug's ``ClosingIterator`` without werkzeug, of which no part can be imported without
    its HTTP server and its test client: 36 ms and 1 MiB in each worker, also where the application
    is Django's.
    """

    def __init__(self, body: Iterable[bytes], *closes: Callable[[], object]) -> None:
        self._body = iter(body)
        self._closes = closes

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return next(self._body)

    def close(self) -> None:
        """Called by the server in any case, once (PEP 3333)."""
        with contextlib.ExitStack() as stack:
            for close in reversed(self._closes):
                stack.callback(close)


def _closes(body: Iterable[bytes]) -> list[Callable[[], object]]:
    """The ``close`` of an application's iterable, if it has one."""
    return [body.close] if hasattr(body, "close") else []


def _ask(
    app: WSGIApplication, environ: WSGIEnvironment
) -> tuple[str, list[tuple[str, str]], Closing]:
    """Run an application until its status is known. Closing the body that comes back closes the
    application's.

    werkzeug.test.run_wsgi_app would do, were it not that it drops what is written with ``write()``
    when it buffers, and raises when an error handler replaces the response, as PEP 3333 allows
    before anything was sent.
    """
    answer: list[Any] = []
    written: list[bytes] = []

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        answer[:] = status, headers
        return written.append

    iterable = app(environ, start_response)
    closes = _closes(iterable)
    try:
        iterator = iter(iterable)
        first: list[bytes] = []
        while not answer:
            first.append(next(iterator))
    except BaseException as error:
        for close in closes:
            close()
        if isinstance(error, StopIteration):
            raise AssertionError("the application ended without calling start_response") from None
        raise
    return answer[0], answer[1], Closing(itertools.chain(written, first, iterator), *closes)


@dataclass(eq=False)  # Two requests for one path are two.
class Request:
    """What is counted where there is no request of gunicorn's."""

    method: str
    path: str


class Counting:
    """Counts requests around the application, for worker classes that call no request hooks.

    A request is in flight until its iterable is closed (PEP 3333, "the server must call that
    method"). Once the shutdown has begun its response says ``Connection: close``: tornado and
    pywsgi ask no ``should_close``, and send the header as they get it. tornado leaves the closing
    to the client, and to the drain.
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
            body = self.app(environ, shedding)
            return Closing(body, *_closes(body), lambda: self.seat.end(request))
        except BaseException:
            self.seat.end(request)
            raise
