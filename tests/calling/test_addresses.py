"""Which addresses may be connected to: ours beside the standard library's verdict, and each difference explained.

The rule is applied where a connection is made, so that no name, cache or race leads around it.
"""

import socket
from ipaddress import ip_address, ip_network
from typing import Any, Final

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.calling.addresses import DENIED, AddressRules
from app.calling.allowlist import AllowedEndpoints
from app.calling.connector import Connector
from app.calling.resolver import Address, Resolver
from app.calling.transport import Transport
from app.main import transport_of
from app.settings import Settings
from tests.harness.fault_server import FaultServer, Reply

PRIVATE: Final = "participants live in private ranges; the allow-list decides"
SERVICES: Final = "a cloud's own services, at addresses that look like any other"
HIDDEN: Final = "an IPv4 address inside, which packets go to in the end"
TABLE: Final[dict[str, tuple[bool, str]]] = {
    # address: whether it is allowed, and why that differs from the library's `is_global`
    "8.8.8.8": (True, ""),
    "2606:4700::1111": (True, ""),
    "10.0.0.7": (True, PRIVATE),
    "172.16.0.1": (True, PRIVATE),
    "192.168.1.1": (True, PRIVATE),
    "100.64.0.1": (True, PRIVATE),
    "fd12:3456::1": (True, PRIVATE),
    "127.0.0.1": (False, ""),
    "127.255.255.254": (False, ""),
    "::1": (False, ""),
    "0.0.0.0": (False, ""),
    "0.1.2.3": (False, ""),
    "::": (False, ""),
    "169.254.169.254": (False, ""),
    "169.254.0.1": (False, ""),
    "192.0.0.1": (False, ""),
    "192.0.2.1": (False, ""),
    "198.51.100.1": (False, ""),
    "203.0.113.1": (False, ""),
    "198.18.0.1": (False, ""),
    "198.19.255.255": (False, ""),
    "224.0.0.1": (False, "multicast has a scope, but no participant"),
    "239.255.255.255": (False, "multicast has a scope, but no participant"),
    "240.0.0.1": (False, ""),
    "255.255.255.255": (False, ""),
    "168.63.129.16": (False, SERVICES),
    "100.100.100.200": (False, ""),
    "fd00:ec2::254": (False, ""),
    "fe80::1": (False, ""),
    "fe80::1%eth0": (False, ""),
    "febf::1": (False, ""),
    "fec0::1": (False, "site-local: deprecated, and routed in some places"),
    "ff02::1": (False, "multicast has a scope, but no participant"),
    "64:ff9b:1::1": (False, "younger than the library's table"),
    "100::1": (False, ""),
    "5f00::1": (False, "younger than the library's table"),
    "2001:db8::1": (False, ""),
    "3fff::1": (False, "younger than the library's table"),
    "2001:2::1": (False, ""),
    "::ffff:169.254.169.254": (False, ""),
    "::ffff:127.0.0.1": (False, ""),
    "::ffff:8.8.8.8": (True, "the address inside is global"),
    "::ffff:10.0.0.7": (True, PRIVATE),
    "::169.254.169.254": (False, HIDDEN),
    "::127.0.0.1": (False, HIDDEN),
    "64:ff9b::a9fe:a9fe": (False, HIDDEN),
    "64:ff9b::7f00:1": (False, HIDDEN),
    "64:ff9b::808:808": (True, ""),
    "2002:a9fe:a9fe::1": (False, HIDDEN),
    "2002:7f00:1::": (False, HIDDEN),
    "2002:808:808::1": (True, ""),
    "2001:0:a9fe:a9fe::": (False, ""),
    "2001:0:808:808:0:0:5601:5601": (False, ""),
    "2001:0:808:808:0:0:f7f7:f7f7": (True, "both addresses inside are global"),
}
"""A difference may be gone with a later Python, whose table is younger."""


def fault(address: str, *, denied: str = "", allowed: str = "", listed: bool = False) -> str | None:
    return AddressRules.parse(denied, allowed).fault(address, is_loopback_listed=listed)


@pytest.mark.parametrize(("address", "verdict"), TABLE.items())
def test_ours_and_the_standard_librarys_verdict(address: str, verdict: tuple[bool, str]) -> None:
    ours, why = verdict
    assert (fault(address) is None) == ours
    theirs = ip_address(address).is_global
    assert ours == theirs or why, "a difference has a reason"


