"""The allow-list of URLs that the coordinator may call, against server-side request forgery.

Pure; resolves no names. `localhost` and the loopback addresses are all that is allowed until configured otherwise.
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
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
URL_CHARS_MAX: Final = 2000


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
        """Read `scheme://host-pattern:port, …`; `*` stands for any part of a host and for any port.

        Raises ValueError naming the entry that can't be read.
        """
        patterns = []
        for entry in filter(None, (part.strip() for part in text.split(","))):
            match = _PATTERN.match(entry)
            if match is None:
                raise ValueError(
                    f"HOLDFAST_ALLOWED_ENDPOINTS: {entry!r} is not of the form scheme://host-pattern:port, "
                    "such as https://*.internal:443 or http://10.0.0.*:*"
                )
            scheme, host, port = match.groups()
            patterns.append(_Pattern(scheme, host.lower().strip("[]"), port or str(_DEFAULT_PORTS[scheme])))
        return cls(text, tuple(patterns))

    def base_fault(self, url: str) -> str | None:
        """The same for a participant's base URL, to which /try, /confirm and /cancel are added."""
        if "?" in url:
            return f"{url!r} has a query, but /try, /confirm and /cancel are added to a base URL"
        return self.fault(url)

    def fault(self, url: str) -> str | None:
        """What is wrong with calling `url`, in a sentence for whoever gave it; None when nothing is."""
        if len(url) > URL_CHARS_MAX or not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
            return f"a URL has at most {URL_CHARS_MAX} printable ASCII characters and no blanks"
        try:
            parsed = httpx.URL(url)
            port = _DEFAULT_PORTS.get(parsed.scheme) if parsed.port is None else parsed.port
        except (httpx.InvalidURL, ValueError):
            return f"{url!r} is not a URL"
        if parsed.scheme not in _DEFAULT_PORTS or not _HOST.match(parsed.host):
            return f"{url!r} is not an absolute http or https URL"
        if port is None or not 0 < port <= 65535:
            return f"{url!r} has no port between 1 and 65535"
        if parsed.userinfo or parsed.fragment:
            return f"{url!r} carries a user name or a fragment, which is not sent"
        if any(self._matches(pattern, parsed.scheme, parsed.host.lower(), str(port)) for pattern in self.patterns):
            return None
        return (
            f"{parsed.scheme}://{parsed.netloc.decode()} is not among the allowed endpoints ({self.text or 'none'}); "
            "add it to HOLDFAST_ALLOWED_ENDPOINTS"
        )

    @staticmethod
    def _matches(pattern: _Pattern, scheme: str, host: str, port: str) -> bool:
        """A pattern of numbers, such as 10.0.0.*, is about addresses: 10.0.0.1.example.org is none of them."""
        if _IPV4_PATTERN.match(pattern.host) and not _IPV4.match(host):
            return False
        return pattern.scheme == scheme and pattern.port in ("*", port) and fnmatchcase(host, pattern.host)
