"""Which addresses the coordinator may connect to: its protection against names that lead somewhere else.

An allow-list says which names may be called; whoever controls a name decides where it leads. So each address is checked
when it is connected to. Private ranges are allowed, because participants live there. Pure: the table is data.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final, Self

from app.trust import Address, Network, parse_networks

DENIED: Final[dict[str, str]] = {
    "0.0.0.0/8": "this host",
    "169.254.0.0/16": "link-local, where clouds serve credentials",
    "192.0.0.0/24": "protocol assignments",
    "192.0.2.0/24": "documentation",
    "198.51.100.0/24": "documentation",
    "203.0.113.0/24": "documentation",
    "198.18.0.0/15": "benchmarking",
    "224.0.0.0/4": "multicast",
    "240.0.0.0/4": "reserved",
    "168.63.129.16/32": "a cloud's own services",
    "100.100.100.200/32": "a cloud's own services",
    "::/128": "this host",
    "64:ff9b:1::/48": "local translation",
    "100::/64": "discard",
    "2001:2::/48": "benchmarking",
    "2001:db8::/32": "documentation",
    "3fff::/20": "documentation",
    "5f00::/16": "segment routing",
    "fd00:ec2::254/128": "a cloud's own services",
    "fe80::/10": "link-local",
    "fec0::/10": "site-local",
    "ff00::/8": "multicast",
}
"""What no participant has, and what it is."""

_TABLE: Final = {ip_network(text): what for text, what in DENIED.items()}
_LOOPBACK: Final = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
_LOW: Final = 0xFFFF_FFFF
_LOW_32: Final = tuple(ip_network(text) for text in ("::ffff:0:0/96", "::/96", "64:ff9b::/96"))
_6TO4: Final = ip_network("2002::/16")
_TEREDO: Final = ip_network("2001::/32")


@dataclass(frozen=True, slots=True)
class AddressRules:
    """The table above, with the exceptions of HOLDFAST_DENIED_ADDRESSES and HOLDFAST_ALLOWED_ADDRESSES."""

    denied: tuple[Network, ...] = ()
    allowed: tuple[Network, ...] = ()

    @classmethod
    def parse(cls, denied: str, allowed: str) -> Self:
        """Parse addresses and networks, comma-separated. Raises ValueError with a message that names the faulty one."""
        return cls(
            parse_networks("HOLDFAST_DENIED_ADDRESSES", denied), parse_networks("HOLDFAST_ALLOWED_ADDRESSES", allowed)
        )

    def fault(self, text: str, *, is_loopback_listed: bool) -> str | None:
        """Why the coordinator may not connect to this address; None if it may.

        `is_loopback_listed`: the allow-list names loopback itself, and so does the URL.
        """
        try:
            address = ip_address(text.partition("%")[0])  # a zone says which interface, and changes nothing else
        except ValueError:
            return "is no IP address"
        return self._fault(address, is_loopback_listed=is_loopback_listed)

    def _fault(self, address: Address, *, is_loopback_listed: bool) -> str | None:
        """Denied by the settings, then what is inside of it, then allowed by the settings, then the table."""
        if _is_in(address, self.denied):
            return "HOLDFAST_DENIED_ADDRESSES denies"
        if _is_in(address, _LOOPBACK):
            allowed = is_loopback_listed or _is_in(address, self.allowed)
            return None if allowed else "is loopback, which HOLDFAST_ALLOWED_ENDPOINTS must name itself"
        for inner in _embedded(address):
            if fault := self._fault(inner, is_loopback_listed=False):
                return f"contains {inner}, which {fault}"
        if _is_in(address, self.allowed):
            return None
        what = next((what for network, what in _TABLE.items() if address in network), None)
        return None if what is None else f"is denied ({what}); HOLDFAST_ALLOWED_ADDRESSES can allow it"


def _is_in(address: Address, networks: tuple[Network, ...]) -> bool:
    return any(address in network for network in networks)


def _embedded(address: Address) -> Iterator[IPv4Address]:
    """The IPv4 addresses to which packets for this address may go in the end."""
    if not isinstance(address, IPv6Address):
        return
    bits = int(address)
    if _is_in(address, _LOW_32):
        yield IPv4Address(bits & _LOW)
    elif address in _6TO4:
        yield IPv4Address(bits >> 80 & _LOW)
    elif address in _TEREDO:
        yield IPv4Address(bits >> 64 & _LOW)
        yield IPv4Address(~bits & _LOW)
