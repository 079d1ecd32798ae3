"""The workers and their records: totals that outlive a worker, and cells that others overwrote."""

from __future__ import annotations

import logging
import time
from types import SimpleNamespace
from typing import Any

import pytest

from gunicorn_grace.arbiter.roster import Roster
from gunicorn_grace.shared.cells import Record
from gunicorn_grace.shared.memory import Memory
from gunicorn_grace.shared.settings import Settings
from gunicorn_grace.worker.process import WorkerProcess

LOG = logging.getLogger("gunicorn.error")


@pytest.fixture
def arbiter() -> Any:
    """What a roster knows of gunicorn's arbiter."""
    return SimpleNamespace(
        WORKERS={},
        LISTENERS=[],
        reexec_pid=0,
        master_pid=0,
        systemd=False,
        cfg=SimpleNamespace(address=[], worker_class=object, reuse_port=False),
        log=LOG,
        kill_workers=lambda sig: None,
    )


@pytest.fixture
def roster(arbiter: Any, memory: Memory) -> Roster:
    return Roster(arbiter, memory)


def hire(roster: Roster, arbiter: Any, pid: int) -> tuple[Any, Record]:
    """A worker with a record, as after a fork."""
    worker = SimpleNamespace(pid=pid, age=pid)
    roster.claim(worker)
    arbiter.WORKERS[pid] = worker
    return worker, roster._memory.record(worker.grace_slot)


def test_the_totals_outlive_the_worker(roster: Roster, arbiter: Any, memory: Memory) -> None:
    """Requests, those since T0, the last arrival and what was cut off are counted once for each
    worker, dead or not."""
    workers = []
    for pid, (in_flight, cut_off, requests, since, last) in enumerate(
        [(2, 0, 10, 4, 500), (0, 3, 5, 0, 300), (1, 1, 1, 1, 400)], start=1
    ):
        worker, record = hire(roster, arbiter, pid)
        record.in_flight, record.cut_off, record.requests = in_flight, cut_off, requests
        record.since_t0, record.last_arrival = since, last
        workers.append(worker)
    assert (roster.in_flight(), roster.last_arrival(), roster.cut_off().total()) == (3, 500, 6)
    for worker in workers:
        roster.free(worker)
    assert memory.header.gone_cut_off == 6
    assert (roster.in_flight(), roster.last_arrival(), roster.cut_off().total()) == (0, 500, 6)
    assert roster.cut_off_by_worker() == [
        {"pid": 2, "requests": 3},
        {"pid": 1, "requests": 2},
        {"pid": 3, "requests": 1},
    ]
    assert list(memory.records()) == []
    assert memory.total_ever(Record.requests) == 16
    assert memory.total_ever(Record.since_t0) == 5
    assert memory.total(Record.requests) == 0


def test_whether_workers_can_be_counted_outlives_them(
    roster: Roster, arbiter: Any, memory: Memory
) -> None:
    """What an uncounted worker lost is not known, also when it is gone. The next shutdown begins
    anew."""
    worker, record = hire(roster, arbiter, 1)
    assert (roster.in_flight(), roster.known_cut_off()) == (0, 0)
    record.uncounted = 1
    roster.publish()
    assert memory.header.uncounted == 1
    assert (roster.in_flight(), roster.known_cut_off()) == (None, None)
    roster.free(worker)
    assert not roster.are_counted()
    assert memory.header.uncounted == 1
    roster.begin_counting()
    assert roster.are_counted()


def test_a_worker_counts_on_from_those_before_it(
    roster: Roster, arbiter: Any, memory: Memory
) -> None:
    """The next worker of a record adds to the record's totals; the sum over the records is that
    over all workers."""
    for age in (1, 2, 3):
        worker, record = hire(roster, arbiter, age)
        assert record.number == 0
        ours = WorkerProcess(memory, record.number, Settings(), log=None)
        for number in range(age):
            call = Call()
            ours.begin(call)
            if number:
                ours.end(call)
        roster.free(worker)
    assert memory.total_ever(Record.requests) == 1 + 2 + 3
    assert memory.header.slots_used == 1


class Call:
    """A request of no server."""

    path = "/"


def test_a_record_that_gunicorn_forgot_is_given_to_the_next(
    roster: Roster, arbiter: Any, memory: Memory
) -> None:
    """A fork that failed never reaches child_exit: its record is free once all others are taken."""
    for pid in range(memory.slot_count):
        hire(roster, arbiter, pid)
    del arbiter.WORKERS[3]
    _, record = hire(roster, arbiter, 99)
    assert record.number == 3
    last = SimpleNamespace(pid=100, age=100)
    roster.claim(last)
    assert last.grace_slot is None


@pytest.mark.parametrize("value", [-(2**63), -1, 1, 2**62, 2**63 - 1])
def test_what_others_store_is_mended(
    roster: Roster, arbiter: Any, memory: Memory, value: int
) -> None:
    """The arbiter's own cells are as it left them after each pass; the workers' cells are numbers
    that lead to no error."""
    worker, record = hire(roster, arbiter, 1)
    roster.dismiss(worker)
    dismissed = record.dismissed
    for cell in range(len(memory.cells)):
        memory.cells[cell] = value
    roster.mend()
    assert [claimed.number for claimed in memory.records()] == [0]
    assert record.dismissed == dismissed
    header = memory.header
    assert (header.slots_used, header.gone_cut_off) == (1, 0)
    assert roster.last_arrival() <= time.monotonic_ns()
    now = time.monotonic_ns()
    roster.longest_request(now)
    roster.cut_off_by_worker()
    assert set(roster.asked_to_leave(now, 0)) == set()
    assert set(roster.waiting_for_an_answer()) <= {1}
    assert set(roster.have_missed_their_dismissal()) <= {1}
    roster.free(worker)
