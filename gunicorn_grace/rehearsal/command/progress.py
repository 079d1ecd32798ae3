"""What is going on, said while it goes on: one line that changes on a terminal, plain lines
anywhere else.

A rehearsal is silent for as long as a shutdown takes; who sees nothing for half a minute presses
Ctrl-C. Saying something must not cost the run, though: the load generator shares this interpreter,
so records are read only once, and a terminal that is gone is no reason to stop.
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
from ..load.tally import Outcome

INTERVAL = 0.2
"""Seconds between two looks at the load."""

_BACK = "\r\x1b[K"  # to the beginning of the line, and what is there erased (ECMA-48, EL)


class Progress:
    """Tells on ``stream`` what is going on. Used in a ``with`` statement, from the thread that
    plays.

    :param stream: standard error, so that a report or JSON on standard output stays what it is.
    :param live: whether one line is written over and over; unless given, where ``stream`` is a
        terminal that can.
    """

    def __init__(self, stream: TextIO, live: bool | None = None) -> None:
        self._stream = stream
        self.live = (stream.isatty() and os.environ.get("TERM") != "dumb") if live is None else live
        self._lock = threading.Lock()
        self._line = ""
        self._since = time.monotonic()
        self._load: RunningLoad | None = None
        self._seen = self._lost = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def tell(self, line: str) -> None:
        """What begins now."""
        with self._lock:
            self._line, self._since = line, time.monotonic()
            self._write(_BACK + self._fit(line) if self.live else line + "\n")

    def watch(self, load: RunningLoad) -> None:
        """The load whose requests are counted from now on."""
        with self._lock:
            self._load, self._seen, self._lost = load, 0, 0

    def done(self, line: str) -> None:
        """What one contender came to; this line stays. Elsewhere than on a terminal the report says
        it."""
        with self._lock:
            self._load, self._line = None, ""
            if self.live:
                self._write(f"{_BACK}{self._fit(line)}\n")

    def __enter__(self) -> Progress:
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
        """The seconds since the line began, and the requests."""
        text = f", {time.monotonic() - self._since:.0f} s"
        if self._load is not None:
            new = self._load.records_after(self._seen)
            self._seen += len(new)
            self._lost += sum(record.outcome is not Outcome.OK for record in new)
            text += f": {self._seen} requests, {self._lost} lost"
        return text

    def _fit(self, text: str) -> str:
        """A line that wraps could not be written over."""
        width = shutil.get_terminal_size().columns - 1
        return text if len(text) <= width else text[: max(0, width - 3)] + "..."

    def _write(self, text: str) -> None:
        with suppress(OSError, ValueError):
            click.echo(text, file=self._stream, nl=False, color=True if self.live else None)
