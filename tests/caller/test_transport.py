"""The transport by itself: what it keeps, what it lets go of, and what it never takes for an answer."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

import httpx
import pytest

from app.transport import HEAD_BYTES_MAX, Transport
from tests.support.faults import FaultServer, Peer, Raw, Reply

OK: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


@dataclass(frozen=True)
class Says:
    """Sends these bytes and keeps the connection."""

    data: bytes

    async def play(self, peer: Peer) -> bool:
        await peer.send(self.data)
        return True


@pytest.fixture
async def server() -> AsyncIterator[FaultServer]:
    async with FaultServer() as running:
        yield running


@pytest.fixture
async def transport() -> AsyncIterator[Transport]:
    made = Transport(response_max_bytes=1000)
    yield made
    await made.aclose()


async def posted(transport: Transport, url: str, **headers: str) -> tuple[int, bytes]:
    request = httpx.Request("POST", url, headers=headers, content=b"{}")
    response = await transport.handle_async_request(request)
    return response.status_code, await response.aread()


async def test_a_connection_that_idles_too_long_is_closed(server: FaultServer) -> None:
    transport = Transport(response_max_bytes=1000, idle_max_s=0.01)
    server.script("/try", [Says(OK)])
    assert await posted(transport, server.url("/try")) == (200, b"{}")
    await server.wait_until_left()
    assert await posted(transport, server.url("/try")) == (200, b"{}")
    assert [request.connection for request in server.requests] == [1, 2]
    await transport.aclose()


@pytest.mark.parametrize("more", [OK, b"HTTP/1.1", b"\0garbage"])
async def test_what_nobody_asked_for_answers_nothing(server: FaultServer, transport: Transport, more: bytes) -> None:
    """Or an answer to the last request would be taken for one to the next."""
    server.script("/try", [Says(OK.replace(b"{}", b"[]") + more), Says(OK)])
    assert await posted(transport, server.url("/try")) == (200, b"[]")
    assert await posted(transport, server.url("/try")) == (200, b"{}")
    assert [request.connection for request in server.requests] == [1, 2]


async def test_a_body_may_end_with_the_connection(server: FaultServer, transport: Transport) -> None:
    server.script("/try", [Raw(b"HTTP/1.1 200 OK\r\n\r\n{}"), Raw(b"HTTP/1.0 200 OK\r\n\r\n[]"), Says(OK)])
    assert await posted(transport, server.url("/try")) == (200, b"{}")
    assert await posted(transport, server.url("/try")) == (200, b"[]")
    assert await posted(transport, server.url("/try")) == (200, b"{}")


@pytest.mark.parametrize("length", [b"Content-Length: 3", b"Transfer-Encoding: chunked"])
async def test_a_body_that_says_its_length_may_not(server: FaultServer, transport: Transport, length: bytes) -> None:
    server.script("/try", [Raw(b"HTTP/1.1 200 OK\r\n" + length + b"\r\n\r\n{}")])
    with pytest.raises(httpx.TransportError):
        await posted(transport, server.url("/try"))


async def test_a_connection_is_closed_when_the_server_says_so(server: FaultServer, transport: Transport) -> None:
    server.script("/try", [Reply(200, {}, headers={"Connection": "close"})])
    assert (await posted(transport, server.url("/try")))[0] == 200
    await server.wait_until_left()
    assert (await posted(transport, server.url("/try")))[0] == 200


async def test_a_change_of_protocol_is_no_answer(server: FaultServer, transport: Transport) -> None:
    server.script("/try", [Says(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n")])
    with pytest.raises(httpx.TransportError):
        await posted(transport, server.url("/try"))


async def test_informational_answers_without_end_are_cut(server: FaultServer, transport: Transport) -> None:
    hint = b"HTTP/1.1 103 Early Hints\r\n\r\n"
    server.script("/try", [Says(hint * 3 + OK), Says(hint * (HEAD_BYTES_MAX // len(hint) + 1))])
    assert await posted(transport, server.url("/try")) == (200, b"{}")
    with pytest.raises(httpx.RemoteProtocolError, match="head"):
        await posted(transport, server.url("/try"))


@pytest.mark.parametrize("value", ["a\r\nX-Injected: 1", "a\nb", "a\0b"])
async def test_a_header_can_not_smuggle_another(server: FaultServer, transport: Transport, value: str) -> None:
    with pytest.raises(httpx.LocalProtocolError):
        await posted(transport, server.url("/try"), **{"Tcc-Branch": value})
    assert server.requests == []
