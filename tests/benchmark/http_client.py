"""The cheapest HTTP client that does the work: asyncio, httptools, connections kept alive. Knows no API."""

import asyncio
from typing import Any
from urllib.parse import urlsplit

import httptools


class Unexpected(Exception):
    """An answer that is not what was asked for."""


class Connection(asyncio.Protocol):
    """A connection that is kept alive; one request at a time."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error or ConnectionResetError("the server closed the connection"))

    @property
    def is_open(self) -> bool:
        return not self._transport.is_closing()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        body, self._body = b"".join(self._body), []
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((self._parser.get_status_code(), body))

    def close(self) -> None:
        self._transport.close()

    def ask(self, request: bytes) -> "asyncio.Future[tuple[int, bytes]]":
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer


class Connections:
    """Connections to whatever origin; an idle one is used again. Each client has its own. All requests show `key`."""

    def __init__(self, key: str = "") -> None:
        self._idle: dict[str, list[Connection]] = {}
        self._shown = f"Authorization: Bearer {key}\r\n" if key else ""

    async def post(self, url: str, body: bytes) -> tuple[int, bytes]:
        """The status and the body of the answer. Raises OSError when there is none."""
        return await self._exchange("POST", url, body)

    async def get(self, url: str) -> tuple[int, bytes]:
        return await self._exchange("GET", url, b"")

    def close(self) -> None:
        for connection in [each for idle in self._idle.values() for each in idle]:
            connection.close()

    async def _exchange(self, method: str, url: str, body: bytes) -> tuple[int, bytes]:
        parts = urlsplit(url)
        idle = self._idle.setdefault(parts.netloc, [])
        connection = idle.pop() if idle else await _connect(parts.hostname or "", parts.port or 80)
        path = f"{parts.path}?{parts.query}" if parts.query else parts.path
        answer = await connection.ask(
            f"{method} {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
            f"{self._shown}Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        if connection.is_open:
            idle.append(connection)
        return answer


async def _connect(host: str, port: int) -> Connection:
    _, connection = await asyncio.get_running_loop().create_connection(Connection, host, port)
    return connection
