"""HTTP/1.1 to participants behind httpx's interface: the minimum that a call needs, over persistent connections.

Sends a whole request and reads a whole response, up to a limit. Has no redirects, cookies, proxies, compression or
retries, because a coordinator must not have them, and no time limit, because the caller sets one for the whole call.
llhttp parses the messages. docs/decisions/0006-transport.md says why this isn't a library.
"""

import asyncio
import math
import ssl
from collections import deque
from collections.abc import Callable
from functools import cached_property, partial
from random import uniform
from typing import Any, Final, cast

import httptools
import httpx

from app.calling.connector import Connector
from app.calling.resolver import Resolver

HEAD_BYTES_MAX: Final = 65_536
"""Maximum size of a response's head, including the informational responses before it."""
FRAMING_FACTOR: Final = 8
"""How many times the body limit may go over the wire: chunks of one byte each take six bytes per byte."""
IDLE_MAX_S: Final = 4.0
"""Idle connections are closed after this long, just before uvicorn and Node.js would close them under a call."""

AGE_SPREAD: Final = 0.8
"""The smallest share of its maximum age that a connection gets: those of one moment don't all end at one moment."""

TRUNCATED: Final = "truncated"
"""Extension of a response whose body was longer than the limit; it ends there."""

_MEANINGS: Final = {
    "Missing expected CR": "a line ends with LF instead of CR LF",
    "Missing expected LF": "a line has a CR without LF",
    "Unexpected whitespace after header value": "a header is folded over several lines",
    "Duplicate Content-Length": "there are two Content-Length headers",
    "Transfer-Encoding can't be present": "there are both Content-Length and Transfer-Encoding",
    "Content-Length can't be present": "there are both Content-Length and Transfer-Encoding",
    "Expected HTTP/": "it doesn't begin with HTTP/1",
}
"""What llhttp says, or how that begins: what is wrong, in words."""

Origin = tuple[str, bytes]
"""Scheme, and host with port as written in the URL."""


