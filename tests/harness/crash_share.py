"""How much of the crash matrices is run: all of it, or with CRASH_EVERY=3 a third of the first faults of each scenario.

Which third differs from one scenario to the next. All points are still counted.
"""

import os
from collections.abc import Sequence
from typing import Final, TypeVar

EVERY: Final = int(os.environ.get("CRASH_EVERY", "1"))

_Point = TypeVar("_Point")


def share(points: Sequence[_Point], every: int = EVERY) -> Sequence[_Point]:
    """Every nth of these points; the first one's place depends on how many they are."""
    return points[len(points) % every :: every]
