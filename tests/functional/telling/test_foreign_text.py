"""Nobody who sends a request can forge a line of the log, or give orders to a terminal."""

from __future__ import annotations

import importlib.util
import time

import pytest

from gunicorn_grace.shared.cells import NS
from support.servers import QUICK, Connect, Serve

pytestmark = pytest.mark.ends

DELAY = 2.0
UVICORN = "uvicorn_worker.UvicornWorker"
NEEDS = {
    "gevent_pywsgi": "gevent",
    "tornado": "tornado",
    "asgi": "gunicorn.workers.gasgi",
    UVICORN: "uvicorn_worker",
}
ENCODED = b"/x%0a%0d[2099-01-01%2000:00:00]%20[1]%20[CRITICAL]%20forged%1b[31m%c2%9b%e2%80%a8%80"
AGENT = b"a\x9b31m\x85b"
"""gunicorn 27.0 refuses other control characters in a header, and all of them in a path."""

KINDS = ("gthread", "gevent_pywsgi", "tornado", "asgi", UVICORN)


@pytest.mark.long(but=("gthread", "gevent_pywsgi"))
@pytest.mark.parametrize("kind", KINDS)
def test_a_path_of_control_characters_is_escaped(kind: str, serve: Serve, connect: Connect) -> None:
    """In the line about a late request, and in the dump of what is in flight."""
    needs = NEEDS.get(kind)
    if needs is not None and importlib.util.find_spec(needs) is None:
        pytest.skip(f"no {needs} here")
    server = serve(
        "anywhere:asgi" if kind in ("asgi", UVICORN) else "anywhere:app",
        args=("-k", kind, *(("--threads", "4") if kind == "gthread" else ())),
        settings=QUICK | {"shutdown_delay": DELAY},
        ready=False,
    )
    server.wait_booted(1)
    server.terminate()
    server.wait_for(lambda: server.memory.header.t0, "T0")
    late = server.memory.header.t0 + round(0.8 * DELAY * NS)
    server.wait_for(lambda: time.monotonic_ns() > late, "the last fifth of the delay")
    client = connect(server)
    client.sock.sendall(
        b"GET " + ENCODED + b" HTTP/1.1\r\nHost: x\r\nUser-Agent: " + AGENT + b"\r\n\r\n"
    )
    server.wait_line("in flight 1 s before")
    server.assert_gone()
    told = [text for _, text in server.lines if "gunicorn-grace" in text]
    assert any("late_request" in text for text in told)
    assert any("in flight 1 s before" in text for text in told)
    assert all(text.isascii() and text.isprintable() for text in told), told
    assert not any(text.startswith("[2099") for _, text in server.lines)