def test_every_network_of_the_table_is_in_the_comparison() -> None:
    compared = [ip_address(text.partition("%")[0]) for text in TABLE]
    for text in DENIED:
        network = ip_network(text)
        assert any(address in network for address in compared), text


def test_loopback_needs_a_url_that_names_it_and_an_entry_that_does() -> None:
    assert fault("127.0.0.1", listed=True) is fault("::1", listed=True) is None
    assert "loopback" in (fault("::ffff:127.0.0.1", listed=True) or "")
    assert fault("169.254.169.254", listed=True)
    assert fault("127.0.0.1", allowed="127.0.0.0/8") is None


@pytest.mark.parametrize(
    ("endpoints", "url", "listed"),
    [
        ("http://localhost:*", "http://localhost:9000/", True),
        ("http://localhost:*", "http://LOCALHOST:9000/", True),
        ("http://127.0.0.1:9000", "http://127.0.0.1:9000/", True),
        ("http://127.0.0.*:*", "http://127.0.0.2:1/", True),
        ("https://[::1]:*", "https://[::1]/", True),
        ("http://127.0.0.1:9000", "http://127.0.0.1:9001/", False),
        ("https://localhost:*", "http://localhost:443/", False),
        ("http://*:*", "http://localhost:9000/", False),
        ("http://*:*", "http://127.0.0.1:9000/", False),
        ("http://l*:*", "http://localhost:9000/", False),
        ("http://*.*.*.*:*", "http://127.0.0.1:9000/", False),
        ("http://localhost:*,http://*:*", "http://evil.test:9000/", False),
        ("http://127.0.0.1.evil.test:*", "http://127.0.0.1.evil.test/", False),
        ("http://localhost.evil.test:*", "http://localhost.evil.test/", False),
    ],
)
def test_a_star_does_not_name_loopback(endpoints: str, url: str, listed: bool) -> None:
    assert AllowedEndpoints.parse(endpoints).lists_loopback(httpx.URL(url)) == listed


def test_settings_make_exceptions_and_denials_win() -> None:
    assert fault("169.254.7.7", allowed="169.254.7.7") is None
    assert fault("169.254.7.8", allowed="169.254.7.7")
    assert fault("10.0.0.7", denied="10.0.0.0/8")
    assert fault("::ffff:10.0.0.7", denied="10.0.0.0/8"), "embedded, too"
    assert fault("10.0.0.7", denied="10.0.0.0/8", allowed="10.0.0.7")
    assert fault("64:ff9b::a9fe:a9fe", allowed="64:ff9b::/96"), "what is inside counts all the same"
    assert fault("127.0.0.1", denied="127.0.0.1", listed=True)
    assert fault("no address")


@pytest.mark.parametrize("text", ["localhost", "10.0.0.1/8", "10.0.0.0/33", "*", "127.0.0.1:80", "0x7f.1"])
@pytest.mark.parametrize("setting", ["denied_addresses", "allowed_addresses"])
def test_what_is_no_network_is_named(setting: str, text: str) -> None:
    with pytest.raises(ValueError, match=f"HOLDFAST_{setting.upper()}.*must be an address or a network"):
        Settings(**{setting: text})  # type: ignore[arg-type]


@given(st.ip_addresses(v=4), st.sampled_from(["::ffff:{}", "::{}", "64:ff9b::{}"]))
def test_an_address_inside_is_judged_as_it_is_outside(address: Any, form: str) -> None:
    outside = fault(str(address))
    assert (fault(form.format(address)) is None) == (outside is None) or str(address) == "0.0.0.1"


# --- where a connection is made --------------------------------------------------------------------------------------


