"""SIGTERM to the whole process group, with a handler of the application's in front of the
worker's."""

from __future__ import annotations

import importlib.util
import signal

import pytest

from support.servers import QUICK, Connect, Serve

UVICORN = "uvicorn_worker.UvicornWorker"
NEEDS = {
    "gevent": "gevent",
    "tornado": "tornado",
    "asgi": "gunicorn.workers.gasgi",
    UVICORN: "uvicorn_worker",
}
RUNS = "the application's handler runs"

CASES = [
    ("sync", "import"),
    ("gthread", "import"),
    ("gevent", "import"),
    ("gevent", "gevent"),
    ("gevent", "install"),
    ("sync", "install"),
    ("tornado", "import"),
    ("asgi", "import"),
    ("asgi", "loop"),
    ("asgi", "startup"),
    (UVICORN, "import"),
    (UVICORN, "loop"),
    (UVICORN, "startup"),
    (UVICORN, "uvicorn"),
]


@pytest.mark.ends
@pytest.mark.long(but=("gthread-import", "gevent-gevent", f"{UVICORN}-uvicorn", f"{UVICORN}-loop"))
@pytest.mark.parametrize(("kind", "how"), CASES, ids=lambda value: str(value))
def test_the_applications_own_handler_waits_for_the_dismissal(
    kind: str, how: str, serve: Serve, connect: Connect
) -> None:
    """The worker serves on, what is in flight completes, and the handler runs when the arbiter
    dismisses the worker. The log names it in one line."""
    needs = NEEDS.get(kind)
    if needs is not None and importlib.util.find_spec(needs) is None:
        pytest.skip(f"no {needs} here")
    is_asgi = kind in ("asgi", UVICORN)
    server = serve(
        "own_sigterm:asgi" if is_asgi else "own_sigterm:app",
        args=("-k", kind, *(("--threads", "4") if kind == "gthread" else ())),
        settings=QUICK | {"shutdown_delay": 1},
        env={"HOW": how},
    )
    server.wait_booted(1)
    if how == "install":
        assert server.get("/install").status == 200
    line = server.wait_line("the application has a SIGTERM handler of its own")
    assert "own_sigterm.py:" in line
    in_flight = connect(server)
    in_flight.send("/slow?s=2")
    server.wait_line("slow request begins")
    server.signal_group(signal.SIGTERM)
    server.wait_for(lambda: server.memory.header.drain, "the end of the delay")
    assert RUNS not in server.output.split("lame_duck_ended")[0]
    assert in_flight.receive().status == 200
    in_flight.close()
    server.wait_line(RUNS)
    server.assert_gone()
    assert "0 cut off" in server.summary()
    assert server.output.count("has a SIGTERM handler of its own") == 1
    assert server.output.count("Booting worker") == 1, server.output


@pytest.mark.ends
@pytest.mark.parametrize("how", ["nowhere", "import"])
def test_a_handler_that_the_application_takes_back_is_not_called(how: str, serve: Serve) -> None:
    """The application installs a handler and then puts back the one that it found: nothing, or the
    handler that it installed when it was imported."""
    server = serve("own_sigterm:app", args=("-k", "sync"), settings=QUICK, env={"HOW": how})
    server.wait_booted(1)
    assert server.get("/for-a-while").status == 200
    server.terminate()
    server.assert_gone()
    assert server.output.count(RUNS) == (1 if how == "import" else 0)
