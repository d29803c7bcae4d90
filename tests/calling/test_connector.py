"""Which of a host's addresses is connected to, in what order, and how long that takes.

In virtual time over real sockets on loopback; and once on both event loops, with an address that swallows SYNs.
"""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import httpx
import pytest

from app.calling.connector import SLOW_MAX, SLOW_S, STAGGER_S, Connector
from app.calling.resolver import Address, Resolver
from app.calling.transport import Transport
from tests.harness.fault_server import FaultServer, Reply
from tests.harness.virtual_time import VirtualLoop, in_virtual_time, now, pass_time

FIRST: Final = "127.0.0.2"
SECOND: Final = "127.0.0.3"
THIRD: Final = "127.0.0.4"
LIMIT_S: Final = 10.0


class Knows(Resolver):
    """A resolver that knows one host's addresses."""

    def __init__(self, *hosts: str) -> None:
        super().__init__()
        self.hosts = hosts

    async def addresses(self, host: str, port: int) -> list[Address]:
        if not self.hosts:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [_address(each, port) for each in self.hosts]


def _address(host: str, port: int) -> Address:
    if ":" in host:
        return socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port, 0, 0)
    return socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port)


@pytest.fixture
def port() -> Iterator[int]:
    """The port of a server that listens on every address of 127/8."""
    with socket.create_server(("0.0.0.0", 0), backlog=100) as server:
        yield server.getsockname()[1]


class Net:
    """Says which addresses an attempt was made for; those in `holes` never answer, those in `refusing` refuse."""

    def __init__(self) -> None:
        self.tried: list[str] = []
        self.holes: set[str] = set()
        self.refusing: set[str] = set()
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self._connect = loop.sock_connect
        loop.sock_connect = self._sock_connect  # type: ignore[method-assign, assignment]

    async def _sock_connect(self, sock: socket.socket, where: Any) -> None:
        self.tried.append(where[0])
        if where[0] in self.holes:
            await asyncio.get_running_loop().create_future()
        if where[0] in self.refusing:
            raise ConnectionRefusedError(111, f"{where[0]} refuses")
        await self._connect(sock, where)

    def tries(self) -> list[str]:
        """The attempts since the last look."""
        tried, self.tried = self.tried, []
        return tried


async def connected(connector: Connector, port: int) -> tuple[str, Any]:
    """Which address it was, and how long it took."""
    began = now()
    with await connector.connect("two.test", port) as made:
        return made.getpeername()[0], now() - began


@in_virtual_time
async def test_a_healthy_first_address_is_the_only_one_tried(port: int) -> None:
    net = Net()
    assert await connected(Connector(Knows(FIRST, SECOND)), port) == (FIRST, 0.0)
    assert net.tries() == [FIRST]


@in_virtual_time
async def test_an_address_that_does_not_answer_costs_the_stagger_once_a_minute(port: int) -> None:
    net, connector = Net(), Connector(Knows(FIRST, SECOND))
    net.holes.add(FIRST)
    assert await connected(connector, port) == (SECOND, pytest.approx(STAGGER_S))
    assert net.tries() == [FIRST, SECOND]
    for _ in range(2):
        assert await connected(connector, port) == (SECOND, 0.0)
        assert net.tries() == [SECOND]
        await pass_time((SLOW_S - STAGGER_S) / 2 + 0.2)
    assert await connected(connector, port) == (SECOND, pytest.approx(STAGGER_S))
    assert net.tries() == [FIRST, SECOND]


@in_virtual_time
async def test_an_address_that_refuses_costs_nothing(port: int) -> None:
    net = Net()
    net.refusing |= {FIRST, SECOND}
    assert await connected(Connector(Knows(FIRST, SECOND, THIRD)), port) == (THIRD, 0.0)
    assert net.tries() == [FIRST, SECOND, THIRD]


@in_virtual_time
async def test_both_families_have_their_turn(port: int) -> None:
    net = Net()
    net.holes |= {"fd00::1", "fd00::2"}
    address, took = await connected(Connector(Knows("fd00::1", "fd00::2", FIRST)), port)
    assert (address, took) == (FIRST, pytest.approx(STAGGER_S))


