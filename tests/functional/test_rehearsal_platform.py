"""The platform with real gunicorn: probes, hooks, roll-outs and restarts, and what is recorded of them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import gunicorn_grace
from gunicorn_grace.rehearsal.scene import PLAIN, Plan, play

APP = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with an application ``app:app``, where this package is found, installed or not."""
    package = str(Path(gunicorn_grace.__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")])))
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


def test_every_instance_has_its_life_recorded(folder: Path) -> None:
    """Of each instance when it started, listened, went and ended, in seconds since the deletion, and its memory."""
    result = play(Plan("app:app", instances=2, rate=50, lag=0.5, cwd=str(folder), warm_up=20, cool_down=20), PLAIN)
    stayed, went = result.lives
    for life in (stayed, went):
        assert life.started is not None
        assert life.listening is not None
        assert life.started < life.listening < 0
        assert life.memory > 1 << 20
    assert (stayed.deleted, stayed.t0, stayed.ended) == (None, None, None)
    assert went.deleted is not None
    assert went.t0 is not None
    assert went.ended is not None
    assert went.unrouted is not None
    assert 0 <= went.deleted <= went.t0 < went.ended
    assert went.unrouted == pytest.approx(went.deleted + 0.5)
    assert result.memory.peak >= max(stayed.memory, went.memory)
    refused = [record for record in result.tally.lost_records if record.endpoint == went.endpoint]
    assert all((result.since_t0(record) or 0.0) < 0.6 for record in refused)
    document = json.loads(json.dumps(result.as_dict()))
    assert [life["name"] for life in document["lives"]] == ["instance 1", "instance 2"]
    assert document["memory"]["peak"] == result.memory.peak
    assert document["trustworthy"] is (document["fell_behind"] == "")
