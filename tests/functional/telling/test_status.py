"""``gunicorn-grace status``, and what the other commands wait for, against real instances."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import gunicorn
import jsonschema
import pytest

import gunicorn_grace
from gunicorn_grace.operate.overview_text import WIDTH, schema
from gunicorn_grace.shared.phase import Phase
from support.servers import GRACE_COMMAND, HOLD, QUICK, Connect, Serve, Server, hold_a_request

pytestmark = pytest.mark.ends


def status(server: Server) -> dict[str, Any]:
    """The instance in the JSON document, which fits its schema."""
    done = server.operate("status", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    jsonschema.validate(document, schema())
    (instance,) = document["instances"]
    assert isinstance(instance, dict)
    return instance


def test_a_busy_instance_tells_all_without_being_asked(serve: Serve, connect: Connect) -> None:
    """Its only worker serves a request all the time: what it is, what it does, and since when it
    shuts down."""
    server = serve(args=("-k", "sync"), settings=HOLD)
    (worker,) = server.wait_booted(1)
    assert server.get("/").status == 200
    client = connect(server)
    release = hold_a_request(server, client)
    seen = status(server)
    assert (seen["arbiter"], seen["directory"]) == (server.arbiter_pid, str(server.cwd))
    assert (seen["application"], seen["command"][-1]) == ("service:app", "service:app")
    assert (seen["gunicorn"], seen["plugin"]) == (gunicorn.__version__, gunicorn_grace.__version__)
    assert (seen["phase"], seen["begun_by"], seen["t0"]) == ("SERVING", None, None)
    (row,) = seen["workers"]
    assert (row["pid"], row["age"], row["state"]) == (worker, 1, "serving")
    assert (row["in_flight"], row["requests"], row["since_t0"]) == (1, 2, 0)
    assert row["last_arrival"] >= 0
    assert row["heartbeat"] >= 0
    server.signal(signal.SIGTERM)
    server.wait_phase(Phase.LAME_DUCK)
    seen = status(server)
    assert (seen["phase"], seen["begun_by"], seen["is_held"]) == ("LAME_DUCK", "SIGTERM", False)
    assert seen["t0"] == pytest.approx(seen["since"])
    assert 0 < seen["seconds_left"] <= server.period
    lines = server.operate("status").stdout.splitlines()
    assert lines[0].startswith(f"arbiter {server.arbiter_pid}: service:app in /")
    assert any("begun by SIGTERM" in line for line in lines)
    assert max(map(len, lines)) <= WIDTH
    release()
    assert client.receive().status == 200


@pytest.mark.parametrize("how", ["prestop", "drain"])
def test_who_began_it(how: str, serve: Serve) -> None:
    """A trigger is named, and an operator's drain waits for ``undrain``."""
    server = serve(kind="gthread", settings=HOLD)
    server.wait_booted(2)
    if how == "drain":
        server.operate("drain")
        # At once: the arbiter may take it up as late as a second after.
        assert status(server)["is_held"]
        server.wait_line("shutdown_initiated by trigger .drain.: not ready until undrain")
    else:
        run = [*GRACE_COMMAND, "prestop", "--pid", str(server.arbiter_pid)]
        with subprocess.Popen(run, stdout=subprocess.PIPE) as hook:
            server.wait_phase(Phase.LAME_DUCK)
            seen = status(server)
            hook.terminate()
    if how == "drain":
        seen = status(server)
    assert (seen["begun_by"], seen["is_held"]) == (how, how == "drain")
    assert len(seen["workers"]) == 2
    server.signal(signal.SIGTERM)
    server.wait_for(lambda: server.memory.header.sigterm, "the SIGTERM")
    seen = status(server)
    assert (seen["begun_by"], seen["is_held"]) == (how, False)
    assert seen["sigterm"] > seen["t0"]
    assert f"begun by {how}, then SIGTERM, " in server.operate("status").stdout


def test_a_drain_does_not_say_that_what_was_cut_off_has_ended(
    serve: Serve, connect: Connect, tmp_path: Path
) -> None:
    """``drain --wait`` waits for a request that the drain limit cuts off, and fails. A drain after
    the SIGTERM holds nothing, and the verdict does not take the delay for an operator's."""
    server = serve(kind="gthread", settings={**QUICK, "termination_period": 5})
    client = connect(server)
    client.send(f"/wait?for={tmp_path / 'never'}")
    server.wait_line("slow request begins")
    server.terminate()
    server.wait_phase(Phase.LAME_DUCK)
    done = server.operate("drain", "--wait")
    assert done.returncode == 1
    assert "a SIGTERM has come: it is shutting down, and nothing holds that" in done.stdout
    assert "no request is in flight, but 1 did not end: cut off" in done.stderr
    server.assert_gone()
    assert "; no request came after T0" in server.summary()


def test_a_drain_waits_for_the_last_request_and_an_undrain_for_the_next(
    serve: Serve, connect: Connect
) -> None:
    """``drain --wait`` returns when nothing is in flight; ``undrain --wait`` when the routers have
    noticed, because a request has come. What came during the drain belongs to no later shutdown."""
    server = serve(kind="gthread", settings=HOLD)
    client = connect(server)
    release = hold_a_request(server, client)
    pid = str(server.arbiter_pid)
    with subprocess.Popen(
        [*GRACE_COMMAND, "drain", "--wait", "--pid", pid], stdout=subprocess.PIPE, text=True
    ) as drain:
        assert drain.stdout is not None
        assert "not ready until undrain" in drain.stdout.readline()
        assert drain.poll() is None
        release()
        assert client.receive().status == 200
        assert "no request is in flight" in drain.stdout.readline()
        assert drain.wait(20) == 0
    assert server.get("/").status == 200
    server.wait_in_flight(0)
    assert sum(row["since_t0"] for row in status(server)["workers"]) == 1
    with subprocess.Popen(
        [*GRACE_COMMAND, "undrain", "--wait", "--pid", pid], stdout=subprocess.PIPE, text=True
    ) as undrain:
        assert undrain.stdout is not None
        assert undrain.stdout.readline().endswith(": serving\n")
        assert undrain.poll() is None
        assert server.get("/").status == 200
        assert "a request has come" in undrain.stdout.readline()
        assert undrain.wait(20) == 0
    assert sum(row["since_t0"] for row in status(server)["workers"]) == 0
