"""Whom the coordinator believes: under which names it is asked, and which proxies say whom they ask for.

Pure, and resolves no names: a name that an attacker controls may resolve to anything, loopback included.
"""

import ipaddress
import re
from dataclasses import dataclass
from typing import Final, Self

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

LOOPBACK_HOSTS: Final = "localhost,127.0.0.0/8,[::1]"
"""Who only listens on loopback is asked under these names. No web page can make one of them its own."""
ANY_HOST: Final = "*"
HOST_CHARS_MAX: Final = 255

_AUTHORITY: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(\d{0,5}))?")
_ENTRY: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|(?:\*\.)?[A-Za-z0-9._-]+(?:/\d{1,2})?)(?::(\d{1,5}))?")


@dataclass(frozen=True, slots=True)
class Authority:
    """A host, in lower case and without the root's dot, and a port if there is one; `address` if it is one."""

    host: str
    port: int | None
    address: Address | None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse what follows `Host:`. Raises ValueError if it is not a host with, perhaps, a port."""
        match = _AUTHORITY.fullmatch(text) if len(text) <= HOST_CHARS_MAX else None
        if match is None:
            raise ValueError("not a host")
        host, port = match[1].lower().removesuffix("."), int(match[2]) if match[2] else None
        if not host or (port is not None and port > 65535):
            raise ValueError("not a host, or not a port")
        address = parse_address(host.strip("[]"))
        if address is None and host.startswith("["):
            raise ValueError("not an IPv6 address")
        return cls(host, port, address)


@dataclass(frozen=True, slots=True)
class _HostPattern:
    host: str
    network: Network | None
    port: int | None

    def matches(self, asked: Authority) -> bool:
        if self.port not in (None, asked.port):
            return False
        if self.network is not None:
            return asked.address is not None and asked.address in self.network
        if self.host.startswith("*."):
            return asked.address is None and asked.host.endswith(self.host[1:])
        return self.host == asked.host


@dataclass(frozen=True, slots=True)
class TrustedHosts:
    """The parsed form of HOLDFAST_TRUSTED_HOSTS."""

    text: str
    any: bool
    patterns: tuple[_HostPattern, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `host:port, …`: names, `*.` and a name, addresses, networks; without a port any port; `*` is any host.

        Raises ValueError with a message that names the faulty entry.
        """
        entries = [entry for part in text.split(",") if (entry := part.strip())]
        if not entries:
            raise ValueError(f"HOLDFAST_TRUSTED_HOSTS: names no host; write names, such as {LOOPBACK_HOSTS}, or *")
        patterns = tuple(_host_pattern(entry) for entry in entries if entry != ANY_HOST)
        return cls(text, ANY_HOST in entries, patterns)

    def trusts(self, asked: Authority | None) -> bool:
        """`asked` is None where an old client doesn't say whom it asks."""
        return self.any or (asked is not None and any(pattern.matches(asked) for pattern in self.patterns))


@dataclass(frozen=True, slots=True)
class TrustedProxies:
    """The parsed form of HOLDFAST_TRUSTED_PROXIES."""

    networks: tuple[Network, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse addresses and networks, comma-separated. Raises ValueError with a message that names the faulty one."""
        return cls(parse_networks("HOLDFAST_TRUSTED_PROXIES", text))

    def client(self, peer: str, forwarded_for: str) -> str:
        """The address that a request comes from: the last one that no trusted proxy has.

        `forwarded_for` is read from its end, where the nearest proxy wrote. What is no address ends the search, because
        whoever stands before it could have written anything.
        """
        if not self.networks:
            return peer
        hops = [_hop(text) for text in forwarded_for.split(",")]
        client = parse_address(peer)
        while hops and client is not None and any(client in network for network in self.networks):
            nearer = hops.pop()
            if nearer is None:
                break
            client = nearer
        return peer if client is None else str(client)


def is_loopback(host: str) -> bool:
    """Whether who listens on `host` can be reached from this machine only."""
    address = parse_address(host)
    return host == "localhost" if address is None else address.is_loopback


def parse_networks(setting: str, text: str) -> tuple[Network, ...]:
    """Addresses and networks, comma-separated. Raises ValueError with a message that names the faulty one."""
    networks = []
    for entry in filter(None, (part.strip() for part in text.split(","))):
        network = _network(entry.strip("[]"))
        if network is None:
            raise ValueError(f"{setting}: {entry!r} must be an address or a network, such as 10.0.0.0/8")
        networks.append(network)
    return tuple(networks)


def parse_address(text: str) -> Address | None:
    """An IP address without a zone, an IPv4 address in IPv6 as the former; None if it is none."""
    try:
        address = ipaddress.ip_address(text) if "%" not in text else None
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _host_pattern(entry: str) -> _HostPattern:
    match = _ENTRY.fullmatch(entry)
    host = match[1].lower().removesuffix(".") if match else ""
    port = int(match[2]) if match and match[2] else None
    network = _network(host.strip("[]"))
    if not host or (network is None and (host.startswith("[") or "/" in host)) or (port or 0) > 65535:
        raise ValueError(
            f"HOLDFAST_TRUSTED_HOSTS: {entry!r} must have the form host or host:port, "
            "for example holdfast.internal, *.internal, 10.0.0.0/8 or [::1]:8000"
        )
    return _HostPattern(host, network, port)


def _hop(text: str) -> Address | None:
    """An address, to which some proxies add a port."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    return parse_address(text)


def _network(text: str) -> Network | None:
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        return None
