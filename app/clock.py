"""The coordinator's clock: seconds since the epoch that never go backwards while the process runs.

It goes by the monotonic clock and follows another one: the database's, which all replicas share, or the machine's,
where one process has the database to itself. Asks nobody; maintenance/clock_sync.py does.
"""

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

SLEW: Final = 0.001
"""By this share a clock that is ahead goes slower, until the one that it follows has caught up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What another clock said, and between which moments of this process's monotonic clock it was asked."""

    time: float
    asked_at: float
    answered_at: float


def elapsed_s() -> float:
    """The monotonic clock. On Linux one that keeps running while the machine sleeps, because holds expire meanwhile."""
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


def wall_s() -> float:
    """The machine's clock, which anybody may set."""
    return time.time()


class Clock:
    """Goes by the monotonic clock from `start` on, and moves forward, never backwards, to what it follows."""

    def __init__(self, start: float, *, elapsed: Callable[[], float] = elapsed_s) -> None:
        self.elapsed: Final = elapsed
        self._lock = threading.Lock()
        self._line = self._first = elapsed(), start, 1.0
        """A moment of the monotonic clock, the time then, and how fast the time goes from there."""

    def __call__(self) -> float:
        return self._now()

    def steady(self) -> float:
        """The time as if nothing had been followed since the start: whoever sets a clock doesn't move it."""
        since, at, rate = self._first
        return at + (self.elapsed() - since) * rate

    def follow(self, sample: Sample) -> float:
        """Move forward to what another clock says, or go slower for a while; returns by how much it was ahead.

        The other clock had reached its time before the answer came, and not before it was asked. So a slow answer tells
        little, but nothing wrong.
        """
        with self._lock:
            elapsed = self.elapsed()
            own = self._at(elapsed)
            earliest = sample.time + (elapsed - sample.answered_at)
            latest = sample.time + (elapsed - sample.asked_at)
            ahead_s = own - earliest if own < earliest else max(0.0, own - latest)
            self._line = elapsed, max(own, earliest), 1.0 if ahead_s <= 0 else 1.0 - SLEW
            return ahead_s

    def not_before(self, reached: float) -> None:
        """Move forward to this time, which the clock that this one follows has reached."""
        if self._now() >= reached:
            return
        with self._lock:
            elapsed = self.elapsed()
            if self._at(elapsed) < reached:
                self._line = elapsed, reached, 1.0

    def _now(self) -> float:
        since, at, rate = self._line
        return at + (self.elapsed() - since) * rate

    def _at(self, elapsed: float) -> float:
        since, at, rate = self._line
        return at + (elapsed - since) * rate


class DatabaseClock(Clock):
    """Follows the clock of the database that replicas share. Start it with what the database says."""

    @classmethod
    def started(cls, sample: Sample, *, elapsed: Callable[[], float] = elapsed_s) -> "DatabaseClock":
        """A clock that starts with this sample. It is never ahead of the database's: it is behind by the way back."""
        return cls(sample.time + (elapsed() - sample.answered_at), elapsed=elapsed)


class MachineClock(Clock):
    """Follows the machine's clock, forward at each look: after a pause of the machine nothing else tells of it."""

    def __init__(self, wall: Callable[[], float] = wall_s, *, elapsed: Callable[[], float] = elapsed_s) -> None:
        self._wall = wall
        super().__init__(wall(), elapsed=elapsed)

    def __call__(self) -> float:
        self.not_before(self._wall())
        return self._now()
