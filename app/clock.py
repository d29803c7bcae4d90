"""The coordinator's clock: seconds since the epoch that never go back while the process lives."""

import sys
import time
from collections.abc import Callable


def anchored_clock() -> Callable[[], float]:
    """Seconds since the epoch as they were at the start, and from there on by the monotonic clock.

    A deadline or a hold's TTL must not jump because somebody set the machine's time.
    """
    anchor = time.time() - _elapsed_s()
    return lambda: anchor + _elapsed_s()


def _elapsed_s() -> float:
    """The monotonic clock, which on Linux is to go on while the machine sleeps: holds end meanwhile too."""
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()
