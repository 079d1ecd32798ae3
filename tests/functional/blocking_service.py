"""``service``, and a route that stops the whole worker process, also where gevent has patched what sleeps."""

from __future__ import annotations

import ctypes
import sys

from service import app, request


@app.get("/block")
def block() -> str:
    print("slow request begins", file=sys.stderr, flush=True)
    ctypes.CDLL(None).usleep(int(float(request.args["s"]) * 1_000_000))
    return "blocked\n"
