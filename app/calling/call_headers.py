"""Headers that a participant wants with each call, such as credentials of a gateway: which there may be. Pure."""

import re
from collections.abc import Mapping
from typing import Final

HEADERS_MAX: Final = 16
VALUE_CHARS_MAX: Final = 4096

OWN: Final = frozenset(
    (
        *("host", "connection", "content-length", "transfer-encoding", "te", "trailer", "upgrade", "expect"),
        *("keep-alive", "proxy-connection", "proxy-authorization", "content-type", "content-encoding"),
        *("accept", "accept-encoding", "user-agent", "idempotency-key", "traceparent"),
    )
)
"""What frames a message, and what the coordinator itself says; beside them tcc-… and webhook-…"""

_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
_VALUE: Final = re.compile(r"[!-~](?:[ -~]*[!-~])?")


def headers_fault(headers: Mapping[str, str]) -> str | None:
    """Why these can't be sent, without a word of their values; None if they can."""
    if len(headers) > HEADERS_MAX:
        return f"{len(headers)} headers given, at most {HEADERS_MAX}"
    if len({name.lower() for name in headers}) < len(headers):
        return "a header is given twice; upper and lower case are the same"
    for name, value in headers.items():
        if not _NAME.fullmatch(name):
            return f"{name[:64]!r} is no name of a header"
        if name.lower() in OWN or name.lower().startswith(("tcc-", "webhook-")):
            return f"{name} belongs to the coordinator"
        if len(value) > VALUE_CHARS_MAX or not _VALUE.fullmatch(value):
            return f"{name} must have 1 to {VALUE_CHARS_MAX} printable ASCII characters, without spaces around them"
    return None
