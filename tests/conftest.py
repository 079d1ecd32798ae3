"""What the unit tests share: a process that nothing of an earlier test is left in."""

from __future__ import annotations

import os
from collections.abc import Iterator

import hypothesis
import pytest

from gunicorn_grace import application, checks, settings, state, worker
from gunicorn_grace.state import State

# A busy machine makes any example take long, now and then.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")


@pytest.fixture(autouse=True)
def _outside_gunicorn(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is no part of an instance, has no checks, and no setting comes from its environment."""
    for name in [name for name in os.environ if name.startswith(("GRACE_", "GUNICORN_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(settings, "_adopted", None)
    monkeypatch.setattr(state, "current", None)
    monkeypatch.setattr(worker, "current", None)
    monkeypatch.setattr(checks.registry, "_of", dict.fromkeys(checks.Kind, ()))
    monkeypatch.setattr(application, "current", None)
    monkeypatch.setattr(application, "callbacks", {phase: [] for phase in application.DECORATORS})


@pytest.fixture
def memory() -> Iterator[State]:
    """The shared memory of an instance, whose arbiter is this process."""
    made = State.create(slots=8)
    yield made
    made.close()
