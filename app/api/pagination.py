"""Cursors: opaque text that says where a page of a list ended."""

import base64
import binascii
import json
import math
from typing import Any, Final

from app.protocol.transaction_id import is_id

CURSOR_CHARS_MAX: Final = 200


def cursor_of(*parts: str | float) -> str:
    """The cursor for these parts of a sort key."""
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode().rstrip("=")


def parse_cursor(cursor: str, *types: type) -> tuple[Any, ...]:
    """The parts of a cursor. Raises ValueError if `cursor_of` can't have made it."""
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        parts = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (ValueError, binascii.Error, RecursionError) as error:
        raise ValueError("not a cursor") from error
    if not isinstance(parts, list) or [type(part) for part in parts] != list(types):
        raise ValueError("not a cursor")
    if any(isinstance(part, float) and not math.isfinite(part) for part in parts):
        raise ValueError("not a cursor")
    if any(isinstance(part, int) and not 0 <= part < 2**63 for part in parts):
        raise ValueError("not a cursor")
    if any(isinstance(part, str) and not is_id(part) for part in parts):
        raise ValueError("not a cursor")
    return tuple(parts)
