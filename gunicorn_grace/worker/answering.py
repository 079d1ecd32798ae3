"""How a worker answers a probe: it asks the checks, and waits for them.

:class:`WorkerAnswers` turns the environ of a request into an
:class:`~gunicorn_grace.probes.answers.Answer`; the overlay, the middlewares and the blueprint only
put that on the wire. Outside gunicorn every answer is that of a serving instance. Worker.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..probes.answers import (
    FORBIDDEN,
    NOT_ALLOWED,
    TRIGGERED,
    Answer,
    Answers,
    Query,
    Situation,
    Target,
)
from ..probes.checks import Outcome, Run, registry
from ..probes.trigger import Trigger
from ..shared.phase import Kind, Phase
from ..shared.settings import Settings
from .process import WorkerProcess

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

ANSWERED = "gunicorn_grace.answered"
"""A key of the environ: set when one of our layers has answered, for an overlay that is further
out."""

METHODS = frozenset({"GET", "HEAD"})


@dataclass(frozen=True)
class Question:
    """A probe whose checks have been begun.

    :param situation: as it was then.
    :param known: the names of the application's checks of its kind.
    :param begun: those that decide: outcomes that are kept, and the runs that give the others.
    """

    answers: Answers
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
        return self.answers.answer(
            kind, situation, outcomes, self.query, check=check, known=self.known
        )


class WorkerAnswers:
    """Answers the probes of this process, the trigger included.

    :param worker: this worker; ``None`` outside gunicorn.
    :param settings: the settings in use; the worker's, or the defaults, unless given.
    """

    def __init__(self, worker: WorkerProcess | None, settings: Settings | None = None) -> None:
        self.worker = worker
        self.settings = settings or (worker.settings if worker else Settings())
        self.answers = worker.answers if worker else Answers(self.settings)
        self.log: Any = worker.log if worker else logging.getLogger("gunicorn_grace")
        self.trigger: Trigger | None = None
        if worker is not None:
            memory = worker.memory
            self.trigger = Trigger(
                memory,
                self.settings,
                lambda line: self.log.warning("gunicorn-grace: %s", line),
            )

    def situation(self) -> Situation:
        """What the answers are given from, now."""
        return self.worker.situation() if self.worker else Situation(Phase.SERVING)

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
        if known and self.answers.asks_checks(kind, situation):
            begun = registry.begin(kind, exclude=query.exclude if check is None else (), only=check)
        return Question(self.answers, target, query, situation, known, begun)

    def knows(self, target: Target) -> bool:
        """Whether the check that a path names is one."""
        kind, check = target
        return check is None or check in self.answers.checks[kind] or check in registry.names(kind)

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
