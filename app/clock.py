"""The coordinator's clock: seconds since the epoch that never go backwards while the process runs."""

import sys
import time
from collections.abc import Callable


def anchored_clock() -> Callable[[], float]:
    """A clock that reads the wall clock once and then follows the monotonic clock.

    Deadlines and holds must not jump when the machine's time is set.
    """
    anchor = time.time() - elapsed_s()
    return lambda: anchor + elapsed_s()


def wall_clock() -> float:
    """The machine's time, which can be set: only for what others compare with a wall clock of their own."""
    return time.time()


def elapsed_s() -> float:
    """The monotonic clock. On Linux one that keeps running while the machine sleeps, because holds expire meanwhile."""
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()
