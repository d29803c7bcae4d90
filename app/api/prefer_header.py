"""The request header `Prefer` (RFC 7240): how long a client wants to wait. Pure text in, values out.

Unknown preferences are ignored, as the RFC asks.
"""

import re
from dataclasses import dataclass
from typing import Final

WAIT_MAX_S: Final = 3600.0
"""A client may wait so long for one answer, in seconds."""

_WAIT: Final = re.compile(r"^wait\s*=\s*\"?(\d{1,9}(?:\.\d{1,9})?)\"?$", re.IGNORECASE)
_PREFERENCE: Final = re.compile(r'(?:[^,"]|"(?:\\.|[^"\\])*"?)+')


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
