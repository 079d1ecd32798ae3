"""Results of rehearsals that never took place, for the tests of what is told of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from gunicorn_grace.rehearsal.load.tally import ConnectionKind, RequestOutcome, RequestRecord, Tally
from gunicorn_grace.rehearsal.plan import GRACE, PLAIN, Contender, Plan
from gunicorn_grace.rehearsal.result import Gone, Life, Result

ORIGIN = 1000.0
DELETED = "127.0.0.1:40003"
STAYED = "127.0.0.1:40001"


def record(
    at: float, outcome: RequestOutcome = RequestOutcome.OK, latency: float = 0.01, **more: Any
) -> RequestRecord:
    """A request that began so many seconds after the deletion."""
    values: dict[str, Any] = {
        "kind": ConnectionKind.FRESH,
        "path": "/",
        "status": 200 if outcome is RequestOutcome.OK else None,
        "endpoint": STAYED,
        "error": "" if outcome is RequestOutcome.OK else "Connection refused",
    }
    return RequestRecord(
        started=ORIGIN + at, outcome=outcome, latency=latency, **{**values, **more}
    )


def result(
    contender: Contender = GRACE,
    *,
    lost: Sequence[RequestRecord] = (),
    seconds: int = 7,
    exited: float | None = 5.6,
    plan: Plan | None = None,
    events: Sequence[tuple[float, str]] | None = None,
    **more: Any,
) -> Result:
    """A run of so many seconds at 10 requests per second, with these losses besides, and one of
    three deleted."""
    steady = [
        record(-1 + n / 10, endpoint=DELETED if n % 3 == 0 else STAYED) for n in range(10 * seconds)
    ]
    said = (
        (0.01, "shutdown_initiated by SIGTERM: not ready for 5 s"),
        (5.0, "lame_duck_ended after 5.0 s: delay elapsed"),
        (5.5, "stopped: lame duck 5.0 s"),
    )
    if events is None:
        events = said if contender is GRACE else ()
    gone = Gone("instance 3", DELETED, 0.0, exited, exited, 0, False, None, "", tuple(events))
    life = Life(
        "instance 3",
        DELETED,
        -3.0,
        -2.5,
        readiness=((-2.4, True), (1.0, False)),
        deleted=0.0,
        t0=0.0,
        unrouted=3.0,
        ended=exited,
    )
    tally = Tally(
        sorted([*steady, *lost], key=lambda r: r.ended),
        lags=[0.001] * len(steady),
        rate=10,
        began=ORIGIN - 1,
    )
    made = Result(
        contender,
        plan or Plan("app:app", rate=10),
        tally,
        ORIGIN,
        ORIGIN + seconds - 1,
        (gone,),
        {},
        (life,),
    )
    return replace(made, **more)


def refused(*moments: float) -> list[RequestRecord]:
    """Requests that the deleted instance refused."""
    return [record(at, RequestOutcome.REFUSED, endpoint=DELETED) for at in moments]


def plain(*moments: float) -> Result:
    """A run of plain gunicorn that lost requests at these moments."""
    return result(PLAIN, lost=refused(*moments), exited=0.4)
