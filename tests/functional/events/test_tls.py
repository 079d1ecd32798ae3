"""Over TLS."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from gunicorn_grace.shared.phase import Phase
from support.servers import HOLD, Client, Serve, hold_a_request


@pytest.mark.long(but="gthread")
def test_tls(kind: str, serve: Serve, certificate: Path, request: pytest.FixtureRequest) -> None:
    """Over TLS: readiness flips, a request in flight completes and says close, and connections that
    waited in the accept queue when the drain began, before their handshake, are served."""
    context = ssl.create_default_context(cafile=str(certificate))
    args = ("-w", "1", "--certfile", str(certificate), "--keyfile", str(certificate))
    server = serve(kind=kind, args=args, settings=HOLD, ready=False)
    server.wait_booted(1)

    def connected() -> Client:
        client = Client(server.address, context=context)
        request.addfinalizer(client.close)
        return client

    assert connected().get("/readyz", headers=(("Connection", "close"),)).status == 200
    server.lead_to(Phase.LAME_DUCK)
    assert connected().get("/readyz").status == 503
    busy = connected()
    release = hold_a_request(server, busy)
    waiting = [connected() for _ in range(3)]
    server.end_delay()
    server.wait_phase(Phase.DRAINING)
    # The only thread of a sync worker is busy: there they are answered after it, elsewhere
    # meanwhile.
    answers = [client.get("/") for client in waiting] if kind != "sync" else []
    release()
    answer = busy.receive()
    assert (answer.status, answer.body, answer.headers["connection"]) == (200, b"waited\n", "close")
    for client in [] if answers else waiting:
        answers.append(client.get("/"))
        client.close()
    assert {answer.status for answer in answers} == {200}
    for client in (busy, *waiting):
        client.close()
    assert server.wait(20) == 0, server.output
    assert "0 cut off" in server.summary()
