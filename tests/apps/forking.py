"""An application that forks: what its children inherit must not act for the worker."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Mapping
from typing import Any

import service
from speech import say

import gunicorn_grace
from gunicorn_grace.shared.cells import RECORD_CELLS, Header
from gunicorn_grace.shared.phase import Origin
from gunicorn_grace.worker import process
from gunicorn_grace.worker.counting import CountedCall

app = service.app
fork = multiprocessing.get_context("fork")
RATE = Header.rate.offset
"""The arbiter writes it at any time."""


@app.get("/terminate")
def terminate(query: Mapping[str, str]) -> dict[str, Any]:
    """End a job that takes too long, as the documentation of multiprocessing says."""
    job = fork.Process(target=time.sleep, args=(2,), daemon=True)
    job.start()
    job.terminate()
    job.join(10)
    return {"pid": os.getpid(), "exit": job.exitcode}


@app.get("/child")
def child(query: Mapping[str, str]) -> dict[str, Any]:
    """Fork a child that does all that it can with what it has inherited. Which cells of the header
    and of this worker's record it has changed."""
    ours = process.this_worker
    assert ours is not None
    begin, end, memory, record = ours.begin, ours.end, ours.memory, ours.record
    end_of_record = record.begin + RECORD_CELLS
    before = memory.cells[:end_of_record].tolist()
    readable, writable = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            for sig in (signal.SIGTERM, signal.SIGWINCH):
                os.kill(os.getpid(), sig)
            call = CountedCall("GET", "/in-the-child")
            begin(call)
            with gunicorn_grace.hold("in the child"):
                gunicorn_grace.on_drain(lambda: say("a callback of the child"))
            end(call)
            record.term_seen = record.cut_off = 1
            memory.trigger(Origin.HTTP)
            seen = {"phase": str(gunicorn_grace.phase()), "this_worker": process.this_worker}
            os.write(writable, json.dumps(seen).encode())
        finally:
            os._exit(0)
    os.close(writable)
    # One read, because gevent closes the other end only in the next round of its loop. And no
    # waitpid(), because gevent's waits for a SIGCHLD that gunicorn's init_signals has taken from it.
    seen = json.loads(os.read(readable, 65536))
    os.close(readable)
    after = memory.cells[:end_of_record].tolist()
    written = [at for at, value in enumerate(after) if value != before[at] and at != RATE]
    return {"pid": os.getpid(), "written": written, **seen}
