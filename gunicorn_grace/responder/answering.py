"""What the probe responder answers: from the shared memory alone.

It writes to that memory only a trigger. The workers show there how the application's checks came
out (:mod:`gunicorn_grace.worker.publishing`); of each check the newest result counts. Runs in the
probe responder.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from http import HTTPStatus

from ..probes.answers import (
    FORBIDDEN,
    NOT_ALLOWED,
    TRIGGERED,
    Answer,
    Answers,
    Query,
    Situation,
)
from ..probes.checks import Outcome
from ..probes.trigger import Trigger
from ..shared.agreed import KINDS
from ..shared.board import Board, Entry
from ..shared.memory import NS, Memory, Record
from ..shared.phase import Kind, Phase
from ..shared.settings import Settings
from .http import ProbeRequest


class ResponderAnswers:
    """Answers the probes of an instance from its shared memory.

    :param memory: the shared memory.
    :param settings: the settings in use.
    :param timeout: gunicorn's, seconds: without a heartbeat for so long a worker counts as hung; 0
        never.
    :param say: takes a line for the arbiter's log.
    :param clock: the monotonic clock, in nanoseconds.
    """

    def __init__(
        self,
        memory: Memory,
        settings: Settings,
        timeout: float,
        say: Callable[[str], None],
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._memory = memory
        self._answers = Answers(settings, {"booted": self._is_booted, "heartbeat": self._is_alive})
        self._workers: list[Record] = []
        self._said: set[str] = set()
        self._timeout = round(timeout * NS)
        self._say = say
        self._clock = clock
        self._trigger = Trigger(
            memory,
            settings,
            say,
            clock=lambda: self._clock() / NS,
        )

    def answer(self, request: ProbeRequest) -> Answer:
        """The complete answer to a request."""
        target = self._answers.target(request.path)
        if target is None:
            return Answer(HTTPStatus.NOT_FOUND, "not found\n")
        if request.method not in ("GET", "HEAD"):
            return NOT_ALLOWED
        kind, check = target
        if kind is Kind.READINESS and check is None and self._trigger.is_pulled(request.query):
            return TRIGGERED if self._trigger.pull(request.environ) else FORBIDDEN
        self._workers = [record for record in self._memory.records() if record.booted]
        outcomes, known = self._outcomes(kind)
        query = Query.of(request.query, request.environ.get("HTTP_ACCEPT", ""))
        situation = Situation.of(self._memory, self._clock())
        return self._answers.answer(kind, situation, outcomes, query, check=check, known=known)

    def _boards(self) -> list[Board]:
        boards = [self._memory.board(record.number) for record in self._workers]
        return [board for board in boards if board is not None]

    def _is_booted(self, situation: Situation) -> bool:
        """A worker serves now: unlike one of them, who would say so of itself, this process sees
        that none is left."""
        return situation.upgraded or (situation.phase is not Phase.STARTING and bool(self._workers))

    def _is_alive(self, situation: Situation) -> bool:
        """One of the workers has told gunicorn within its ``timeout`` that it lives. With none of
        them there is nothing to say; and when another arbiter serves the same sockets, this one's
        workers are on their way out."""
        if not self._timeout or not self._boards() or situation.upgraded:
            return True
        silent = self._clock() - max(board.heartbeat for board in self._boards())
        self._tell(
            "heartbeat",
            silent > self._timeout,
            f"no worker gave a sign of life for {silent / NS:.0f} s",
        )
        return silent <= self._timeout

    def _outcomes(self, kind: Kind) -> tuple[list[Outcome], list[str]]:
        """How the application's checks of a kind came out, and the names of all of them.

        A result that nobody has brought up to date for too long, or that was never there, fails
        readiness. For liveness it does not: a restart is no answer to not knowing, and gunicorn's
        ``timeout`` ends workers that hang. Start-up happens once: a result stays, none is none.
        """
        newest: dict[str, Entry] = {}
        for entry in [entry for board in self._boards() for entry in board.entries()]:
            is_asked = 0 <= entry.kind < len(KINDS) and KINDS[entry.kind] is kind
            if is_asked and (entry.name not in newest or entry.known > newest[entry.name].known):
                newest[entry.name] = entry
        now, outcomes = self._clock(), []
        for name, entry in newest.items():
            is_stale = now - entry.known > entry.good_for
            if kind is Kind.READINESS and entry.known:
                age = (now - entry.known) / NS
                self._tell(
                    f"check {name}",
                    is_stale,
                    f"no worker brought its result up to date for {age:.0f} s",
                )
            if kind is Kind.READINESS and is_stale:
                outcomes.append(Outcome(name, False))
            elif entry.known:
                outcomes.append(Outcome(name, entry.passed))
            elif kind is Kind.LIVENESS:
                outcomes.append(Outcome(name, True))
        return outcomes, list(newest)

    def _tell(self, what: str, is_bad: bool, why: str) -> None:
        """Say it once for each change."""
        if is_bad and what not in self._said:
            self._said.add(what)
            self._say(f"not ready, {what}: {why}")
        elif not is_bad and what in self._said:
            self._said.discard(what)
            self._say(f"{what} is good again")
