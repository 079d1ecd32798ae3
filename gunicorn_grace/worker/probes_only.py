"""A worker of an instance that is switched off (``grace_enabled``): it answers the probes, and
otherwise behaves as under plain gunicorn. Runs in workers.

:data:`gunicorn_grace.worker.process.this_worker` is ``None`` in it. So all code that reads that
variable acts as it does outside gunicorn. Nothing is counted, held, called back or told to close,
and every answer is that of a serving instance.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from ..probes.answers import Answers
from ..probes.checks import registry
from ..shared.memory import Memory
from ..shared.settings import Settings
from .access_log import quieten_probes
from .counting import probe_paths
from .publishing import publish


@dataclasses.dataclass
class ProbesOnly:
    """The plugin's state in a worker of an instance that is switched off.

    :ivar settings: the settings in use.
    :ivar log: gunicorn's logger.
    :ivar memory: the memory in which the worker publishes its checks for the probe port; ``None``
        without a probe port.
    :ivar number: the number of the worker's slot in that memory; ``None`` without one.
    """

    settings: Settings
    log: Any
    memory: Memory | None = None
    number: int | None = None

    def booted(self, worker: Any) -> None:
        """Show the probe port that this worker serves, and keep probes out of the access log. Runs
        in ``post_worker_init``.

        :param worker: gunicorn's worker, whose application is loaded.
        """
        if self.memory is not None and self.number is not None:
            # First what the probe port reads, because it believes a worker that has booted.
            publish(worker, self.memory, self.number, self.settings)
            self.memory.record(self.number).booted = 1
        if not self.settings.log_probes:
            quieten_probes(worker.log, probe_paths(Answers(self.settings)))


this_worker: ProbesOnly | None = None
"""This worker, if the instance is switched off; ``None`` in any other process."""


def _leave_the_child() -> None:
    """Keep a process that the application forks from the worker from writing into the memory.

    gevent's greenlets go on in a child, and the publisher of the checks is one of them.
    """
    if this_worker is not None and this_worker.memory is not None:
        this_worker.memory.is_inherited = True


os.register_at_fork(after_in_child=_leave_the_child)


def join(worker: Any, settings: Settings, memory: Memory | None) -> None:
    """Let this process answer probes. Runs in ``post_fork``.

    :param worker: gunicorn's worker.
    :param settings: the settings in use.
    :param memory: the memory for the probe port; ``None`` without one.
    """
    global this_worker
    number = getattr(worker, "grace_slot", None)
    this_worker = ProbesOnly(settings, worker.log, memory, number)
    registry.log = worker.log
    if memory is not None and number is not None:
        record = memory.record(number)
        record.pid, record.uncounted = os.getpid(), 1
