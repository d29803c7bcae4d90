"""Which connections the transport keeps, for how long, and which of them it takes again: in virtual time."""

import asyncio
from itertools import pairwise
from typing import Any

import httpx
import pytest

from app.calling.resolver import Resolver
from app.calling.transport import AGE_SPREAD, Transport
from tests.harness.virtual_time import in_virtual_time, now, pass_time

IDLE_MAX_S = 4.0


class Connection:
    """A connection that knows when it was closed."""

    def __init__(self) -> None:
        self.reusable = True
        self.idle_since = 0.0
        self.expires_at = 0.0
        self.closed_at: float | None = None

    async def exchange(self, message: bytes) -> httpx.Response:
        return httpx.Response(200)

    def close(self) -> None:
        assert self.closed_at is None, "closed twice"
        self.closed_at = now()


class Connects(Transport):
    """Makes connections that lead nowhere; `asked` are the URLs that it made them for."""

    def __init__(self, **options: Any) -> None:
        super().__init__(response_max_bytes=1000, idle_max_s=IDLE_MAX_S, **options)
        self.asked: list[httpx.URL] = []
        self.made: list[Connection] = []

    async def _connect(self, url: httpx.URL) -> Any:
        self.asked.append(url)
        self.made.append(Connection())
        return self.made[-1]

    async def ask(self, url: str = "http://a/try") -> None:
        await self.handle_async_request(httpx.Request("POST", url, content=b"{}"))

    async def ask_at_once(self, count: int) -> None:
        """As many connections as requests: each takes one before any gives its own back."""
        connections = [await self._connect(httpx.URL("http://a/try")) for _ in range(count)]
        for connection in connections:
            connection.expires_at = self._expiry()
            self._keep(("http", b"a"), connection)


@in_virtual_time
async def test_the_one_used_last_is_used_next_and_the_others_get_old() -> None:
    transport = Connects()
    began = now()
    await transport.ask_at_once(2)
    for _ in range(6):
        await pass_time(1.0)
        await transport.ask()
    assert [connection.closed_at for connection in transport.made] == [pytest.approx(began + IDLE_MAX_S), None]
    await pass_time(10.0)
    assert transport.made[1].closed_at == pytest.approx(began + 6.0 + IDLE_MAX_S)


@in_virtual_time
async def test_each_connection_is_closed_at_its_own_time() -> None:
    transport = Connects()
    began = now()
    for host in ("a", "b", "c"):
        await transport.ask(f"http://{host}/try")
        await pass_time(1.5)
    await pass_time(20.0)
    closed = [(connection.closed_at or 0.0) - began for connection in transport.made]
    assert closed == [pytest.approx(at + IDLE_MAX_S) for at in (0.0, 1.5, 3.0)]
    assert transport._idle == {}
    await transport.ask("http://a/try")
    await pass_time(IDLE_MAX_S + 0.1)
    assert transport.made[-1].closed_at is not None, "it is looked after again when all had gone"


@pytest.mark.parametrize("other", ["https://a/try", "http://b/try", "http://a:81/try"])
@in_virtual_time
async def test_another_origin_gets_another_connection(other: str) -> None:
    transport = Connects()
    for url in ("http://a/try", other, "http://a/confirm", other):
        await transport.ask(url)
    assert transport.asked == ["http://a/try", other]
    await transport.aclose()


@in_virtual_time
async def test_one_that_was_closed_meanwhile_is_not_taken_again() -> None:
    transport = Connects()
    await transport.ask_at_once(2)
    transport.made[1].reusable = False
    await transport.ask()
    assert len(transport.made) == 2
    transport.made[0].reusable = False
    await transport.ask()
    assert len(transport.made) == 3


@in_virtual_time
async def test_one_that_can_not_be_used_again_is_closed_and_not_kept() -> None:
    transport = Connects()
    await transport.ask()
    (connection,) = transport.made
    began = now()
    transport._idle.clear()
    connection.reusable = False

    async def connect(url: httpx.URL) -> Any:
        return connection

    transport._connect = connect  # type: ignore[method-assign]
    await transport.ask()
    assert connection.closed_at == began
    assert not any(transport._idle.values())


@in_virtual_time
async def test_a_connection_in_steady_use_is_replaced_when_it_is_too_old() -> None:
    transport = Connects(age_max_s=60.0)
    began = now()
    while now() < began + 600.0:
        await transport.ask()
        await pass_time(1.0)
    made_at = [connection.closed_at for connection in transport.made]
    assert made_at.pop() is None
    ages = [closed - opened for opened, closed in pairwise([began, *made_at])]  # type: ignore[operator]
    assert 9 <= len(ages) <= 13
    assert all(60.0 * AGE_SPREAD <= age <= 61.0 for age in ages), ages
    assert len({round(age) for age in ages}) > 1, "not all at the same age"
    await transport.aclose()


@in_virtual_time
async def test_an_old_connection_is_closed_and_a_younger_one_is_used() -> None:
    transport = Connects(age_max_s=60.0)
    await transport.ask_at_once(2)
    younger, older = transport.made
    older.expires_at = asyncio.get_running_loop().time() + 2.0
    await pass_time(2.0)
    await transport.ask()
    assert (older.closed_at, younger.closed_at) == (now(), None)
    assert len(transport.made) == 2
    await transport.aclose()


@in_virtual_time
async def test_without_an_age_a_connection_lives_as_long_as_it_is_used() -> None:
    transport = Connects()
    for _ in range(1000):
        await transport.ask()
        await pass_time(1.0)
    assert len(transport.made) == 1
    await transport.aclose()


@in_virtual_time
async def test_closing_closes_what_is_idle_and_looks_after_nothing_more() -> None:
    transport = Connects()
    await transport.ask_at_once(3)
    began = now()
    await transport.aclose()
    assert [connection.closed_at for connection in transport.made] == [began] * 3
    await pass_time(20.0)  # closing a connection twice would fail
    await transport.aclose()


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("http://a/", "a", 80),
        ("https://a/", "a", 443),
        ("http://a:8080/", "a", 8080),
        ("https://[::1]:8443/", "::1", 8443),
        ("http://xn--bcher-kva.example/", "xn--bcher-kva.example", 80),
    ],
)
@in_virtual_time
async def test_a_connection_goes_to_the_host_and_port_of_the_url(url: str, host: str, port: int) -> None:
    class Refuses(Resolver):
        async def addresses(self, host: str, port: int) -> Any:
            asked.append((host, port))
            raise OSError("unknown")

    asked: list[Any] = []
    transport = Transport(response_max_bytes=1000, resolver=Refuses())
    with pytest.raises(httpx.ConnectError, match=f"can't look up {host}: unknown"):
        await transport.handle_async_request(httpx.Request("POST", url, content=b"{}"))
    assert asked == [(host, port)]
