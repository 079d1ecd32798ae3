"""The overlay: it answers the probes in front of a WSGI application, which need not be changed for
it. Runs in workers."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..probes.answers import Target
from ..probes.ownership import Ownership, request_of
from .answering import ANSWERED, WorkerAnswers, send
from .closing import Closing, closes_of

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


class Overlay:
    """Answers the probes in front of an application that may have its own.

    Until the shutdown begins, the application is asked first, so an existing ``/readyz`` keeps its
    meaning. From then on the plugin alone answers readiness. The plugin also answers if the
    application's status shows that it has no probe there (:mod:`gunicorn_grace.probes.ownership`).
    The application's own answer and the checks registered with the plugin both count: the probe
    passes only if both pass.

    :param app: the application.
    :param answers: answers the probes of this process.
    :ivar serve: the overlay as a WSGI application. It is a function because every request calls it,
        and a function is called in fewer steps than an object.
    """

    def __init__(self, app: WSGIApplication, answers: WorkerAnswers) -> None:
        self.app = app
        self.answers = answers
        self._ownership = Ownership()
        self.serve: WSGIApplication = self._as_function()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return self.serve(environ, start_response)

    def _as_function(self) -> WSGIApplication:
        app, answers, probe = self.app, self.answers.answers, self._probe
        paths, prefixes = answers.paths, answers.prefixes

        def serve(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            path = environ["PATH_INFO"]
            if path in paths or path.startswith(prefixes):
                target = answers.target(path)
                if target is not None:
                    return probe(target, environ, start_response)
            return app(environ, start_response)

        return serve

    def _probe(
        self, target: Target, environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        answers = self.answers
        ours = answers.is_ours(target) or answers.is_trigger(target, environ)
        # Only existing probes are remembered, because invented names would fill the memory.
        request = request_of(environ) if not ours and answers.knows(target) else None
        if not ours and not self._ownership.is_refused(request):
            asked = dict(environ)
            status, headers, body = _ask(self.app, asked)
            path, host = environ["PATH_INFO"], environ.get("HTTP_HOST", "")
            if self._ownership.learn(path, host, request, status[:3]):
                theirs = status[0] == "2" and ANSWERED not in asked
                failed = answers.has_failed(target, environ) if theirs else None
                if failed is None:
                    start_response(status, headers)
                    return body
                body.close()
                return send(failed, environ, start_response)
            body.close()
        return send(answers.answer(target, environ), environ, start_response)


def _ask(
    app: WSGIApplication, environ: WSGIEnvironment
) -> tuple[str, list[tuple[str, str]], Closing]:
    """Run an application until its status is known. Closing the returned body closes the
    application's body.

    ``werkzeug.test.run_wsgi_app`` is not used for two reasons. It drops data that is written with
    ``write()`` when it buffers. It also raises when an error handler replaces the response, which
    PEP 3333 allows before anything was sent.

    :returns: the status, the headers and the body.
    :raises AssertionError: the application ended without calling ``start_response``.
    """
    answer: list[Any] = []
    written: list[bytes] = []

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        answer[:] = status, headers
        return written.append

    iterable = app(environ, start_response)
    closes = closes_of(iterable)
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
