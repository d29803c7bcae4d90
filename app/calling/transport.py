"""HTTP/1.1 to participants, behind httpx's interface: the least that a call needs, over connections kept alive.

A request goes out whole, a response comes back whole, up to a limit. There are no redirects, cookies, proxies,
compression or repetitions here, because a coordinator must not have them, and no time limit, because the caller has
one around the whole call. Messages are parsed by llhttp. Why this is ours: docs/decisions/0006-transport.md.
"""

import asyncio
import ssl
from collections import deque
from functools import cached_property
from typing import Final, cast

import httptools
import httpx

HEAD_BYTES_MAX: Final = 65_536
"""The longest head of a response, the informational ones before it included."""
FRAMING_FACTOR: Final = 8
"""So many times a body's limit may go over the wire for it: chunks of one byte each take six bytes a byte."""
IDLE_MAX_S: Final = 4.0
"""A connection idle for so long is closed: just sooner than uvicorn and Node.js would, so no call meets the end."""

Origin = tuple[str, bytes]
"""Scheme, and host with port as the URL has them."""


class Transport(httpx.AsyncBaseTransport):
    """Sends requests with a body in memory and answers with responses of at most `response_max_bytes`.

    Raises httpx.ConnectError when nothing was sent; any other httpx.TransportError means that the request may have
    arrived. Belongs to the event loop that it is first used on.
    """

    def __init__(self, *, response_max_bytes: int, idle_max_s: float = IDLE_MAX_S) -> None:
        self._response_max_bytes = response_max_bytes
        self._idle_max_s = idle_max_s
        self._idle: dict[Origin, deque[_Connection]] = {}
        self._sweep_at: asyncio.TimerHandle | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request once, over an idle connection or a new one, and return what was answered."""
        origin = (request.url.scheme, request.url.netloc)
        connection = self._take(origin) or await self._connect(request.url)
        try:
            response = await connection.exchange(_message(request, await _body(request)))
        except BaseException:
            connection.abort()
            raise
        if connection.reusable:
            self._keep(origin, connection)
        else:
            connection.close()
        return response

    async def aclose(self) -> None:
        """Close the idle connections; those in use are closed by whoever cancels their calls."""
        if self._sweep_at is not None:
            self._sweep_at.cancel()
            self._sweep_at = None
        for idle in self._idle.values():
            for connection in idle:
                connection.close()
        self._idle.clear()

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return httpx.create_ssl_context()

    async def _connect(self, url: httpx.URL) -> "_Connection":
        tls = self._tls if url.scheme == "https" else None
        port = url.port or (443 if tls else 80)
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(
                lambda: _Connection(self._response_max_bytes), url.host, port, ssl=tls
            )
        except OSError as error:
            raise httpx.ConnectError(f"not reached, {error}") from error
        return connection

    def _take(self, origin: Origin) -> "_Connection | None":
        """The connection that was used last: the others get old and are closed."""
        idle = self._idle.get(origin)
        while idle:
            connection = idle.pop()
            if connection.reusable:
                return connection
        return None

    def _keep(self, origin: Origin, connection: "_Connection") -> None:
        loop = asyncio.get_running_loop()
        connection.idle_since = loop.time()
        self._idle.setdefault(origin, deque()).append(connection)
        if self._sweep_at is None:
            self._sweep_at = loop.call_later(self._idle_max_s, self._sweep)

    def _sweep(self) -> None:
        """Close what has been idle for too long; the oldest of each origin is at the left."""
        loop = asyncio.get_running_loop()
        until = loop.time() - self._idle_max_s
        for origin, idle in list(self._idle.items()):
            while idle and (idle[0].idle_since <= until or not idle[0].reusable):
                idle.popleft().close()
            if not idle:
                del self._idle[origin]
        oldest = min((idle[0].idle_since for idle in self._idle.values()), default=None)
        self._sweep_at = None if oldest is None else loop.call_at(oldest + self._idle_max_s, self._sweep)


async def _body(request: httpx.Request) -> bytes:
    return b"".join(request.stream) if isinstance(request.stream, httpx.ByteStream) else await request.aread()


def _message(request: httpx.Request, body: bytes) -> bytes:
    """The request as it goes out (RFC 9112, 3); Host and Content-Length are among its headers."""
    lines = [b"%b %b HTTP/1.1" % (request.method.encode("ascii"), request.url.raw_path)]
    lines += [b"%b: %b" % header for header in request.headers.raw]
    head = b"\r\n".join(lines)
    if head.count(b"\n") >= len(lines) or b"\0" in head:
        raise httpx.LocalProtocolError("a header has a line break or NUL in it")
    return head + b"\r\n\r\n" + body


class _Connection(asyncio.Protocol):
    """One connection, which carries one exchange at a time. The methods named on_… are called by the parser."""

    _transport: asyncio.Transport

    def __init__(self, response_max_bytes: int) -> None:
        self.idle_since = 0.0
        self._response_max_bytes = response_max_bytes
        self._parser = httptools.HttpResponseParser(self)
        self._answered: asyncio.Future[httpx.Response] | None = None
        self._head_bytes = 0
        self._bytes_left = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._body = bytearray()
        self._in_body = False

    def exchange(self, message: bytes) -> "asyncio.Future[httpx.Response]":
        """Send a request; the future is done when the whole response is there, or can't come any more."""
        assert self._answered is None, "one exchange at a time"
        self._head_bytes = 0
        self._bytes_left = HEAD_BYTES_MAX + FRAMING_FACTOR * self._response_max_bytes
        self._answered = asyncio.get_running_loop().create_future()
        self._transport.write(message)
        return self._answered

    @property
    def reusable(self) -> bool:
        """Whether the next request can go out here: nobody closes, and nothing is left of the last one."""
        return not (self._transport.is_closing() or self._answered or self._transport.get_write_buffer_size())

    def close(self) -> None:
        self._transport.close()

    def abort(self) -> None:
        """Close at once, with whatever is under way."""
        self._answered = None
        self._transport.abort()

    # --- what the event loop tells -------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's says so only by its methods

    def data_received(self, data: bytes) -> None:
        if self._answered is None:  # nobody asked
            return self._transport.abort()
        self._bytes_left -= len(data)
        if not self._in_body:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(httpx.RemoteProtocolError(f"not HTTP: {error.__context__ or error}"))
        except httptools.HttpParserUpgrade:  # none of its HttpParserErrors
            self._fail(httpx.RemoteProtocolError("the connection was to change its protocol"))
        if not self._in_body and self._head_bytes > HEAD_BYTES_MAX:
            self._fail(httpx.RemoteProtocolError(f"the head of the response is longer than {HEAD_BYTES_MAX} bytes"))
        if self._bytes_left < 0 and self._answered is not None:  # chunks' extensions or trailers, without end
            self._fail(httpx.RemoteProtocolError("the response is mostly framing"))
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        if self._in_body and exc is None and not _says_its_length(self._headers):
            self.on_message_complete()  # RFC 9112, 6.3: it ends with the connection
        reason = "the connection was reset" if exc else "the connection was closed in the middle of the exchange"
        self._fail(httpx.ReadError(reason))

    # --- what the parser tells -----------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._answered is None:  # a second response to one request: the next one must not get it
            self._transport.abort()
        self._headers, self._body, self._in_body = [], bytearray(), False

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_body:  # what comes after the body is never merged into the head (RFC 9110, 6.5.1)
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._in_body = self._parser.get_status_code() >= 200

    def on_body(self, body: bytes) -> None:
        self._body += body
        if len(self._body) > self._response_max_bytes:
            self._fail(httpx.ReadError(f"the response is longer than {self._response_max_bytes} bytes"))

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200 or self._answered is None:  # informational (RFC 9110, 15.2): the response is still to come
            return
        answered, self._answered, self._in_body = self._answered, None, False
        if not self._parser.should_keep_alive():
            self._transport.close()
        if not answered.done():
            stream = httpx.ByteStream(bytes(self._body))
            answered.set_result(httpx.Response(status, headers=self._headers, stream=stream))

    def _fail(self, error: httpx.TransportError) -> None:
        answered, self._answered = self._answered, None
        self._transport.abort()
        if answered is not None and not answered.done():
            answered.set_exception(error)


def _says_its_length(headers: list[tuple[bytes, bytes]]) -> bool:
    return any(name.lower() in (b"content-length", b"transfer-encoding") for name, _ in headers)
