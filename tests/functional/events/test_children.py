"""A process that the application forks is not the worker, whatever it has inherited."""

from __future__ import annotations

import importlib.util

import pytest

from gunicorn_grace.shared.phase import Phase
from support.servers import SHORT, Connect, Serve, look

pytestmark = pytest.mark.ends

ONE = {
    "sync": ("-k", "sync"),
    "gthread": ("-k", "gthread", "--threads", "4"),
    "gevent": ("-k", "gevent"),
    "gevent_pywsgi": ("-k", "gevent_pywsgi"),
    "tornado": ("-k", "tornado"),
}
NEEDS = {"gevent": "gevent", "gevent_pywsgi": "gevent", "tornado": "tornado"}
SERVES_SEVERAL = {"gthread", "gevent", "gevent_pywsgi"}


@pytest.fixture(params=ONE)
def one(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """The arguments for one worker of each class in turn."""
    needs = NEEDS.get(request.param)
    if needs is not None and importlib.util.find_spec(needs) is None:
        pytest.skip(f"no {needs} here")
    return ONE[request.param]


@pytest.mark.long(but=("sync", "gevent"))
def test_a_childs_sigterm_is_not_its_workers(
    one: tuple[str, ...], serve: Serve, connect: Connect
) -> None:
    """Process.terminate() of a child that a request has forked: the worker serves on, and so does
    the other client's request that it has in flight."""
    server = serve("forking:app", args=one, settings=SHORT)
    (worker,) = server.wait_booted(1)
    other = connect(server) if one[1] in SERVES_SEVERAL else None
    if other is not None:
        other.send("/slow?s=3")
        server.wait_line("slow request begins")
    assert look(server.get("/terminate", timeout=20))["pid"] == worker
    (record,) = server.memory.records()
    assert (record.term_seen, record.dismissed) == (0, 0)
    if other is not None:
        assert other.receive().status == 200
    assert look(server.get("/look")) == {
        "pid": worker,
        "phase": "SERVING",
        "terminating": False,
        "seconds_left": None,
    }
    server.terminate()
    server.assert_gone()


@pytest.mark.long(but="gthread")
def test_a_child_reads_the_memory_and_writes_nothing_into_it(
    one: tuple[str, ...], serve: Serve
) -> None:
    """A child that gets SIGTERM and SIGWINCH, serves a request, takes a hold, registers a callback
    and pulls the trigger changes no cell of its worker's, and sees the phase."""
    server = serve("forking:app", args=one, settings=SHORT)
    (worker,) = server.wait_booted(1)
    server.wait_phase(Phase.SERVING)  # The arbiter stores it in its next pass.
    assert look(server.get("/child")) == {
        "pid": worker,
        "written": [],
        "phase": "SERVING",
        "this_worker": None,
    }
    server.terminate()
    server.assert_gone()
