"""The workers of an instance and their records in the shared memory.

Everything here runs in the arbiter's main thread. In gunicorn 22 and 23 :meth:`Roster.free` runs in
a signal handler, so it logs nothing. A worker writes its record while it lives, so a record is
input here: its values are used as numbers, never as pids.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from ..shared.agreed import POKE
from ..shared.cells import LONGEST_WINDOW, Lost, Record
from ..shared.memory import SLOTS, Memory
from .queues import AcceptQueues


class Roster:
    """The workers and their records.

    :ivar are_dismissed: whether all workers were told to leave. From then on none is replaced.
    :ivar gave_up_forking: why workers that die are no longer replaced; empty while they are.
    :ivar queues: the accept queues, which count the requests that are lost in them.
    :ivar lost: for each worker that ended with unanswered requests since T0: its pid, and how many.

    :param arbiter: gunicorn's arbiter.
    :param memory: the shared memory.
    """

    def __init__(self, arbiter: Any, memory: Memory) -> None:
        self._arbiter = arbiter
        self._memory = memory
        self._workers: dict[int, Any] = {}
        self._dismissed: dict[int, int] = {}
        self._slots_used = 0
        self._gone_last_arrival = 0
        self._gone = self._gone_before = Lost()
        self._are_counted = True
        self._told_of_garbage = False
        self.queues: AcceptQueues = AcceptQueues(arbiter)
        self.lost: list[tuple[int, int]] = []
        self.are_dismissed = False
        self.gave_up_forking = ""

    # -- coming and going ----

    def claim(self, worker: Any) -> None:
        """Give a record to a worker that is about to be forked. If all records are taken, the
        worker serves but is not counted."""
        number = self._free_number()
        worker.grace_slot = number
        if number is None:
            self._arbiter.log.warning(
                "gunicorn-grace: all %d slots are taken: worker of age %d is not counted",
                SLOTS,
                worker.age,
            )
            return
        self._workers[number] = worker
        self._dismissed.pop(number, None)
        self._slots_used = max(self._slots_used, number + 1)
        self._memory.claim(number, worker.age)

    def _free_number(self) -> int | None:
        for number in range(self._memory.slot_count):
            if number not in self._workers:
                return number
        # All records are taken. Some may belong to workers that never reach child_exit, because
        # their fork failed or gunicorn forgot them in kill_worker (ESRCH).
        alive = set(map(id, self._arbiter.WORKERS.values()))
        for number, worker in list(self._workers.items()):
            if id(worker) not in alive:
                self._free(number)
                return number
        return None

    def free(self, worker: Any) -> None:
        """Take back the record of a dead worker, and count the requests that it has lost."""
        number = getattr(worker, "grace_slot", None)
        if number is not None and self._workers.get(number) is worker:
            self._free(number)

    def _free(self, number: int) -> None:
        record = self._memory.record(number)
        self._gone_last_arrival = max(self._gone_last_arrival, self._arrival(record))
        self._are_counted = self._are_counted and not record.uncounted
        lost = record.would_lose()
        if lost.total():
            self._gone = self._gone.plus(lost)
            self.lost.append((self._workers[number].pid, lost.total()))
        record.claimed = 0
        self.publish()
        self._workers.pop(number, None)

    def bury(self) -> None:
        """Count the requests that are lost at the very end. gunicorn has killed the workers that
        were left, and does not reap them any more."""
        for number in list(self._workers):
            self._free(number)
        self.queues.end()
        self.publish()

    def dismiss(self, worker: Any) -> None:
        """Mark a worker as dismissed, before gunicorn sends it SIGTERM."""
        number = getattr(worker, "grace_slot", None)
        if number is not None and number not in self._dismissed:
            self._dismissed[number] = time.monotonic_ns()
            self._memory.record(number).dismissed = self._dismissed[number]

    def publish(self) -> None:
        """Store the totals of the workers that are gone into the header."""
        header = self._memory.header
        header.slots_used = self._slots_used
        if self._workers:
            header.uncounted = any(record.uncounted for record in self._records())
        # In gunicorn 22 and 23 a signal handler may add to the total in between, and publish it.
        known = -1
        while known != (total := self._gone.total() + self.queues.lost):
            known = header.gone_cut_off = total

    def mend(self) -> None:
        """Store the arbiter's own cells again if another process has overwritten them."""
        if not self._memory.has_its_layout():
            self._memory.publish_layout()
            self.tell_of_garbage("its layout is stored again")
        self.publish()
        for number in set(self._memory.claimed_numbers()) ^ set(self._workers):
            # In gunicorn 22 and 23 a signal handler may have freed the record, so this looks again.
            self._memory.record(number).claimed = int(number in self._workers)
        for number in list(self._workers):
            record, known = self._memory.record(number), self._dismissed.get(number, 0)
            if record.dismissed != known:
                record.dismissed = known

    def tell_of_garbage(self, what: str) -> None:
        """Log once that another process has overwritten the shared memory.

        :param what: what the arbiter does about it.
        """
        if not self._told_of_garbage:
            self._told_of_garbage = True
            self._arbiter.log.error(
                "gunicorn-grace: a process has overwritten the shared memory: %s", what
            )

    # -- looking ----

    def _records(self) -> list[Record]:
        return [self._memory.record(number) for number in list(self._workers)]

    def _living(self) -> Iterator[tuple[Any, Record]]:
        """Yield the workers that gunicorn knows, each with its record."""
        for number, worker in list(self._workers.items()):
            if self._arbiter.WORKERS.get(worker.pid) is worker:
                yield worker, self._memory.record(number)

    def has_booted(self) -> bool:
        """Whether any worker has booted."""
        return any(record.booted for record in self._records())

    def in_flight(self) -> int | None:
        """Return the requests in flight in all workers; ``None`` if they cannot be counted."""
        if not self.are_counted():
            return None
        return sum(max(0, record.in_flight) for record in self._records())

    def waiting(self) -> int:
        """Return how many requests wait in workers or in their own queues (at most 0.2 s old)."""
        return sum(max(0, record.waiting) + max(0, record.queued) for record in self._records())

    def last_arrival(self) -> int:
        """Return when the last request came, probes excluded, in nanoseconds; 0 if none came."""
        return max([*map(self._arrival, self._records()), self._gone_last_arrival])

    def _arrival(self, record: Record) -> int:
        arrival = record.last_arrival
        return arrival if 0 <= arrival <= time.monotonic_ns() else 0

    def longest_request(self, now: int) -> int:
        """Return the longest request of the last five minutes, in nanoseconds. Workers keep two
        windows of five minutes, so a request may count for up to ten.

        :param now: the monotonic clock, in nanoseconds.
        """
        longest = 0
        for record in self._records():
            age = now - record.window
            if age <= 2 * LONGEST_WINDOW:
                longest = max(longest, record.longest)
            if age <= LONGEST_WINDOW:
                longest = max(longest, record.longest_before)
        return longest

    def begin_counting(self) -> None:
        """Begin to count what a shutdown cuts off, and make workers count what waits in them."""
        self._gone_before = self._gone
        self._are_counted = True
        self.lost.clear()
        _have_waiting_counted(self._arbiter)

    def are_counted(self) -> bool:
        """Whether the requests can be counted in every worker of this shutdown."""
        return self._are_counted and not any(record.uncounted for record in self._records())

    def cut_off(self) -> Lost:
        """Return the requests that this shutdown has cut off, or would if the workers ended now."""
        # In gunicorn 22 and 23 a signal handler may free a record meanwhile. Its requests would
        # then count twice, so this counts again.
        while True:
            gone, alive = self._gone, Lost(accept_queue=self.queues.length())
            for record in self._records():
                alive = alive.plus(record.would_lose())
            if self._gone is gone:
                return gone.plus(alive).minus(self._gone_before)

    def known_cut_off(self) -> int | None:
        """Return the total of :meth:`cut_off`; ``None`` if the requests cannot be counted."""
        return self.cut_off().total() if self.are_counted() else None

    def cut_off_by_worker(self) -> list[dict[str, int]]:
        """Return :meth:`cut_off` by worker: ``pid`` and ``requests``, the most first."""
        # The living come first. A worker that is freed in between is in both, and counts once.
        found = {
            worker.pid: self._memory.record(number).would_lose().total()
            for number, worker in list(self._workers.items())
        }
        found.update(self.lost)
        most_first = sorted(found.items(), key=lambda entry: -entry[1])
        return [{"pid": pid, "requests": count} for pid, count in most_first if count]

    def asked_to_leave(self, now: int, patience: int) -> list[int]:
        """Return the pids of the workers that got a SIGTERM from a process other than the arbiter,
        and wait for their dismissal.

        :param now: the monotonic clock, in nanoseconds.
        :param patience: how long they must have waited, in nanoseconds.
        """
        return [
            worker.pid
            for worker, record in self._living()
            if record.term_seen
            and now - record.term_seen > patience
            and record.number not in self._dismissed
        ]

    def waiting_for_an_answer(self) -> list[int]:
        """Return the pids of the workers that have got a SIGTERM from any process."""
        return [worker.pid for worker, record in self._living() if record.term_seen]

    def have_missed_their_dismissal(self) -> list[int]:
        """Return the pids of dismissed workers that load the application and missed SIGTERM."""
        return [
            worker.pid
            for worker, record in self._living()
            if not record.booted and record.term_seen < self._dismissed.get(record.number, 0)
        ]

    def may_shut(self) -> bool:
        """Whether the listening sockets may be shut without an error in any worker."""
        living = [record.may_shut for _, record in self._living()]
        return all(living) and len(living) == len(self._arbiter.WORKERS)

    def own_queues_empty_since(self) -> list[int]:
        """Return for each worker since when its own accept queues are empty, in ns; 0 if not."""
        return [record.empty_since for _, record in self._living()]


def _have_waiting_counted(arbiter: Any) -> None:
    # In a sync worker no request waits, unless the worker has its own accept queue. The signal
    # would only interrupt a system call of the request that the worker serves.
    is_sync = any(cls.__name__ == "SyncWorker" for cls in arbiter.cfg.worker_class.__mro__)
    if arbiter.cfg.reuse_port or not is_sync:
        arbiter.kill_workers(POKE)
