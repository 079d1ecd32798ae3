"""The passes of the arbiter's loop, one by one, with what another process may store in between."""

from __future__ import annotations

import importlib
import logging
import signal
import time
from types import SimpleNamespace
from typing import Any

import pytest

from gunicorn_grace.arbiter.lifecycle import Reason
from gunicorn_grace.arbiter.shutdown import Shutdown
from gunicorn_grace.shared.cells import Header
from gunicorn_grace.shared.memory import Memory
from gunicorn_grace.shared.phase import Origin, Phase
from gunicorn_grace.shared.settings import Settings


@pytest.fixture
def arbiter() -> Any:
    """What a shutdown knows of gunicorn's arbiter. It has one worker, and takes no other alarm."""
    worker = SimpleNamespace(pid=1, age=1)
    return SimpleNamespace(
        WORKERS={1: worker},
        LISTENERS=[],
        reexec_pid=0,
        master_pid=0,
        systemd=False,
        cfg=SimpleNamespace(reuse_port=False, address=[], graceful_timeout=30, worker_class=object),
        log=logging.getLogger("gunicorn.error"),
        grace_wake=None,
        kill_worker=lambda pid, sig: None,
        kill_workers=lambda sig: None,
    )


@pytest.fixture
def shutdown(arbiter: Any, memory: Memory, monkeypatch: pytest.MonkeyPatch) -> Shutdown:
    """An instance that serves."""
    made = Shutdown(arbiter, memory, Settings())
    monkeypatch.setattr(made.timer, "set", lambda interval: None)
    made.roster.claim(arbiter.WORKERS[1])
    memory.record(0).booted = 1
    made.step()
    assert made.progress.phase is Phase.SERVING
    return made


def test_a_trigger_that_is_overwritten_while_it_is_taken_up_counts(
    shutdown: Shutdown, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was decided on is what is entered: the cell may be another one a moment later."""
    memory.trigger(Origin.DRAIN)
    t0 = memory.t0()
    in_flight = shutdown.roster.in_flight

    def overwrite() -> int:
        memory.header.trigger = 0
        return in_flight()

    monkeypatch.setattr(shutdown.roster, "in_flight", overwrite)
    shutdown.step()
    assert shutdown.progress.phase is Phase.LAME_DUCK
    assert shutdown.progress.origin is Origin.DRAIN
    assert abs(shutdown.progress.t0 - t0) < 1_000_000_000
    assert shutdown.progress.reasons[Phase.LAME_DUCK] is Reason.TRIGGER
    shutdown.step()
    assert memory.phase() is Phase.LAME_DUCK


class Noted(Header):
    """A header that notes the order in which its cells are stored."""

    __slots__ = ("order",)

    def __init__(self, header: Header) -> None:
        super().__init__(header.cells, header.begin)
        object.__setattr__(self, "order", [])

    def __setattr__(self, name: str, value: int) -> None:
        if name not in ("cells", "begin"):
            self.order.append(name)
        super().__setattr__(name, value)


def test_back_to_serving_is_one_step_for_every_reader(shutdown: Shutdown, memory: Memory) -> None:
    """The phase is stored first and ``consumed`` last: in between the old trigger is in force, so
    no callback takes the end of this shutdown for the beginning of another."""
    memory.trigger(Origin.DRAIN)
    shutdown.step()
    memory.header.undrain = time.monotonic_ns()
    memory.header = noted = Noted(memory.header)
    shutdown.step()
    assert shutdown.progress.phase is Phase.SERVING
    assert noted.order.index("phase") < noted.order.index("t0") < noted.order.index("consumed")


def test_a_phase_is_stored_after_what_belongs_to_it(shutdown: Shutdown, memory: Memory) -> None:
    """A reader that sees LAME_DUCK finds T0 and the deadline."""
    memory.header = noted = Noted(memory.header)
    shutdown.on_sigterm()
    shutdown.step()
    order = noted.order
    assert order.index("sigterm") < order.index("t0") < order.index("deadline")
    assert order.index("deadline") < order.index("phase")


def test_a_trigger_is_neither_lost_nor_older_than_the_last_look(
    shutdown: Shutdown, memory: Memory
) -> None:
    """A trigger that says it came long ago begins now; what cannot be one is cleared and told
    once."""
    looked_at = shutdown.observer.looked_at
    memory.trigger(Origin.PRESTOP, 8)
    shutdown.step()
    assert shutdown.progress.t0 >= looked_at
    assert shutdown.progress.origin is Origin.PRESTOP


@pytest.mark.parametrize("value", [2**62 | 3, 1 << 40, 7])
def test_what_cannot_be_a_trigger_is_cleared(
    value: int, shutdown: Shutdown, memory: Memory, caplog: pytest.LogCaptureFixture
) -> None:
    """In the future, or of no origin that another process has: one line, and the next one counts."""
    memory.header.trigger = value
    shutdown.step()
    shutdown.step()
    assert not memory.is_terminating()
    assert caplog.text.count("is not a trigger") == 1
    assert memory.trigger(Origin.PRESTOP)
    shutdown.step()
    assert shutdown.progress.phase is Phase.LAME_DUCK


@pytest.mark.parametrize(
    ("worker_class", "keeps"), [("sync.SyncWorker", False), ("gthread.ThreadWorker", True)]
)
def test_only_connections_that_are_kept_alive_have_to_be_told(
    worker_class: str, keeps: bool, arbiter: Any, shutdown: Shutdown
) -> None:
    """Where the sockets were handed over and there is no delay, sync workers are dismissed at once:
    they close each connection after its response. Others first say so for a while."""
    module, name = worker_class.split(".")
    arbiter.systemd = True
    arbiter.worker_class = getattr(importlib.import_module(f"gunicorn.workers.{module}"), name)
    arbiter.cfg.settings = {
        "grace_shutdown_delay": SimpleNamespace(given=False),
        "graceful_timeout": SimpleNamespace(value=30),
    }
    dismissed: list[int] = []
    arbiter.kill_workers = dismissed.append
    shutdown.use(Settings())
    shutdown.on_sigterm()
    for _ in range(4):
        shutdown.step()
    assert shutdown.progress.phase is Phase.DRAINING
    assert (signal.SIGTERM in dismissed) is not keeps
