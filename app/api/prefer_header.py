"""Parses the request header `Prefer` (RFC 7240), which says how long a client wants to wait. No I/O.

Unknown preferences are ignored, as the RFC requires.
"""

import re
from dataclasses import dataclass
from typing import Final

WAIT_MAX_S: Final = 3600.0
"""Longest wait for an answer, in seconds."""

_WAIT: Final = re.compile(r"^wait\s*=\s*\"?(\d{1,9}(?:\.\d{1,9})?)\"?$", re.IGNORECASE)
_PREFERENCE: Final = re.compile(r'(?:[^,"]|"(?:\\.|[^"\\])*"?)+')


@dataclass(frozen=True, slots=True)
class Preferences:
    """The client's preferences: how many seconds to wait (None: not stated), or not to wait at all."""

    wait_s: float | None = None
    respond_async: bool = False

    @property
    def applied(self) -> dict[str, str]:
        """The `Preference-Applied` header."""
        parts = ["respond-async"] if self.respond_async else []
        if self.wait_s is not None:
            parts.append(f"wait={self.wait_s:g}")
        return {"Preference-Applied": ", ".join(parts)} if parts else {}


def parse_prefer(headers: list[str]) -> Preferences:
    """Read all `Prefer` headers of a request. If a preference is repeated, the first one counts.

    A comma inside a quoted value does not separate preferences.
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
