"""The log says where the code of a request is that does not end, and what else keeps a worker."""

from __future__ import annotations

import os
import signal

import pytest

from support.servers import HOLD, QUICK, WORKERS, Connect, Serve

pytestmark = pytest.mark.ends

PLACE = r", at \S+/service\.py:\d+ in "
SLOW = r", at \S+/(service\.py:\d+ in slow|speech\.py:\d+ in say)$"
"""The application may just be telling that it has begun."""


@pytest.mark.long(but="sync")
def test_an_aborted_request_is_named_by_its_place(
    kind: str, serve: Serve, connect: Connect
) -> None:
    """gunicorn's ``timeout`` ends a hung worker by SIGABRT: not the handler that runs then is
    named, but the line of the application that it has interrupted."""
    args = ("--timeout", "2") if kind == "sync" else ()
    server = serve(args=(*WORKERS[kind], "-w", "1", *args), settings=HOLD)
    connect(server).send("/slow?s=60")
    pid = server.wait_pid("slow request begins in ")
    if kind != "sync":  # Their main thread is not in the request, and beats.
        os.kill(pid, signal.SIGABRT)
    server.wait_line("in flight when the worker was aborted, and cut off: GET /slow .*" + SLOW)


@pytest.mark.long(but="gthread")
def test_an_interrupted_request_is_named_by_its_place(
    kind: str, serve: Serve, connect: Connect
) -> None:
    """SIGQUIT and Ctrl-C too."""
    server = serve(kind=kind, settings=HOLD)
    connect(server).send("/slow?s=60")
    server.wait_line("slow request begins in ")
    server.signal(signal.SIGQUIT)
    server.wait_line("in flight when the worker was interrupted, and cut off: GET /slow .*" + SLOW)


@pytest.mark.parametrize("end", ["drain", "SIGINT"])
def test_a_greenlet_that_does_not_yield_is_named(end: str, serve: Serve, connect: Connect) -> None:
    """No other greenlet of its worker can run, so a signal handler logs it: at the end of the
    drain, and at SIGINT, once."""
    server = serve(kind="gevent", args=("-w", "1"), settings=QUICK)
    connect(server).send("/busy?s=60")
    server.wait_line("slow request begins in ")
    when = "1 s before the end of the drain"
    server.terminate()
    if end == "SIGINT":
        when = "when the worker was interrupted, and cut off"
        server.wait_line("shutdown_initiated")
        server.signal(signal.SIGINT)
    line = server.wait_line(f"in flight {when}: GET /busy .*" + PLACE + "busy$")
    assert server.wait(20) == 0
    assert server.output.count(line) == 1
    assert " 1 cut off" in server.summary()


@pytest.mark.parametrize("kind", ["sync", "gthread"])
def test_a_thread_that_keeps_a_worker_is_named(kind: str, serve: Serve) -> None:
    """No request is left, but Python waits for a thread of the application: the log names it and
    its place, not the worker's own threads."""
    server = serve(kind=kind, args=("-w", "1"), settings=QUICK)
    assert server.get("/keep").status == 200
    server.terminate()
    line = server.wait_line(
        "no request is left 1 s before the end of the drain, but the worker is "
    )
    assert line.partition("kept by ")[2].startswith("thread 'uploader' at ")
    assert line.endswith("in upload")
    assert server.wait(20) == 0
    assert " 0 cut off" in server.summary()
