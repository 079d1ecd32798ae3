"""``service`` with a route that a dirty worker answers (gunicorn 25 and later)."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

import service
from gunicorn.dirty import DirtyApp, get_dirty_client
from speech import say

app = service.app


class Task(DirtyApp):  # type: ignore[misc]
    def nap(self, seconds: float) -> int:
        say("a task begins")
        time.sleep(seconds)
        return os.getpid()


@app.get("/task")
def task(query: Mapping[str, str]) -> dict[str, Any]:
    return {"pid": get_dirty_client().execute("dirty_service:Task", "nap", float(query["s"]))}
