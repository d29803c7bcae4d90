"""Parses the request headers `Idempotency-Key` and `traceparent`. No I/O."""

import re
from typing import Final

from app.storage.tables import KEY_CHARS_MAX

_TRACEPARENT: Final = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")


def parse_traceparent(header: str | None) -> str | None:
    """The header unchanged if it is valid (W3C Trace Context, level 1); otherwise None, as the standard requires."""
    match = _TRACEPARENT.fullmatch(header or "")
    if match is None or not int(match[1], 16) or not int(match[2], 16):
        return None
    return match[0]


_QUOTED: Final = re.compile(r'^"((?:[\x20-\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"$')


def parse_idempotency_key(header: str) -> str:
    """The key in an `Idempotency-Key` header: a quoted string, or the bare key that many clients send.

    Raises ValueError with a message for the client.
    """
    text = header.strip()
    match = _QUOTED.match(text)
    key = re.sub(r"\\(.)", r"\1", match.group(1)) if match else text
    if match is None and '"' in text:
        raise ValueError('Idempotency-Key: send it in double quotes, such as "order-4711"')
    if not 1 <= len(key) <= KEY_CHARS_MAX or not key.isascii() or not key.isprintable():
        raise ValueError(f"Idempotency-Key: send 1 to {KEY_CHARS_MAX} printable ASCII characters")
    return key
