"""Shows the progress of a rehearsal: one line that changes on a terminal, plain lines elsewhere.

A shutdown takes a while, and a user who sees nothing for half a minute presses Ctrl-C. Showing the
progress must not disturb the run. So each record is read only once, and the run goes on if the
terminal is closed.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import TextIO

import click

from ..load.running import RunningLoad
from ..load.tally import RequestOutcome

INTERVAL = 0.2
"""Seconds between two looks at the load."""

_BACK = "\r\x1b[K"  # go to the beginning of the line and erase it (ECMA-48, EL)


class ProgressLine:
    """Writes the progress to ``stream``. Use it in a ``with`` statement, in the thread that plays.

    :param stream: standard error, so that standard output holds only the report or the JSON.
    :param live: whether one line is overwritten; None to do so if ``stream`` is a terminal that
        supports it.
    """

    def __init__(self, stream: TextIO, live: bool | None = None) -> None:
        self._stream = stream
        self.live: bool = (
            (stream.isatty() and os.environ.get("TERM") != "dumb") if live is None else live
        )
        self._lock = threading.Lock()
        self._line = ""
        self._since = time.monotonic()
        self._load: RunningLoad | None = None
        self._seen = self._lost = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def tell(self, line: str) -> None:
        """Show the step that begins now."""
        with self._lock:
            self._line, self._since = line, time.monotonic()
            self._write(_BACK + self._fit(line) if self.live else line + "\n")

    def watch(self, load: RunningLoad) -> None:
        """Count the requests of this load from now on."""
        with self._lock:
            self._load, self._seen, self._lost = load, 0, 0

    def done(self, line: str) -> None:
        """Show the result of a contender on a terminal. Elsewhere the report says it."""
        with self._lock:
            self._load, self._line = None, ""
            if self.live:
                self._write(f"{_BACK}{self._fit(line)}\n")

    def __enter__(self) -> ProgressLine:
        if self.live:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end.set()
        if self.live:
            self._thread.join()
            self._write(_BACK)

    def _run(self) -> None:
        while not self._end.wait(INTERVAL):
            with self._lock:
                if self._line:
                    self._write(_BACK + self._fit(self._line + self._counted()))

    def _counted(self) -> str:
        """Return the seconds since the line began and the numbers of requests, as text."""
        text = f", {time.monotonic() - self._since:.0f} s"
        if self._load is not None:
            new = self._load.records_after(self._seen)
            self._seen += len(new)
            self._lost += sum(record.outcome is not RequestOutcome.OK for record in new)
            text += f": {self._seen} requests, {self._lost} lost"
        return text

    def _fit(self, text: str) -> str:
        """Shorten a line, because one that wraps could not be overwritten."""
        width = shutil.get_terminal_size().columns - 1
        return text if len(text) <= width else text[: max(0, width - 3)] + "..."

    def _write(self, text: str) -> None:
        with suppress(OSError, ValueError):
            click.echo(text, file=self._stream, nl=False, color=True if self.live else None)
