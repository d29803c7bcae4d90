"""How much of the exhaustive searches is run: all of it, or with SEARCH_EVERY=12 a twelfth of the cases of each.

These are the crash matrices' first faults, the pairs of kinds, the seeded bugs, and a branch's next two steps. What is
there is still counted in full.
"""

import os
import zlib
from collections.abc import Sequence
from typing import Final, TypeVar

EVERY: Final = int(os.environ.get("SEARCH_EVERY", "1"))

MARIADB_EVERY: Final = int(os.environ.get("MARIADB_EVERY", "1"))
"""Of the tests that run on each database, which share runs on MariaDB; conftest.py leaves out the others."""

_Case = TypeVar("_Case")


def share(cases: Sequence[_Case], every: int = EVERY) -> Sequence[_Case]:
    """Every nth of these cases, and at least one; the first one's place depends on how many they are."""
    return cases[len(cases) % every % len(cases) :: every]


def is_in_share(name: str, every: int) -> bool:
    """Whether what has this name is in an nth of everything: always the same."""
    return zlib.crc32(name.encode()) % every == 0
