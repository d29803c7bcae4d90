"""Under which names the coordinator answers: DNS rebinding must not reach one that only loopback guards."""

import pytest

from app.settings import Settings
from app.trust import Authority, TrustedHosts
from tests.harness.asgi import JSON, ask
from tests.harness.coordinator_app import Service, running

REBOUND = (b"host", b"rebound.example")
REGISTRATION = b'{"base_url": "http://127.0.0.1:9000/inventory"}'

OWN = [
    *("localhost", "localhost:8000", "LocalHost:1", "localhost.", "localhost:", "127.0.0.1", "127.0.0.1:65535"),
    *("127.255.0.7:80", "[::1]", "[::1]:8000", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]:1"),
]
FOREIGN = [
    *("rebound.example", "rebound.example:8000", "localhost.rebound.example", "rebound.localhost", "localhost.lan"),
    *("127.0.0.1.rebound.example", "10.0.0.1", "0.0.0.0", "128.0.0.1", "[::2]", "[::]", "[fe80::1]", "127.1"),
    *("2130706433", "0x7f000001", "0177.0.0.1", "127.0.0.01", "xn--bcher-kva.example"),
]  # fmt: skip
NONE_AT_ALL = [
    *("", " ", ".", ":80", "localhost:x", "localhost:65536", "localhost:123456", "localhost:80:80", "localhost/"),
    *("user@localhost", "http://localhost", "localhost,rebound.example", "::1", "[::1", "[::1]x", "[fe80::1%25lo]"),
    *("[localhost]", "[127.0.0.1", "local%68ost", "b\xfccher.example", "localhost\\", "localhost#", "[:::]"),
    *("a b", "a" * 256),
]  # fmt: skip


@pytest.mark.parametrize("name", OWN)
async def test_on_loopback_it_answers_under_the_names_of_loopback(service: Service, name: str) -> None:
    answer = await ask(service.app, "GET", "/v1/participants", headers=[(b"host", name.encode())])
    assert answer.status == 200


@pytest.mark.parametrize("name", FOREIGN)
async def test_and_under_no_other(service: Service, name: str) -> None:
    answer = await ask(service.app, "GET", "/v1/participants", headers=[(b"host", name.encode())])
    assert (answer.status, answer.json()["type"]) == (421, "/problems/untrusted-host")
    assert repr(name) in answer.json()["detail"]
    assert "HOLDFAST_TRUSTED_HOSTS" in answer.json()["detail"]


@pytest.mark.parametrize("name", NONE_AT_ALL)
@pytest.mark.parametrize("trusted", ["localhost", "*"])
async def test_what_is_no_host_is_malformed(sqlite_url: str, name: str, trusted: str) -> None:
    async with running(sqlite_url, trusted_hosts=trusted + ",localhost") as service:
        answer = await ask(service.app, "GET", "/v1/participants", headers=[(b"host", name.encode("latin-1"))])
        assert (answer.status, answer.json()["type"]) == (400, "/problems/malformed")


@pytest.mark.parametrize("second", [b"localhost", b"rebound.example", b""])
async def test_two_hosts_are_malformed(service: Service, second: bytes) -> None:
    answer = await ask(service.app, "GET", "/v1/participants", headers=[(b"host", b"localhost"), (b"host", second)])
    assert (answer.status, answer.json()["type"]) == (400, "/problems/malformed")


async def test_every_route_is_guarded_and_does_nothing(service: Service) -> None:
    """Whatever is asked: reads, writes, pages, and what isn't there."""
    before = await service.json("/v1/participants")
    for path, methods in service.app.openapi()["paths"].items():
        for method, operation in methods.items():
            answer = await ask(service.app, method.upper(), path, headers=[JSON, REBOUND], body=[REGISTRATION])
            assert answer.status == (200 if path in ("/healthz", "/readyz") else 421), path
            assert ("421" in operation["responses"]) == (answer.status == 421), path
    for path in ("/", "/nothing", "/v1", "/metrics"):
        assert (await ask(service.app, "GET", path, headers=[REBOUND])).status == 421, path
    assert await service.json("/v1/participants") == before


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/docs", "/docs/pages.css", "/openapi.json"])
async def test_probes_and_documentation_are_served_under_any_name(service: Service, path: str) -> None:
    for headers in ([REBOUND], [(b"host", b"10.1.2.3:8000")], [(b"host", b"")]):
        assert (await ask(service.app, "GET", path, headers=headers)).status == 200
    page = await ask(service.app, "GET", "/problems/untrusted-host", headers=[REBOUND])
    assert b"HOLDFAST_TRUSTED_HOSTS" in page.body


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "coordinator"])
async def test_beyond_loopback_any_name_will_do_unless_some_are_named(sqlite_url: str, host: str) -> None:
    async with running(sqlite_url, host=host, auth="none") as service:
        assert (await ask(service.app, "GET", "/v1/participants", headers=[REBOUND])).status == 200
    async with running(sqlite_url, host=host, auth="none", trusted_hosts="localhost, coordinator:8000") as service:
        for name, status in {"rebound.example": 421, "coordinator:8000": 200, "coordinator": 421}.items():
            answer = await ask(service.app, "GET", "/v1/participants", headers=[(b"host", name.encode())])
            assert answer.status == status, name


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.9", "::1", "localhost"])
def test_what_loopback_is(host: str) -> None:
    assert not Settings(host=host).hosts.trusts(Authority.parse("rebound.example"))


@pytest.mark.parametrize(
    ("text", "trusted", "refused"),
    [
        ("holdfast.internal", ["holdfast.internal", "HOLDFAST.internal.:1"], ["a.holdfast.internal", "localhost"]),
        ("*.internal", ["a.internal", "a.b.internal:9"], ["internal", "a.internal.example", "ainternal"]),
        ("Holdfast:8000", ["holdfast:8000"], ["holdfast", "holdfast:80"]),
        ("my_service", ["my_service"], ["my-service"]),
        ("10.0.0.0/8:80,[2001:db8::1]", ["10.9.9.9:80", "[2001:DB8:0::1]:7"], ["10.9.9.9", "11.0.0.1:80"]),
        ("*", ["anything", "10.0.0.1", "[::2]:7"], []),
        ("*.0.0.1", [], ["127.0.0.1"]),
    ],
)  # fmt: skip
def test_the_setting(text: str, trusted: list[str], refused: list[str]) -> None:
    hosts = TrustedHosts.parse(text)
    assert {name: hosts.trusts(Authority.parse(name)) for name in trusted} == dict.fromkeys(trusted, True)
    assert {name: hosts.trusts(Authority.parse(name)) for name in refused} == dict.fromkeys(refused, False)


@pytest.mark.parametrize(
    "text", ["", " , ", "http://a", "a:b", "a:65536", "a/b", "10.0.0.1/8", "[a]", "a b", "*a", "*.", "::1", "a@b"]
)
def test_a_setting_that_can_not_be_read(text: str) -> None:
    with pytest.raises(ValueError, match="HOLDFAST_TRUSTED_HOSTS"):
        Settings(trusted_hosts=text)


async def test_an_old_client_that_names_no_host(sqlite_url: str) -> None:
    """HTTP/1.0 has no Host: it will do where any name will."""
    for trusted, status in {"localhost": 421, "*": 200}.items():
        async with running(sqlite_url, trusted_hosts=trusted) as service:
            answer = await ask(service.app, "GET", "/v1/participants", headers=[], http_version="1.0", host=None)
            assert answer.status == status
            answer = await ask(service.app, "GET", "/v1/participants", headers=[], host=None)
            assert (answer.status, answer.json()["type"]) == (400, "/problems/malformed")
