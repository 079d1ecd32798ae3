"""``service``, and a route that stops the whole worker process, also where gevent has patched what
sleeps."""

from __future__ import annotations

import ctypes

from service import Query, app
from speech import say


@app.get("/block")
def block(query: Query) -> str:
    say("slow request begins")
    ctypes.CDLL(None).usleep(int(float(query["s"]) * 1_000_000))
    return "blocked\n"
