"""Ends: SIGTERM again, ``end-delay``, SIGINT, SIGQUIT."""

from __future__ import annotations

import signal

import pytest

from gunicorn_grace.shared.phase import Phase
from support.servers import HOLD, LONG_DRAIN, Connect, Serve, begin_a_request, hold_a_request


@pytest.mark.long(but="gthread")
def test_sigterm_again_changes_nothing(kind: str, serve: Serve, connect: Connect) -> None:
    """However soon or late it is repeated: the delay goes on, and the drain cuts off nothing of
    what is in flight."""
    server = serve(kind=kind, settings=HOLD)
    client = connect(server)
    release = hold_a_request(server, client)
    deadlines = set()
    for phase in (Phase.LAME_DUCK, Phase.DRAINING):
        server.lead_to(phase)
        deadlines.add(server.memory.header.deadline)
        for _ in range(3):
            seen = server.mark()
            server.signal(signal.SIGTERM)
            server.wait_line("Handling signal: term", after=seen)
        assert server.memory.header.phase == phase
    assert len(deadlines) == 1, "the clock goes on"
    release()
    assert client.receive().status == 200
    client.close()
    assert server.wait(20) == 0, server.output
    assert "0 cut off" in server.summary()


@pytest.mark.long(but=("SIGINT-sync", "SIGQUIT-gevent"))
@pytest.mark.parametrize(
    ("name", "kind"),
    [("SIGINT", "sync"), ("SIGQUIT", "gthread"), ("SIGINT", "gthread"), ("SIGQUIT", "gevent")],
)
def test_ctrl_c_names_what_it_cuts_off(
    name: str, kind: str, serve: Serve, connect: Connect
) -> None:
    """SIGINT and SIGQUIT in SERVING end the instance promptly, and the log names each request that
    was cut off."""
    server = serve(kind=kind, settings=HOLD, args=LONG_DRAIN)
    begin_a_request(server, connect(server), "/slow?s=50")
    server.signal(signal.Signals[name])
    server.wait_line("in flight when the worker was interrupted, and cut off: GET /slow for")
    assert server.wait_exit(10), server.output
    assert "shutdown_initiated" not in server.output


@pytest.mark.long
@pytest.mark.parametrize("where", ["before", "behind"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT], ids=["SIGINT", "SIGQUIT"])
def test_ctrl_c_ends_a_gthread_worker_that_is_submitting_a_request(
    number: signal.Signals, where: str, serve: Serve, connect: Connect
) -> None:
    """The main thread holds the lock of its pool, for which gunicorn's own handler would wait until
    SIGKILL; or a thread of the pool has just been started, and is not among those that the
    interpreter wakes."""
    args = ("-k", "gthread", "--threads", "4", "-w", "1")
    server = serve("submitting:app", args=args, env={"WHERE": where}, ready=False)
    server.wait_booted(1)
    connect(server).send("/")
    server.wait_line("submitting")
    server.signal(number)
    assert server.wait(20) == 0, server.output
    assert "SIGKILL" not in server.output