class Transport(httpx.AsyncBaseTransport):
    """Sends requests whose body is in memory and returns responses, cut off after `response_max_bytes` of their body.

    Raises httpx.ConnectError if nothing was sent. Any other httpx.TransportError means that the request may have
    arrived. A connection older than `age_max_s` isn't used again, so that calls reach a name's new addresses. Belongs
    to the event loop that first uses it. `fault_of` says why an address may not be connected to for a URL. `tls` is
    called once, for the first https URL.
    """

    def __init__(
        self,
        *,
        response_max_bytes: int,
        idle_max_s: float = IDLE_MAX_S,
        age_max_s: float = math.inf,
        resolver: Resolver | None = None,
        fault_of: Callable[[httpx.URL, str], str | None] | None = None,
        tls: Callable[[], ssl.SSLContext] = httpx.create_ssl_context,
    ) -> None:
        self._response_max_bytes = response_max_bytes
        self._idle_max_s = idle_max_s
        self._age_max_s = age_max_s
        self._fault_of = fault_of
        self._make_tls = tls
        self._connector = Connector(resolver or Resolver())
        self._idle: dict[Origin, deque[_Connection]] = {}
        self._sweep_at: asyncio.TimerHandle | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request once, over an idle connection or a new one, and return the response."""
        origin = (request.url.scheme, request.url.netloc)
        connection = self._take(origin)
        if connection is None:
            connection = await self._connect(request.url)
            connection.expires_at = self._expiry()
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
        """Close the idle connections. Cancelling a call closes the connection that it uses."""
        if self._sweep_at is not None:
            self._sweep_at.cancel()
            self._sweep_at = None
        for idle in self._idle.values():
            for connection in idle:
                connection.close()
        self._idle.clear()

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return self._make_tls()

    async def _connect(self, url: httpx.URL) -> "_Connection":
        host, port = url.raw_host.decode("ascii"), url.port or (443 if url.scheme == "https" else 80)
        try:
            fault_of = self._fault_of and partial(self._fault_of, url)
            connected = await self._connector.connect(host, port, fault_of)
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: _Connection(self._response_max_bytes),
                sock=connected,
                ssl=self._tls if url.scheme == "https" else None,
                server_hostname=host if url.scheme == "https" else None,
            )
        except OSError as error:
            raise httpx.ConnectError(str(error)) from error
        return connection

    def _take(self, origin: Origin) -> "_Connection | None":
        """The most recently used idle connection, so that the others age and are closed."""
        idle = self._idle.get(origin)
        if idle:
            now = asyncio.get_running_loop().time()
            while idle:
                connection = idle.pop()
                if connection.reusable:
                    if now < connection.expires_at:
                        return connection
                    connection.close()
        return None

    def _expiry(self) -> float:
        """When a new connection is too old for another request; at different times for those that are made together."""
        return asyncio.get_running_loop().time() + self._age_max_s * uniform(AGE_SPREAD, 1.0)  # noqa: S311 - jitter

    def _keep(self, origin: Origin, connection: "_Connection") -> None:
        loop = asyncio.get_running_loop()
        connection.idle_since = loop.time()
        self._idle.setdefault(origin, deque()).append(connection)
        if self._sweep_at is None:
            self._sweep_at = loop.call_later(self._idle_max_s, self._sweep)

    def _sweep(self) -> None:
        """Close connections that have been idle for too long; the oldest of each origin is leftmost."""
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
    """The request as sent (RFC 9112, 3); its headers already include Host and Content-Length."""
    lines = [b"%b %b HTTP/1.1" % (request.method.encode("ascii"), request.url.raw_path)]
    lines += [b"%b: %b" % header for header in request.headers.raw]
    head = b"\r\n".join(lines)
    if head.count(b"\n") >= len(lines) or b"\0" in head:
        raise httpx.LocalProtocolError("a header contains a line break or NUL")
    return head + b"\r\n\r\n" + body


class _Connection(asyncio.Protocol):
    """One connection, which carries one exchange at a time. The parser calls the methods named on_…"""

    _transport: asyncio.Transport

    def __init__(self, response_max_bytes: int) -> None:
        self.idle_since = 0.0
        self.expires_at = 0.0
        self._response_max_bytes = response_max_bytes
        self._parser = httptools.HttpResponseParser(self)
        self._answered: asyncio.Future[httpx.Response] | None = None
        self._head_bytes = 0
        self._bytes_left = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._body = bytearray()
        self._in_body = False

    def exchange(self, message: bytes) -> "asyncio.Future[httpx.Response]":
        """Send a request; the future is done once the whole response has arrived, or no longer can."""
        assert self._answered is None, "one exchange at a time"
        self._head_bytes = 0
        self._bytes_left = HEAD_BYTES_MAX + FRAMING_FACTOR * self._response_max_bytes
        self._answered = asyncio.get_running_loop().create_future()
        self._transport.write(message)
        return self._answered

    @property
    def reusable(self) -> bool:
        """Whether the next request can use this connection: it isn't closing, and the last exchange is complete."""
        return not (self._transport.is_closing() or self._answered or self._transport.get_write_buffer_size())

    def close(self) -> None:
        self._transport.close()

    def abort(self) -> None:
        """Close at once and abandon the exchange in progress."""
        self._answered = None
        self._transport.abort()

    # --- called by the event loop ---------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transport isn't a subclass

    def data_received(self, data: bytes) -> None:
        if self._answered is None:  # no request is waiting for this
            return self._transport.abort()
        self._bytes_left -= len(data)
        if not self._in_body:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(httpx.RemoteProtocolError(f"the response is not valid HTTP: {_meaning(error)}"))
        except httptools.HttpParserUpgrade:  # not a subclass of HttpParserError
            self._fail(httpx.RemoteProtocolError("the response switches protocols"))
        if not self._in_body and self._head_bytes > HEAD_BYTES_MAX:
            self._fail(httpx.RemoteProtocolError(f"the head of the response is longer than {HEAD_BYTES_MAX} bytes"))
        if self._bytes_left < 0 and self._answered is not None:  # endless chunk extensions or trailers
            self._fail(httpx.RemoteProtocolError("the response has far more framing than content"))
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        if self._in_body and exc is None and not _says_its_length(self._headers):
            self.on_message_complete()  # RFC 9112, 6.3: the end of the connection ends the body
        reason = "the connection was reset" if exc else "the connection was closed in the middle of the exchange"
        self._fail(httpx.ReadError(reason))

    # --- called by the parser -------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._answered is None:  # a second response to one request must not reach the next request
            self._transport.abort()
        self._headers, self._body, self._in_body = [], bytearray(), False

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_body:  # trailers are never merged into the headers (RFC 9110, 6.5.1)
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._in_body = self._parser.get_status_code() >= 200

    def on_body(self, body: bytes) -> None:
        self._body += body
        if len(self._body) > self._response_max_bytes:
            del self._body[self._response_max_bytes :]
            self._answer({TRUNCATED: True})
            self._transport.abort()

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200 or self._answered is None:  # informational (RFC 9110, 15.2): the final response follows
            return
        self._answer({})
        if not self._parser.should_keep_alive():
            self._transport.close()

    def _answer(self, extensions: dict[str, Any]) -> None:
        answered, self._answered, self._in_body = self._answered, None, False
        if answered is not None and not answered.done():
            answered.set_result(
                httpx.Response(
                    self._parser.get_status_code(),
                    headers=self._headers,
                    stream=httpx.ByteStream(bytes(self._body)),
                    extensions=extensions,
                )
            )

    def _fail(self, error: httpx.TransportError) -> None:
        answered, self._answered = self._answered, None
        self._transport.abort()
        if answered is not None and not answered.done():
            answered.set_exception(error)


def _meaning(error: httptools.HttpParserError) -> str:
    """What llhttp says, and in words what the participant has to change."""
    said = str(error.__context__ or error)
    meaning = next((meaning for start, meaning in _MEANINGS.items() if said.startswith(start)), None)
    return f"{meaning} ({said})" if meaning else said


def _says_its_length(headers: list[tuple[bytes, bytes]]) -> bool:
    return any(name.lower() in (b"content-length", b"transfer-encoding") for name, _ in headers)
