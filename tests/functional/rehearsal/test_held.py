"""Streams and WebSockets among the requests of a rehearsal, with a real ASGI worker."""

from __future__ import annotations

import pytest

from gunicorn_grace.rehearsal.load.tally import ConnectionKind
from gunicorn_grace.rehearsal.plan import GRACE, Plan
from gunicorn_grace.rehearsal.report.text import notes
from gunicorn_grace.rehearsal.run import play
from support.paths import EXAMPLES

pytest.importorskip("fastapi", reason="no FastAPI for this Python")

pytestmark = pytest.mark.once


def test_the_example_for_fastapi_loses_no_stream_and_no_websocket() -> None:
    """One of two instances deleted under uvicorn-worker: no request, no stream and no WebSocket is
    lost. WebSockets that were open there were closed with 1012, and their clients found the other
    instance."""
    plan = Plan(
        "main:app",
        instances=2,
        rate=20,
        lag=0.5,
        args=["--worker-class", "uvicorn_worker.UvicornWorker"],
        env={"GRACE_SHUTDOWN_DELAY": "1", "GRACE_MIN_DELAY": "0"},
        stream_path="/stream",
        websocket_path="/echo",
        held=6,
        warm_up=40,
        cool_down=40,
        cwd=str(EXAMPLES / "asgi"),
    )
    result = play(plan, GRACE)
    assert result.flawless, result.tally.lost_records
    (deleted,) = result.gone
    for kind in (ConnectionKind.STREAM, ConnectionKind.WEBSOCKET):
        ended = [record for record in result.tally.records if record.kind is kind]
        assert len(ended) >= plan.held
        assert deleted.endpoint in {record.endpoint for record in ended}
    closed = [record for record in result.tally.records if record.close_code is not None]
    assert {(record.endpoint, record.close_code) for record in closed} == {(deleted.endpoint, 1012)}
    assert any("with a close frame (1012)" in note for note in notes([result]))
