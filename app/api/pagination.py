"""Cursors: where a page of a list ended, as an opaque text."""

import base64
import binascii
import json
from typing import Any, Final

from app.protocol.transaction_id import is_id
from holdfast.wire import is_portable

CURSOR_CHARS_MAX: Final = 200


def cursor_of(*parts: str | float) -> str:
    """An opaque cursor that says where a page ended."""
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode().rstrip("=")


def parse_cursor(cursor: str, *types: type) -> tuple[Any, ...]:
    """The parts of a cursor. Raises ValueError when it is none of ours."""
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        parts = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (ValueError, binascii.Error, RecursionError) as error:
        raise ValueError("not a cursor") from error
    if not isinstance(parts, list) or [type(part) for part in parts] != list(types) or not is_portable(parts):
        raise ValueError("not a cursor")
    if any(isinstance(part, int) and not 0 <= part < 2**63 for part in parts):
        raise ValueError("not a cursor")
    if any(isinstance(part, str) and not is_id(part) for part in parts):
        raise ValueError("not a cursor")
    return tuple(parts)
