"""A worker class whose ``notify`` does more than gunicorn's: it ends a process that should not
serve any more, as pulpcore's do when their row is gone from the database."""

from __future__ import annotations

import sys

from gunicorn.workers.sync import SyncWorker
from speech import say


class StrictWorker(SyncWorker):  # type: ignore[misc]
    def notify(self) -> None:
        super().notify()
        if not self.alive:
            say("the worker's own notify() ends the process")
            sys.exit(1)
