"""Who the record says it was: an address, and only a trusted proxy may name another than the connection's."""

import pytest

from app.settings import Settings
from app.trust import TrustedProxies
from tests.api.test_admin import hang, resolving
from tests.harness.coordinator_app import reply, running


@pytest.mark.parametrize(
    ("trusted", "forwarded_for", "recorded"),
    [
        ("", "203.0.113.9", "127.0.0.1"),
        ("", "the CFO (approved)", "127.0.0.1"),
        ("10.0.0.1", "203.0.113.9", "127.0.0.1"),
        ("127.0.0.1", "203.0.113.9", "203.0.113.9"),
        ("127.0.0.1", "the CFO (approved)", "127.0.0.1"),
    ],
)
async def test_the_record_names_an_address(sqlite_url: str, trusted: str, forwarded_for: str, recorded: str) -> None:
    async with running(sqlite_url, trusted_proxies=trusted) as service:
        await service.register("payment")
        service.participants.script("/payment/confirm", [reply(410)])
        path = resolving(await hang(service, "payment"))
        body, headers = {"as": "confirmed", "reason": "seen"}, {"X-Forwarded-For": forwarded_for}
        answer = await service.client.post(path, json=body, headers=headers)
        (branch,) = answer.json()["branches"]
        assert branch["resolution"]["by"] == f"operator at {recorded}"


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "client"),
    [
        ("198.51.100.1", "203.0.113.9", "198.51.100.1"),
        ("10.0.0.1", "203.0.113.9", "203.0.113.9"),
        ("10.0.0.1", "1.1.1.1, 203.0.113.9", "203.0.113.9"),
        ("10.0.0.1", "203.0.113.9, 10.0.0.2,10.9.9.9", "203.0.113.9"),
        ("10.0.0.1", "10.0.0.3,10.0.0.2", "10.0.0.3"),
        ("10.0.0.1", "203.0.113.9, someone", "10.0.0.1"),
        ("10.0.0.1", "someone, 10.0.0.2", "10.0.0.2"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "203.0.113.9:5678", "203.0.113.9"),
        ("10.0.0.1", "[2001:DB8::0:9]:443", "2001:db8::9"),
        ("10.0.0.1", "fe80::1%the CFO (approved)", "10.0.0.1"),
        ("::1", "2001:db8::9", "2001:db8::9"),
        ("::ffff:10.0.0.1", "203.0.113.9", "203.0.113.9"),
    ],
)
def test_the_last_address_that_no_trusted_proxy_has(peer: str, forwarded_for: str, client: str) -> None:
    assert TrustedProxies.parse("10.0.0.0/8, ::1").client(peer, forwarded_for) == client


@pytest.mark.parametrize("text", ["proxy.internal", "10.0.0.1/8", "10.0.0.0/33", "*", "127.0.0.1:80"])
def test_a_setting_that_can_not_be_read(text: str) -> None:
    with pytest.raises(ValueError, match="HOLDFAST_TRUSTED_PROXIES"):
        Settings(trusted_proxies=text)