class Knows(Resolver):
    """A resolver whose answers are given, one after the other."""

    def __init__(self, *answers: list[str]) -> None:
        super().__init__()
        self.answers = list(answers)
        self.asked = 0

    async def addresses(self, host: str, port: int) -> list[Address]:
        self.asked += 1
        hosts = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (each, port, 0, 0))
            if ":" in each
            else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port))
            for each in hosts
        ]


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What a connection was attempted to; none is made."""
    made: list[Any] = []

    async def start_connection(addresses: Any, **_: Any) -> socket.socket:
        made.extend(where[0] for *_, where in addresses)
        raise ConnectionRefusedError(111, "as planned")

    monkeypatch.setattr("app.calling.connector.start_connection", start_connection)
    return made


def only_table(address: str) -> str | None:
    return AddressRules().fault(address, is_loopback_listed=False)


@pytest.mark.parametrize("hosts", [["169.254.169.254"], ["10.0.0.7", "169.254.169.254"], ["::1", "10.0.0.7"]])
async def test_one_denied_address_of_several_is_enough(attempts: list[Any], hosts: list[str]) -> None:
    with pytest.raises(OSError, match=r"seats\.test has the address"):
        await Connector(Knows(hosts)).connect("seats.test", 80, only_table)
    assert attempts == []


async def test_a_name_that_changes_its_mind_is_asked_once_and_checked_each_time(attempts: list[Any]) -> None:
    """Rebinding: between the check and the connection there is no second look-up."""
    resolver = Knows(["10.0.0.7"], ["169.254.169.254"])
    connector = Connector(resolver)
    with pytest.raises(OSError, match="can't connect"):
        await connector.connect("seats.test", 80, only_table)
    assert (attempts, resolver.asked) == (["10.0.0.7"], 1)
    with pytest.raises(OSError, match=r"169\.254\.169\.254, which is denied"):
        await connector.connect("seats.test", 80, only_table)
    assert (attempts, resolver.asked) == (["10.0.0.7"], 2)


@pytest.mark.parametrize("host", ["2130706433", "0x7f.1", "127.1", "0177.0.0.1", "0x7f000001", "127.0.1"])
async def test_other_ways_to_write_an_address_lead_to_the_same_check(attempts: list[Any], host: str) -> None:
    with pytest.raises(OSError, match=r"loopback|look up"):
        await Connector(Resolver()).connect(host, 80, only_table)
    assert attempts == []
    assert AllowedEndpoints.parse("http://localhost:*,http://127.0.0.1:*").fault(f"http://{host}/")


async def test_the_coordinators_own_transport_checks(attempts: list[Any]) -> None:
    settings = Settings(allowed_endpoints="http://*:*", denied_addresses="10.9.0.0/16")
    for host in ("127.0.0.1", "169.254.169.254", "[::ffff:a9fe:a9fe]", "10.9.1.1", "0.0.0.0"):
        transport = transport_of(settings)
        with pytest.raises(httpx.ConnectError, match="has the address"):
            await transport.handle_async_request(httpx.Request("POST", f"http://{host}/try"))
        await transport.aclose()
    assert attempts == []


async def test_a_redirect_to_a_denied_address_is_not_followed() -> None:
    async with FaultServer() as server:
        server.script("/try", [Reply(307, {}, {"Location": "http://169.254.169.254/latest"})])
        transport = transport_of(Settings())
        response = await transport.handle_async_request(httpx.Request("POST", server.url("/try"), content=b"{}"))
        assert response.status_code == 307
        assert len(server.requests) == 1
        await transport.aclose()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost", "0.0.0.0", "10.0.0.7", "coordinator"])
def test_beyond_loopback_nothing_may_be_called_until_it_is_listed(host: str) -> None:
    is_local = host in ("127.0.0.1", "127.0.0.2", "::1", "localhost")
    fault = Settings(host=host).allowed.fault("http://127.0.0.1:9000/tcc")
    assert (fault is None) == is_local
    if fault is not None:
        assert "default beyond loopback" in fault
        assert "HOLDFAST_ALLOWED_ENDPOINTS" in fault
    listed = Settings(host=host, allowed_endpoints="http://seats:8000")
    assert listed.allowed.fault("http://seats:8000/tcc") is None
    with pytest.raises(ValueError, match="HOLDFAST_PARTICIPANTS: seats"):
        Settings(host="0.0.0.0", participants={"seats": "http://seats:8000/tcc"})


async def test_without_a_rule_everything_is_connected_to(attempts: list[Any]) -> None:
    transport = Transport(response_max_bytes=10, resolver=Knows(["169.254.169.254"]))
    with pytest.raises(httpx.ConnectError, match="as planned"):
        await transport.handle_async_request(httpx.Request("POST", "http://seats.test/"))
    assert attempts == ["169.254.169.254"]
