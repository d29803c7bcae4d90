"""How much of the exhaustive searches is run: all of it, or with SEARCH_EVERY=12 a twelfth of the cases of each.

These are the crash matrices' first faults, the pairs of kinds, the seeded bugs, and a branch's next two steps. What is
there is still counted in full.
"""

import os
from collections.abc import Sequence
from typing import Final, TypeVar

EVERY: Final = int(os.environ.get("SEARCH_EVERY", "1"))

_Case = TypeVar("_Case")


def share(cases: Sequence[_Case], every: int = EVERY) -> Sequence[_Case]:
    """Every nth of these cases, and at least one; the first one's place depends on how many they are."""
    return cases[len(cases) % every % len(cases) :: every]
