"""Whether a URL lies under a participant's base URL, however either of them is written. Pure, and resolves no names."""

import posixpath
from functools import lru_cache
from typing import Final

import httpx

from app.trust import is_loopback

URLS_MAX: Final = 4096
"""Size of the cache of parsed URLs."""

_PORTS: Final = {"http": 80, "https": 443}
_LOOPBACK: Final = "localhost"

Place = tuple[str, str, int | None, tuple[str, ...]]
"""Scheme, host, port, and the segments of the path."""


def lies_under(url: str, base_url: str) -> bool:
    """Whether `url` is this base URL, or one below it. Both are valid URLs."""
    *where, path = _place(url)
    *base_where, base_path = _place(base_url)
    return where == base_where and path[: len(base_path)] == base_path


@lru_cache(URLS_MAX)
def _place(url: str) -> Place:
    """All names and addresses of loopback are one, and so are `/a`, `//a/`, `/%61` and `/b/../a`."""
    parsed = httpx.URL(url)
    host = parsed.raw_host.decode("ascii").lower().removesuffix(".")
    path = posixpath.normpath(f"/{parsed.path}")
    segments = tuple(segment for segment in path.split("/") if segment)
    return parsed.scheme, _LOOPBACK if is_loopback(host) else host, parsed.port or _PORTS[parsed.scheme], segments
