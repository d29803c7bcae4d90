"""The transport by itself: what it keeps, what it lets go of, and what it never takes for an answer."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

import httpx
import pytest

from app.calling.transport import HEAD_BYTES_MAX, Transport
from tests.harness.fault_server import FaultServer, Peer, Raw

LIMIT_S: Final = 5.0
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


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"HTTP/1.1 200 OK\nContent-Length: 2\n\n{}", "a line ends with LF instead of CR LF"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\n\r\n{}", "a line ends with LF instead of CR LF"),
        (OK.replace(b"OK\r\n", b"OK\r\nX: a\rb\r\n"), "a line has a CR without LF"),
        (OK.replace(b"OK\r\n", b"OK\r\nX: a\r\n b\r\n"), "a header is folded over several lines"),
        (OK.replace(b"OK\r\n", b"OK\r\nContent-Length: 2\r\n"), "there are two Content-Length headers"),
        (OK.replace(b"OK\r\n", b"OK\r\nTransfer-Encoding: chunked\r\n"), "both Content-Length and Transfer-Encoding"),
        (OK.replace(b"2\r\n", b"2\r\nTransfer-Encoding: chunked\r\n"), "both Content-Length and Transfer-Encoding"),
        (b"SSH-2.0-OpenSSH_9.9\r\n", "it doesn't begin with HTTP/1"),
        (OK.replace(b"OK\r\n", b"OK\r\nX : a\r\n"), "Invalid header token"),
    ],
)
async def test_what_is_wrong_with_an_answer_is_said(
    server: FaultServer, transport: Transport, answer: bytes, error: str
) -> None:
    server.script("/try", [Says(answer)])
    with pytest.raises(httpx.RemoteProtocolError, match=f"not valid HTTP: .*{error}"):
        await posted(transport, server.url("/try"))


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


NEVER_S: Final = 3600.0
KEPT: Final[dict[str, bytes]] = {
    "HTTP/1.1": OK,
    "in chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "a refusal": b"HTTP/1.1 409 Conflict\r\nContent-Length: 2\r\n\r\n{}",
    "no content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "keep-alive": b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\n{}",
    "closed in another word": b"HTTP/1.1 200 OK\r\nConnection: closed\r\nContent-Length: 2\r\n\r\n{}",
    "HTTP/1.0 with keep-alive": b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\n{}",
}
CLOSED: Final[dict[str, bytes]] = {
    "close": b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}",
    "in other letters": b"HTTP/1.1 200 OK\r\nCONNECTION: Close\r\nContent-Length: 2\r\n\r\n{}",
    "among others": b"HTTP/1.1 200 OK\r\nConnection: x-trace, close\r\nContent-Length: 2\r\n\r\n{}",
    "in the second of two": b"HTTP/1.1 200 OK\r\nConnection: x\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}",
    "after the length": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}",
    "in chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "a refusal": b"HTTP/1.1 409 Conflict\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}",
    "unavailable": b"HTTP/1.1 503 Busy\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}",
    "no content": b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n",
    "after a hint": b"HTTP/1.1 103 Hint\r\n\r\nHTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}",
    "HTTP/1.0": b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}",
}


@pytest.mark.parametrize("answer", KEPT.values(), ids=KEPT)
async def test_a_connection_is_kept(server: FaultServer, transport: Transport, answer: bytes) -> None:
    server.script("/try", [Says(answer), Says(OK)])
    await posted(transport, server.url("/try"))
    assert await posted(transport, server.url("/try")) == (200, b"{}")
    assert [request.connection for request in server.requests] == [1, 1]


@pytest.mark.parametrize("answer", CLOSED.values(), ids=CLOSED)
async def test_a_connection_is_closed_when_the_server_says_so(server: FaultServer, answer: bytes) -> None:
    """At once, and not when it has been idle for too long."""
    transport = Transport(response_max_bytes=1000, idle_max_s=NEVER_S)
    server.script("/try", [Says(answer)])
    await posted(transport, server.url("/try"))
    await server.wait_until_left()
    assert server.connections_open == 0
    await transport.aclose()


@pytest.mark.parametrize("answer", CLOSED.values(), ids=CLOSED)
async def test_no_request_goes_out_where_the_server_said_close(
    server: FaultServer, transport: Transport, answer: bytes
) -> None:
    """The server may close the connection as the request arrives, and then nobody knows what came of it."""
    server.script("/try", [Says(answer), Says(OK)])
    await posted(transport, server.url("/try"))
    assert await posted(transport, server.url("/try")) == (200, b"{}")
    assert [request.connection for request in server.requests] == [1, 2]


async def test_a_change_of_protocol_is_no_answer(server: FaultServer, transport: Transport) -> None:
    server.script("/try", [Says(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n")])
    with pytest.raises(httpx.RemoteProtocolError, match="protocol"):
        await posted(transport, server.url("/try"))


async def test_informational_answers_without_end_are_cut(server: FaultServer, transport: Transport) -> None:
    hint = b"HTTP/1.1 103 Early Hints\r\n\r\n"
    server.script("/try", [Says(hint * 3 + OK), Says(hint * (HEAD_BYTES_MAX // len(hint) + 1))])
    assert await posted(transport, server.url("/try")) == (200, b"{}")
    with pytest.raises(httpx.RemoteProtocolError, match="head"):
        await posted(transport, server.url("/try"))


CHUNKED: Final = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@dataclass(frozen=True)
class SaysWithoutEnd:
    """Sends `first`, and then `more` again and again until nobody takes it."""

    first: bytes
    more: bytes

    async def play(self, peer: Peer) -> bool:
        await peer.send(self.first)
        while not await peer.left_within(0):
            await peer.send(self.more)
        return False


@pytest.mark.parametrize(
    ("first", "more"),
    [
        (CHUNKED + b"2\r\n{}\r\n0\r\n", b"Trailer: x\r\n" * 1000),
        (CHUNKED + b"2\r\n{}\r\n0\r\nTrailer: ", b"x" * 10_000),
        (CHUNKED + b"2;extension=", b"x" * 10_000),
    ],
    ids=["trailers", "one trailer", "extension of a chunk"],
)
async def test_framing_without_end_is_cut(server: FaultServer, transport: Transport, first: bytes, more: bytes) -> None:
    """It is not of the body, whose limit doesn't count it, and would fill the memory for as long as a call may take."""
    server.script("/try", [SaysWithoutEnd(first, more)])
    with pytest.raises(httpx.RemoteProtocolError, match="framing"):
        async with asyncio.timeout(LIMIT_S):
            await posted(transport, server.url("/try"))
    await server.wait_until_left()
    assert server.connections_open == 0


async def test_a_body_may_come_in_chunks_of_a_byte(server: FaultServer, transport: Transport) -> None:
    server.script("/try", [Raw(CHUNKED + b"1\r\nx\r\n" * 1000 + b"0\r\n\r\n")])
    assert await posted(transport, server.url("/try")) == (200, b"x" * 1000)


async def test_trailers_are_no_headers(server: FaultServer, transport: Transport) -> None:
    server.script("/try", [Says(CHUNKED + b"2\r\n{}\r\n0\r\nTcc-Hold-Ttl: 1\r\n\r\n")])
    request = httpx.Request("POST", server.url("/try"), content=b"{}")
    response = await transport.handle_async_request(request)
    assert "Tcc-Hold-Ttl" not in response.headers


@pytest.mark.parametrize("value", ["a\r\nX-Injected: 1", "a\nb", "a\0b"])
async def test_a_header_can_not_smuggle_another(server: FaultServer, transport: Transport, value: str) -> None:
    with pytest.raises(httpx.LocalProtocolError):
        await posted(transport, server.url("/try"), **{"Tcc-Branch": value})
    assert server.requests == []
