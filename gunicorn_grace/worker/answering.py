"""How a worker answers a probe: it starts the checks and waits for their results.

:class:`WorkerAnswers` turns the environ of a request into an
:class:`~gunicorn_grace.probes.answers.Answer`. The overlay, the middlewares and the blueprint only
send that answer. Outside gunicorn every answer is that of a serving instance. Runs in workers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..probes.answers import METHODS, NOT_ALLOWED, Answer, Answers, Query, Situation, Target
from ..probes.checks import Outcome, Run, registry
from ..probes.trigger import SwitchedOff, Trigger
from ..shared.phase import Kind, Phase, is_terminating
from ..shared.settings import Settings
from . import probes_only
from .process import WorkerProcess

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

ANSWERED = "gunicorn_grace.answered"
"""A key of the environ. An inner layer of the plugin sets it when it has answered, so that an outer
overlay does not answer again."""


@dataclass(frozen=True)
class Question:
    """A probe whose checks have been started.

    :ivar answers: the probes of this instance.
    :ivar target: the question that the path asks.
    :ivar query: the options of the request.
    :ivar situation: the state of the instance when the checks were started.
    :ivar known: the names of the application's checks of this kind.
    :ivar begun: the checks that count: kept outcomes, and runs for the others.
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
        """Return the answer. Waits for the checks, at most for the longest of their timeouts.

        :param again: reads the situation again. It is called after waiting, because the shutdown
            may have begun meanwhile.
        """
        outcomes = [one if isinstance(one, Outcome) else one.outcome() for one in self.begun]
        waited = any(isinstance(one, Run) for one in self.begun)
        situation = again() if waited else self.situation
        kind, check = self.target
        return self.answers.answer(
            kind, situation, outcomes, self.query, check=check, known=self.known
        )


class WorkerAnswers:
    """Answers the probes of this process, including the trigger.

    :param worker: this worker; ``None`` outside gunicorn, or if the plugin is switched off.
    :param settings: the settings to use outside gunicorn; ``None`` means the defaults. A worker
        uses its own settings instead.
    """

    def __init__(self, worker: WorkerProcess | None, settings: Settings | None = None) -> None:
        self.worker = worker
        ours = worker or probes_only.this_worker
        self.settings: Settings = ours.settings if ours else settings or Settings()
        self.answers: Answers = worker.answers if worker else Answers(self.settings)
        self.log: Any = ours.log if ours else logging.getLogger("gunicorn_grace")
        self.trigger: Trigger | SwitchedOff | None = None
        if worker is not None:
            self.trigger = Trigger(worker.memory, self.settings, self._say)
        elif ours is not None:
            self.trigger = SwitchedOff(self.settings, self._say)

    def _say(self, line: str) -> None:
        self.log.warning("gunicorn-grace: %s", line)

    def situation(self) -> Situation:
        """Return the current state of the instance."""
        return self.worker.situation() if self.worker else Situation(Phase.SERVING)

    def is_trigger(self, target: Target, environ: WSGIEnvironment) -> bool:
        """Whether this is ``?down=true``. The plugin always handles it, unless ``grace_trigger`` is
        off."""
        return (
            self.trigger is not None
            and target == (Kind.READINESS, None)
            and self.trigger.is_pulled(environ.get("QUERY_STRING"))
        )

    def answer(self, target: Target, environ: WSGIEnvironment) -> Answer:
        """Return the complete answer to a request for a probe path.

        If the application's checks have to run, it waits for them, at most for the longest of their
        timeouts.
        """
        environ[ANSWERED] = True
        return self.refuse(target, environ) or self.ask(target, environ).answer(self.situation)

    def refuse(self, target: Target, environ: WSGIEnvironment) -> Answer | None:
        """Answer a request that is not a question: one with a wrong method, or a trigger. Return
        ``None`` for all others."""
        if environ["REQUEST_METHOD"] not in METHODS:
            return NOT_ALLOWED
        if self.trigger is None or not self.is_trigger(target, environ):
            return None
        return self.trigger.answer(environ)

    def ask(self, target: Target, environ: WSGIEnvironment) -> Question:
        """Start the checks for a probe. Does not wait for them."""
        kind, check = target
        query = Query.of(environ.get("QUERY_STRING", ""), environ.get("HTTP_ACCEPT", ""))
        situation, known = self.situation(), registry.names(kind)
        begun: list[Outcome | Run] = []
        if known and self.answers.asks_checks(kind, situation):
            begun = registry.begin(kind, exclude=query.exclude if check is None else (), only=check)
        return Question(self.answers, target, query, situation, known, begun)

    def knows(self, target: Target) -> bool:
        """Whether the target is a whole probe, or a single check that exists."""
        kind, check = target
        return check is None or check in self.answers.checks[kind] or check in registry.names(kind)

    def is_ours(self, target: Target) -> bool:
        """Whether the plugin answers without asking the application: for readiness, once the
        shutdown has begun."""
        if target.kind is not Kind.READINESS or not self.knows(target):
            return False
        return is_terminating(self.situation().phase)

    def have_checks(self, target: Target, environ: WSGIEnvironment) -> bool:
        """Whether the checks that are registered with the plugin count in addition to the
        application's own answer."""
        return (
            target.check is None
            and environ["REQUEST_METHOD"] in METHODS
            and bool(registry.names(target.kind))
        )

    def has_failed(self, target: Target, environ: WSGIEnvironment) -> Answer | None:
        """Return the plugin's answer if a registered check of the application fails, or if the
        shutdown has begun while the application was asked; otherwise ``None``."""
        if not self.is_ours(target) and not self.have_checks(target, environ):
            return None
        answer = self.answer(target, environ)
        return None if answer.status == 200 else answer


def send(
    answer: Answer, environ: WSGIEnvironment, start_response: StartResponse
) -> Iterable[bytes]:
    """Send an answer through WSGI."""
    body = answer.body.encode()
    start_response(answer.status_line, [*answer.headers, ("Content-Length", str(len(body)))])
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]
