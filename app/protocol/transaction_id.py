"""Transaction ids: UUIDs of version 7 (RFC 9562, 5.7), which sort by time.

Pure: the time and the random bytes are arguments.
"""

import re
from typing import Final

ENTROPY_BYTES: Final = 10
_ID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def new_id(now: float, entropy: bytes) -> str:
    """The id of a transaction that begins at `now`, in seconds since the epoch; `entropy` is ENTROPY_BYTES long."""
    value = int(now * 1000) << 80 | int.from_bytes(entropy)
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return _text(value)


def earliest_id(at: float) -> str:
    """A lower bound for the ids of all transactions that begin at or after this time."""
    return _text(max(0, int(at * 1000)) << 80)


def is_id(text: str) -> bool:
    """Whether `text` has the form of an id."""
    return _ID.fullmatch(text) is not None


def _text(value: int) -> str:
    digits = f"{value:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
