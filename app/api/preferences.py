"""The request headers that begin and get understand: `Prefer` (RFC 7240) and `Idempotency-Key`.

Pure text in, values out; unknown preferences are passed over, as the RFC asks.
"""

import re
from dataclasses import dataclass
from typing import Final

from app.models import KEY_CHARS_MAX

WAIT_MAX_S: Final = 3600.0
"""A client may wait so long for one answer, in seconds."""

_WAIT: Final = re.compile(r"^wait\s*=\s*\"?(\d{1,9}(?:\.\d{1,9})?)\"?$", re.IGNORECASE)
_PREFERENCE: Final = re.compile(r'(?:[^,"]|"(?:\\.|[^"\\])*"?)+')
_TRACEPARENT: Final = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")
_QUOTED: Final = re.compile(r'^"((?:[\x20-\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"$')


@dataclass(frozen=True, slots=True)
class Preferences:
    """What the client prefers: to wait so many seconds, or not at all. None: it says nothing."""

    wait_s: float | None = None
    respond_async: bool = False

    @property
    def applied(self) -> dict[str, str]:
        """The header that says which preferences were honoured."""
        parts = ["respond-async"] if self.respond_async else []
        if self.wait_s is not None:
            parts.append(f"wait={self.wait_s:g}")
        return {"Preference-Applied": ", ".join(parts)} if parts else {}


def parse_prefer(headers: list[str]) -> Preferences:
    """Read all `Prefer` headers of a request; a repeated preference counts the first time it is given.

    A comma inside a quoted value separates nothing.
    """
    wait_s: float | None = None
    respond_async = False
    for preference in _PREFERENCE.findall(",".join(headers)):
        token = preference.split(";", 1)[0].strip()
        match = _WAIT.match(token)
        if match and wait_s is None:
            wait_s = min(float(match.group(1)), WAIT_MAX_S)
        respond_async = respond_async or token.lower() == "respond-async"
    return Preferences(wait_s, respond_async)


def parse_traceparent(header: str | None) -> str | None:
    """The header as it came when it is one of W3C Trace Context, level 1; else None, as the standard asks."""
    match = _TRACEPARENT.fullmatch(header or "")
    if match is None or not int(match[1], 16) or not int(match[2], 16):
        return None
    return match[0]


def parse_idempotency_key(header: str) -> str:
    """The key in an `Idempotency-Key` header: a quoted string, or the bare key that many clients send.

    Raises ValueError saying what is wrong with it.
    """
    text = header.strip()
    match = _QUOTED.match(text)
    key = re.sub(r"\\(.)", r"\1", match.group(1)) if match else text
    if match is None and '"' in text:
        raise ValueError('Idempotency-Key: send it in double quotes, such as "order-4711"')
    if not 1 <= len(key) <= KEY_CHARS_MAX or not key.isascii() or not key.isprintable():
        raise ValueError(f"Idempotency-Key: 1 to {KEY_CHARS_MAX} printable ASCII characters, please")
    return key
