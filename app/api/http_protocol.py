"""What a connection may send before anything is made of it: uvicorn's protocol with limits on size and time.

uvicorn reads heads of any length, merges trailers into the headers, and waits forever for a message that doesn't come.
Here each message has a limit in bytes, checked before it is parsed, and one in time. Knows nothing of routes.
"""

import asyncio
from typing import Any, Final

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from app.api.problems import MEDIA_TYPE, Problem

HEAD_BYTES_MAX: Final = 32_768
HEADERS_MAX: Final = 100
"""Maximum number of headers in a request."""
PIECE_BYTES: Final = 16_384
"""How much is parsed at a time, so that no limit is exceeded by more."""
FRAMING_FACTOR: Final = 8
"""How many times its own size a body may take over the wire: chunks of one byte each take six bytes per byte."""
HEAD_TIMEOUT_S: Final = 10.0
"""How long the first byte and the head of a request may take to arrive, in seconds."""
BODY_TIMEOUT_S: Final = 60.0
"""How long the body may take after that, in seconds."""

LINGER_S: Final = 1.0
"""How long a client that was refused may go on sending: what closes with bytes unread loses its answer."""


def bounded(body_max_bytes: int) -> type[HttpToolsProtocol]:
    """The protocol of a server that accepts bodies up to this size."""

    class Bounded(BoundedProtocol):
        body_bytes_max = FRAMING_FACTOR * body_max_bytes + HEAD_BYTES_MAX

    return Bounded


class BoundedProtocol(HttpToolsProtocol):
    """One connection of a client. The parser calls the methods named on_…

    A head that is too long is answered 431, a message that doesn't arrive in time 408, and a body with far more framing
    than content ends the connection. Trailers are dropped (RFC 9110, 6.5.1). The host of a target in absolute form is
    the request's, whatever Host says (RFC 9112, 3.2.2).
    """

    body_bytes_max: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ws_protocol_class = None
        self._receiving = False
        self._in_body = False
        self._bytes = 0
        """How much of the head, or else of the body, has been received, with what else was in its first piece."""
        self._head_bytes = 0
        """How much of the head has been parsed."""
        self._piece = 0
        self._refused = False
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._must_arrive_within(HEAD_TIMEOUT_S)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._has_arrived()

    def data_received(self, data: bytes) -> None:
        for start in range(0, len(data), PIECE_BYTES):
            if self._refused or self.transport.is_closing():
                return
            piece = data[start : start + PIECE_BYTES]
            self._bytes += len(piece)
            self._piece = len(piece)
            super().data_received(piece)
            if not self._in_body and self._bytes > HEAD_BYTES_MAX:
                self._refuse("head-too-large")
            elif self._in_body and self._bytes > self.body_bytes_max:
                self._refuse(None)
        if self._late is None and (self._receiving or self._is_idle):
            self._must_arrive_within(HEAD_TIMEOUT_S if not self._in_body else BODY_TIMEOUT_S)

    @property
    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    # --- called by the parser -------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._receiving, self._in_body, self._bytes, self._head_bytes = True, False, self._piece, 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._head_bytes += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._refused or self._in_body:
            return
        self._head_bytes += len(name) + len(value) + 4
        if self._head_bytes > HEAD_BYTES_MAX or len(self.headers) >= HEADERS_MAX:
            self._refuse("head-too-large")
        else:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._refused:
            return
        self._in_body, self._bytes = True, 0
        self._has_arrived()
        if not self.url.startswith((b"/", b"*")):
            self._take_host_from_target()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._receiving = self._in_body = False
        self._bytes = 0
        self._has_arrived()
        if not self._refused:
            super().on_message_complete()

    def _take_host_from_target(self) -> None:
        target = httptools.parse_url(self.url)
        host = target.host or b""
        if b":" in host:
            host = b"[%b]" % host
        authority = host if target.port is None else b"%b:%d" % (host, target.port)
        self.headers[:] = [(name, value) for name, value in self.headers if name != b"host"] + [(b"host", authority)]

    # --- what doesn't fit, or doesn't come ------------------------------------------------------------------------

    def _must_arrive_within(self, limit_s: float) -> None:
        self._late = self.loop.call_later(limit_s, self._give_up)

    def _has_arrived(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _give_up(self) -> None:
        if self.pipeline:  # nothing is read until the requests before it are answered
            self._must_arrive_within(BODY_TIMEOUT_S)
            return
        self._late = None
        self._refuse("request-timeout" if self._receiving else None)

    def _refuse(self, slug: str | None) -> None:
        """End the connection, with an answer if none has begun."""
        if self._refused:
            return
        self._refused = True
        is_next = not self.cycle.response_started if self._in_body else self._is_idle
        if self._in_body:  # or the application would answer, too
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if slug is not None and is_next and not self.pipeline and not self.transport.is_closing():
            self.transport.write(_answer(slug))
            if self.transport.can_write_eof():
                self.transport.write_eof()
            self._has_arrived()
            self._late = self.loop.call_later(LINGER_S, self.transport.close)
        else:
            self.transport.close()

    def _unsupported_upgrade_warning(self) -> None:
        """An upgrade is ignored (RFC 9110, 7.8), and nobody fills the log with it."""


def _answer(slug: str) -> bytes:
    response = Problem(slug).response()
    head = b"content-type: %b\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % (
        MEDIA_TYPE.encode(),
        len(response.body),
    )
    return STATUS_LINE[response.status_code] + head + bytes(response.body)
