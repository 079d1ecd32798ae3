"""The answers of the probe responder, taken from the shared memory only.

The responder writes only the cells of a trigger (``trigger`` and ``platform``). The workers publish
the results of the application's checks in the memory (:mod:`gunicorn_grace.worker.publishing`), and
the newest result of each check counts. Runs in the probe responder.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from http import HTTPStatus

from ..probes.answers import METHODS, NOT_ALLOWED, Answer, Answers, Query, Situation
from ..probes.checks import Outcome, is_name
from ..probes.trigger import SwitchedOff, Trigger
from ..shared.agreed import KINDS
from ..shared.board import Board, Entry
from ..shared.cells import NS, Record
from ..shared.memory import Memory
from ..shared.phase import Kind, Phase
from ..shared.settings import Settings
from . import scraping
from .http import ProbeRequest

_NOT_FOUND = Answer(HTTPStatus.NOT_FOUND, "not found\n")


class ResponderAnswers:
    """Answers the probes of an instance from its shared memory.

    :param memory: the shared memory.
    :param settings: the settings in use.
    :param timeout: gunicorn's ``timeout`` in seconds. A worker without a heartbeat for this long
        counts as hung; with 0 none does.
    :param say: sends a line to the arbiter's log.
    :param clock: returns the monotonic clock in nanoseconds.
    :param arbiter: the arbiter's pid. This process need not be its child.
    """

    def __init__(
        self,
        memory: Memory,
        settings: Settings,
        timeout: float,
        say: Callable[[str], None],
        clock: Callable[[], int] = time.monotonic_ns,
        arbiter: int | None = None,
    ) -> None:
        self._memory = memory
        self._answers = Answers(settings, {"booted": self._is_booted, "heartbeat": self._is_alive})
        self._workers: list[Record] = []
        self._said: set[str] = set()
        self._told_of_garbage = False
        self._timeout = round(timeout * NS)
        self._say = say
        self._clock = clock
        self._trigger: Trigger | SwitchedOff = (
            Trigger(memory, settings, say, clock=lambda: self._clock() / NS, arbiter=arbiter)
            if settings.enabled
            else SwitchedOff(settings, say)
        )

    def answer(self, request: ProbeRequest) -> Answer:
        """Return the complete answer to a request."""
        target = self._answers.target(request.path)
        if target is None and request.path != scraping.PATH:
            return _NOT_FOUND
        if request.method not in METHODS:
            return NOT_ALLOWED
        if target is None:
            return scraping.scraped(self._memory) or _NOT_FOUND
        kind, check = target
        if kind is Kind.READINESS and check is None and self._trigger.is_pulled(request.query):
            return self._trigger.answer(request.environ)
        self._workers = [record for record in self._memory.records() if record.booted]
        outcomes, known = self._outcomes(kind)
        query = Query.of(request.query, request.environ.get("HTTP_ACCEPT", ""))
        situation = Situation.of(self._memory, self._clock())
        return self._answers.answer(kind, situation, outcomes, query, check=check, known=known)

    def _boards(self) -> list[Board]:
        boards = [self._memory.board(record.number) for record in self._workers]
        return [board for board in boards if board is not None]

    def _is_booted(self, situation: Situation) -> bool:
        """Pass while at least one worker has booted. A worker that answers has booted itself, but
        this process outlives the last worker. It also passes while another arbiter serves the same
        sockets."""
        return situation.upgraded or (situation.phase is not Phase.STARTING and bool(self._workers))

    def _is_alive(self, situation: Situation) -> bool:
        """Pass if a worker has sent gunicorn a heartbeat within ``timeout``.

        Without workers the check passes, because ``booted`` already fails then. It also passes
        while another arbiter serves the same sockets, because the workers of this one are leaving.
        """
        if not self._timeout or not self._boards() or situation.upgraded:
            return True
        silent = self._clock() - max(board.heartbeat for board in self._boards())
        self._tell(
            "heartbeat",
            silent > self._timeout,
            f"no worker has sent a heartbeat for {silent / NS:.0f} s",
        )
        return silent <= self._timeout

    def _outcomes(self, kind: Kind) -> tuple[list[Outcome], list[str]]:
        """Return the outcomes of the application's checks of one kind, and the names of all of
        them.

        A result that is too old or missing fails readiness. For liveness a missing result passes
        and an old one still counts, because an unknown state does not justify a restart, and
        gunicorn's ``timeout`` ends workers that hang. Start-up happens once, so its results do not
        expire, and a missing result fails.
        """
        newest: dict[str, Entry] = {}
        for entry in [entry for board in self._boards() for entry in board.entries()]:
            if not is_name(entry.name):
                self._tell_of_garbage()
                continue
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
                    f"no worker has updated its result for {age:.0f} s",
                )
            if kind is Kind.READINESS and is_stale:
                outcomes.append(Outcome(name, False))
            elif entry.known:
                outcomes.append(Outcome(name, entry.passed))
            elif kind is Kind.LIVENESS:
                outcomes.append(Outcome(name, True))
        return outcomes, list(newest)

    def _tell_of_garbage(self) -> None:
        if not self._told_of_garbage:
            self._told_of_garbage = True
            self._say(
                "a process has overwritten the shared memory: the name in the place of a check is "
                "none, and is ignored"
            )

    def _tell(self, what: str, is_bad: bool, why: str) -> None:
        """Log each change once.

        :param what: the check, as the log names it.
        :param is_bad: whether it fails now.
        :param why: the reason, if it fails.
        """
        if is_bad and what not in self._said:
            self._said.add(what)
            self._say(f"not ready, {what}: {why}")
        elif not is_bad and what in self._said:
            self._said.discard(what)
            self._say(f"{what} passes again")
