"""An application that serves a second port from the same process, with a server of gevent's."""

from __future__ import annotations

from collections.abc import Mapping

import service
from gevent.server import StreamServer

app = service.app

second = StreamServer(("127.0.0.1", 0), lambda sock, address: sock.sendall(b"second\n"))


@app.get("/second")
def start(query: Mapping[str, str]) -> str:
    second.start()
    return str(second.server_port)
