"""The traffic before T0: the rate and the silences that the quiet test needs.

This module only computes: it uses no clock and no shared memory. Runs in the arbiter.
"""

from __future__ import annotations

from collections import deque

from ..shared.cells import HIGHEST, NS

RATE_WINDOW = 60.0
SILENCE_WINDOW = 300.0
SAMPLE_EVERY = 1.0
"""Seconds over which the rate is computed, for which a silence is remembered, and between two
samples."""


class Traffic:
    """Samples of the time before T0.

    :ivar rate: requests in 1000 seconds, over the last minute.
    """

    def __init__(self) -> None:
        self.rate: int = 0
        self._samples: deque[tuple[float, int]] = deque()
        self._silences: deque[tuple[float, float]] = deque()
        self._last_arrival = 0

    def is_due(self, now: int) -> bool:
        """Whether it is time for a sample.

        :param now: the monotonic clock, in nanoseconds.
        """
        return not self._samples or now / NS - self._samples[-1][0] >= SAMPLE_EVERY

    def sample(self, now: int, requests: int, last_arrival: int) -> None:
        """Take a sample. The true silences between two samples are not known. An upper bound is
        kept, which can only make the quiet test wait longer.

        :param now: the monotonic clock, in nanoseconds.
        :param requests: how many requests have come since the start, probes excluded.
        :param last_arrival: when the last of them came, in nanoseconds.
        """
        seconds = now / NS
        if last_arrival > self._last_arrival:
            if self._last_arrival:
                self._silences.append((seconds, (last_arrival - self._last_arrival) / NS))
            self._last_arrival = last_arrival
        self._samples.append((seconds, requests))
        while len(self._samples) > 1 and seconds - self._samples[0][0] > RATE_WINDOW:
            self._samples.popleft()
        while self._silences and seconds - self._silences[0][0] > SILENCE_WINDOW:
            self._silences.popleft()
        (then, before), (_, after) = self._samples[0], self._samples[-1]
        rate = round(1000 * (after - before) / (seconds - then)) if seconds > then else 0
        # Any worker may overwrite the counts, so the rate must be limited to what a cell can hold.
        self.rate = min(max(rate, 0), HIGHEST)

    def longest_silence(self) -> float:
        """Return the longest time without a request in the last five minutes, in seconds; 0 if it
        is not known."""
        return max((gap for _, gap in self._silences), default=0.0)
