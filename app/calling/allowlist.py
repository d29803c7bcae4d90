"""The allow-list of URLs that the coordinator may call: its protection against server-side request forgery.

Pure, and resolves no names: addresses.py says to which addresses they may lead.
"""

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final, Self

import httpx

_PATTERN: Final = re.compile(r"^(https?)://(\[[0-9a-fA-F:.*]+\]|[A-Za-z0-9._*-]+)(?::(\*|\d{1,5}))?/?$")
_HOST: Final = re.compile(r"[A-Za-z0-9._-]+\Z|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*\Z")
_IPV4_PATTERN: Final = re.compile(r"[\d*]+(?:\.[\d*]+)+\Z")
_IPV4: Final = re.compile(r"(?:\d{1,3}\.){3}\d{1,3}\Z")
_LOOPBACK: Final = re.compile(r"(?:localhost|127(?:\.[\d*]+){3}|::1)\Z")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
URL_CHARS_MAX: Final = 2000
NONE: Final = "none, which is the default beyond loopback"


@dataclass(frozen=True, slots=True)
class _Pattern:
    scheme: str
    host: str
    port: str


@dataclass(frozen=True, slots=True)
class AllowedEndpoints:
    """The parsed form of HOLDFAST_ALLOWED_ENDPOINTS."""

    text: str
    patterns: tuple[_Pattern, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `scheme://host-pattern:port, …`; `*` matches any part of a host, or any port.

        Raises ValueError with a message that names the faulty entry.
        """
        patterns = []
        for entry in filter(None, (part.strip() for part in text.split(","))):
            match = _PATTERN.match(entry)
            if match is None:
                raise ValueError(
                    f"HOLDFAST_ALLOWED_ENDPOINTS: {entry!r} must have the form scheme://host-pattern:port, "
                    "for example https://*.internal:443 or http://10.0.0.*:*"
                )
            scheme, host, port = match.groups()
            patterns.append(_Pattern(scheme, host.lower().strip("[]"), port or str(_DEFAULT_PORTS[scheme])))
        return cls(text, tuple(patterns))

    def base_fault(self, url: str) -> str | None:
        """As `fault`, for a participant's base URL, to which /try, /confirm and /cancel are appended."""
        if "?" in url:
            return f"{url!r} has a query; remove it, because /try, /confirm and /cancel are appended to a base URL"
        return self.fault(url)

    def fault(self, url: str) -> str | None:
        """Why the coordinator may not call `url`, as a message for the client; None if it may."""
        if len(url) > URL_CHARS_MAX or not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
            return (
                f"a URL must have at most {URL_CHARS_MAX} printable ASCII characters and no spaces or backslashes; "
                "write a host name in another alphabet in its ASCII form (xn--…)"
            )
        try:
            parsed = httpx.URL(url)
            port = _DEFAULT_PORTS.get(parsed.scheme) if parsed.port is None else parsed.port
        except (httpx.InvalidURL, ValueError):
            return f"{url!r} is not a URL"
        host = parsed.raw_host.decode("ascii")  # as it is looked up: `host` decodes xn-- names, or raises
        if parsed.scheme not in _DEFAULT_PORTS or not _HOST.match(host):
            return f"{url!r} must be an absolute http or https URL"
        if port is None or not 0 < port <= 65535:
            return f"{url!r} must have a port between 1 and 65535"
        if parsed.userinfo or parsed.fragment:
            return f"{url!r} must not have a user name, a password or a fragment, which would not be sent"
        if any(self._matches(pattern, parsed.scheme, host.lower(), str(port)) for pattern in self.patterns):
            return None
        return (
            f"{parsed.scheme}://{parsed.netloc.decode()} is not among the allowed endpoints ({self.text or NONE}); "
            "add it to HOLDFAST_ALLOWED_ENDPOINTS"
        )

    def lists_loopback(self, url: httpx.URL) -> bool:
        """Whether an entry that names loopback itself, and not by `*`, admits this URL; then the URL names it, too."""
        port = str(url.port or _DEFAULT_PORTS.get(url.scheme))
        host = url.raw_host.decode("ascii").lower()
        own = [pattern for pattern in self.patterns if _LOOPBACK.match(pattern.host)]
        return any(self._matches(pattern, url.scheme, host, port) for pattern in own)

    @staticmethod
    def _matches(pattern: _Pattern, scheme: str, host: str, port: str) -> bool:
        """A numeric pattern such as 10.0.0.* matches addresses only: 10.0.0.1.example.org doesn't match."""
        if _IPV4_PATTERN.match(pattern.host) and not _IPV4.match(host):
            return False
        return pattern.scheme == scheme and pattern.port in ("*", port) and fnmatchcase(host, pattern.host)
