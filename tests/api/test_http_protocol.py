"""What a connection may send, over raw sockets: how much, how slowly, and to whom it says that it speaks."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.api import http_protocol
from app.api.http_protocol import HEAD_BYTES_MAX, HEADERS_MAX, bounded

BODY_MAX_BYTES = 65_536
HEAD = b"POST / HTTP/1.1\r\nHost: localhost\r\n"
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


@dataclass
class Echo:
    """An application that notes what it was asked, and answers how long the body was."""

    asked: list[dict[str, Any]] = field(default_factory=list)
    cut_off: int = 0
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        self.asked.append({"path": scope["path"], "headers": scope["headers"]})
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.cut_off += 1
                return
            size += len(message["body"])
            more = message["more_body"]
        await self.may_answer.wait()
        body = str(size).encode()
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@dataclass
class Served:
    echo: Echo
    port: int

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield reader, writer
        finally:
            writer.close()

    async def said(self, *pieces: bytes) -> bytes:
        """Everything that is answered until the connection ends; what is sent after that is lost."""
        async with self.connection() as (reader, writer):
            reading = asyncio.create_task(reader.read())
            for piece in pieces:
                try:
                    writer.write(piece)
                    await writer.drain()
                except ConnectionError:
                    break
            try:
                return await reading
            except ConnectionError:
                return b""


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    echo = Echo()
    echo.may_answer.set()
    config = uvicorn.Config(
        echo, port=0, http=bounded(BODY_MAX_BYTES), lifespan="off", log_config=None, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    try:
        yield Served(echo, server.servers[0].sockets[0].getsockname()[1])
    finally:
        await server.shutdown()


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer else 0


def problem_of(answer: bytes) -> str:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json\r\n" in head + b"\r\n"
    assert b"connection: close" in head
    document = json.loads(body)
    assert document["status"] == status_of(answer)
    return str(document["type"]).removeprefix("/problems/")


def headers(count: int, size: int = 1) -> bytes:
    return b"".join(b"x-%d: %b\r\n" % (number, b"v" * size) for number in range(count))


async def test_a_request_within_the_limits_is_served(served: Served) -> None:
    spare = HEADERS_MAX - 3
    body = b"b" * BODY_MAX_BYTES
    head = HEAD + headers(spare, 200) + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    assert len(head) > http_protocol.PIECE_BYTES
    answer = await served.said(head + body)
    assert (status_of(answer), answer.rpartition(b"\r\n")[2]) == (200, str(len(body)).encode())
    (asked,) = served.echo.asked
    assert len(asked["headers"]) == HEADERS_MAX


@pytest.mark.parametrize(
    "head",
    [
        HEAD + headers(HEADERS_MAX),
        HEAD + headers(8, HEAD_BYTES_MAX // 8),
        HEAD + b"x: " + b"v" * HEAD_BYTES_MAX,
        b"GET /" + b"p" * HEAD_BYTES_MAX + b" HTTP/1.1\r\nHost: localhost",
        b"GET / HTTP/1.1\r\n" + b"x" * (HEAD_BYTES_MAX + http_protocol.PIECE_BYTES),
    ],
    ids=["many", "large", "one value", "target", "one name"],
)
@pytest.mark.parametrize("piece", [1000, 10_000_000])
async def test_a_head_that_is_too_large_is_answered_431_before_it_ends(served: Served, head: bytes, piece: int) -> None:
    whole = head + b"\r\n\r\n"
    answer = await served.said(*(whole[start : start + piece] for start in range(0, len(whole), piece)))
    assert problem_of(answer) == "head-too-large"
    assert served.echo.asked == []


async def test_sixty_megabytes_of_headers_are_read_no_further_than_the_limit(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[int] = []
    feed = HttpToolsProtocol.data_received

    def counted(self: Any, data: bytes) -> None:
        parsed.append(len(data))
        feed(self, data)

    monkeypatch.setattr(HttpToolsProtocol, "data_received", counted)
    answer = await served.said(HEAD, *(headers(10, 6_000) for _ in range(1000)))
    assert status_of(answer) in (431, 0), "the answer may be lost with what the client goes on to send"
    assert sum(parsed) <= HEAD_BYTES_MAX + http_protocol.PIECE_BYTES


async def test_framing_without_content_ends_the_connection(served: Served) -> None:
    endless = b"1;" + b"e" * 1000 + b"\r\nb\r\n"
    chunks = [endless * 100 for _ in range(10)]
    answer = await served.said(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *chunks)
    assert answer == b""
    assert served.echo.cut_off == 1


async def test_trailers_are_no_headers(served: Served) -> None:
    chunked = HEAD + b"Transfer-Encoding: chunked\r\nTrailer: Idempotency-Key\r\nConnection: close\r\n\r\n"
    answer = await served.said(chunked + b"3\r\nabc\r\n0\r\nIdempotency-Key: forged\r\nHost: evil\r\n\r\n")
    assert answer.endswith(b"\r\n\r\n3")
    (asked,) = served.echo.asked
    assert [value for name, value in asked["headers"] if name in (b"host", b"idempotency-key")] == [b"localhost"]


@pytest.mark.parametrize(
    ("target", "host"),
    [
        (b"http://evil.example/v1", b"evil.example"),
        (b"http://evil.example:81/v1", b"evil.example:81"),
        (b"http://[::1]:81/v1", b"[::1]:81"),
        (b"/v1", b"localhost"),
    ],
)
async def test_the_host_of_an_absolute_target_is_the_one_that_counts(
    served: Served, target: bytes, host: bytes
) -> None:
    answer = await served.said(b"GET " + target + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert status_of(answer) == 200
    (asked,) = served.echo.asked
    assert asked["path"] == "/v1"
    assert [value for name, value in asked["headers"] if name == b"host"] == [host]


# --- in time ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT_S", 0.1)
    monkeypatch.setattr(http_protocol, "BODY_TIMEOUT_S", 0.2)


@pytest.mark.usefixtures("hasty")
async def test_a_connection_that_says_nothing_is_closed(served: Served) -> None:
    assert await served.said() == b""


@pytest.mark.usefixtures("hasty")
async def test_line_breaks_before_a_request_gain_no_time(served: Served) -> None:
    async with served.connection() as (reader, writer):
        writer.write(GET)
        assert status_of(await reader.readuntil(b"\r\n\r\n0")) == 200
        writer.write(b"\r\n")
        assert await reader.read() == b""


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("before", [b"", GET], ids=["first", "later"])
async def test_a_slow_head_is_answered_408(served: Served, before: bytes) -> None:
    """Whatever goes on arriving."""
    async with served.connection() as (reader, writer):
        if before:
            writer.write(before)
            assert status_of(await reader.readuntil(b"\r\n\r\n0")) == 200
        writer.write(HEAD)
        reading = asyncio.create_task(reader.read())
        while not reading.done():
            writer.write(b"x: y\r\n")
            await asyncio.wait([reading], timeout=0.03)
        assert problem_of(reading.result()) == "request-timeout"
    assert len(served.echo.asked) == bool(before)


@pytest.mark.usefixtures("hasty")
async def test_a_slow_body_is_answered_408_and_the_application_told(served: Served) -> None:
    answer = await served.said(HEAD + b"Content-Length: 10\r\n\r\n12345")
    assert problem_of(answer) == "request-timeout"
    assert (len(served.echo.asked), served.echo.cut_off) == (1, 1)


@pytest.mark.usefixtures("hasty")
async def test_an_answer_may_take_as_long_as_it_takes(served: Served) -> None:
    """The limits are for what the client sends, also while it has sent part of the next request."""
    served.echo.may_answer.clear()
    async with served.connection() as (reader, writer):
        writer.write(GET + HEAD + b"Content-Length: 4\r\n\r\n12")
        reading = asyncio.create_task(reader.readuntil(b"\r\n\r\n0"))
        done, _ = await asyncio.wait([reading], timeout=0.5)
        assert not done
        served.echo.may_answer.set()
        assert status_of(await reading) == 200
        writer.write(b"34")
        assert (await reader.readuntil(b"\r\n\r\n4")).startswith(b"HTTP/1.1 200")