@in_virtual_time
async def test_the_others_keep_their_order(port: int) -> None:
    """It is the name server's, which may spread the load."""
    net, connector = Net(), Connector(Knows(FIRST, SECOND, THIRD))
    net.refusing.add(FIRST)
    await connected(connector, port)
    connector._resolver.hosts = (FIRST, THIRD, SECOND)  # type: ignore[attr-defined]
    assert await connected(connector, port) == (THIRD, 0.0)
    net.refusing |= {SECOND, THIRD}
    with pytest.raises(OSError, match="refuses"):
        await connector.connect("two.test", port)
    net.refusing -= {FIRST}
    net.tries()
    assert await connected(connector, port) == (FIRST, 0.0)
    assert net.tries() == [THIRD, SECOND, FIRST], "one that is tried last is tried, too"


@in_virtual_time
async def test_a_connection_that_has_gone_already_tells_nothing(port: int) -> None:
    class Gone(socket.socket):
        def getpeername(self) -> Any:
            raise OSError(107, "not connected")

    connector = Connector(Knows(FIRST, SECOND))
    with Gone() as gone:
        connector._remember([_address(FIRST, port), _address(SECOND, port)], gone)
    assert not connector._slow_until


@in_virtual_time
async def test_what_is_remembered_has_a_limit(port: int) -> None:
    net = Net()
    many = [f"127.1.{n // 250}.{n % 250 + 1}" for n in range(SLOW_MAX + 10)]
    net.refusing |= set(many)
    connector = Connector(Knows(*many, SECOND))
    await connected(connector, port)
    assert len(connector._slow_until) == SLOW_MAX
    assert (many[-1], port) in connector._slow_until


@pytest.mark.parametrize(
    ("hosts", "error"),
    [
        ((), r"can't look up two\.test: \[Errno -2\] Name or service not known"),
        ((FIRST,), r"can't connect to two\.test: \[Errno 111\] 127\.0\.0\.2 refuses"),
        ((FIRST, SECOND), r"can't connect to two\.test: .*127\.0\.0\.2 refuses.*127\.0\.0\.3 refuses"),
    ],
)
@in_virtual_time
async def test_the_error_says_what_was_tried(port: int, hosts: tuple[str, ...], error: str) -> None:
    net = Net()
    net.refusing |= {FIRST, SECOND}
    with pytest.raises(OSError, match=error):
        await Connector(Knows(*hosts)).connect("two.test", port)


@in_virtual_time
async def test_what_is_given_up_leaves_no_socket(port: int) -> None:
    net = Net()
    net.holes |= {FIRST, SECOND}
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1.0):
            await Connector(Knows(FIRST, SECOND)).connect("two.test", port)
    assert net.tries() == [FIRST, SECOND]  # a socket that is left open is a ResourceWarning, which fails the test


@contextmanager
def swallowing_syns(port: int) -> Iterator[None]:
    """On FIRST nobody accepts, and the queue is full."""
    with ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind((FIRST, port))
        full.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex((FIRST, port))
        yield


@pytest.mark.parametrize("hosts", [(FIRST, "127.0.0.1"), ("::1", FIRST, "127.0.0.1"), (FIRST, "::1", "127.0.0.1")])
async def test_an_address_that_swallows_syns_does_not_stop_a_call(hosts: tuple[str, ...]) -> None:
    transport = Transport(response_max_bytes=1000, resolver=Knows(*hosts))
    async with FaultServer() as server, asyncio.timeout(LIMIT_S):
        server.script("/try", [Reply(200, {}, headers={"Connection": "close"})])
        url = httpx.URL(server.url("/try")).copy_with(host="two.test")
        assert url.port is not None
        with swallowing_syns(url.port):
            for _ in range(2):
                answer = await transport.handle_async_request(httpx.Request("POST", url, content=b"{}"))
                assert answer.status_code == 200
    await transport.aclose()
