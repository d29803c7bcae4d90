"""An HTTP server that misbehaves on request: raw sockets on loopback, no framework between test and wire.

    async with FaultServer() as server:
        server.script("/try", [Reset(), Reply(200, {"hold_id": "h-1"})])
        ...                                    # call server.url("/try"): reset, then 200, then 200 again, ...
        assert [r.path for r in server.requests] == ["/try", "/try"]

A path plays its script one action a request and stays at the last one. A path without a script answers 404.
What was received is in `requests`, in order, whatever the answer was. Tests wait with `wait_for_requests`
and `wait_until_left`, never with a sleep. Faults that need no request (a closed port, a certificate
that nobody trusts, plain text where TLS is expected) are URLs: `refused_url`, `untrusted_url`, `no_tls_url`.
"""

import asyncio
import gzip
import json
import socket
import ssl
import struct
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol, Self

_BODY_BYTES_MAX: Final = 16 * 1024 * 1024
_HEAD_BYTES_MAX: Final = 1024 * 1024
_WAIT_TIMEOUT_S: Final = 30.0
_TLS_HANDSHAKE: Final = b"\x16"
_SELF_SIGNED: Final = Path(__file__).with_name("self_signed.pem")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request as it arrived. Header names are in lower case; a repeated header's values are joined by ", "."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    connection: int
    """Counts connections from 1: two requests with the same number came over one connection."""

    def json(self) -> Any:
        return json.loads(self.body)


class Action(Protocol):
    """What to do with one request. Returns whether the connection may carry another one."""

    async def play(self, peer: "Peer") -> bool: ...


class FaultServer:
    """Plays scripts on a free loopback port while it is entered."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self._scripts: dict[str, list[Action]] = {}
        self._peers: dict[asyncio.Task[None], Peer] = {}
        self._connections = 0
        self._changed = asyncio.Condition()
        self._stack = AsyncExitStack()
        self._ports: dict[str, int] = {}

    async def __aenter__(self) -> Self:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(_SELF_SIGNED)
        closed = self._stack.enter_context(socket.socket())
        closed.bind(("127.0.0.1", 0))  # bound but not listening: refuses, and nobody else can take the port
        self._ports["refused"] = closed.getsockname()[1]
        for name, context in (("plain", None), ("tls", tls)):
            server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=context, limit=_HEAD_BYTES_MAX)
            self._stack.callback(server.close)
            self._ports[name] = server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()
        tasks = list(self._peers)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def url(self, path: str = "") -> str:
        return f"http://127.0.0.1:{self._ports['plain']}{path}"

    def refused_url(self, path: str = "") -> str:
        """Nothing listens here: connections are refused."""
        return f"http://127.0.0.1:{self._ports['refused']}{path}"

    def untrusted_url(self, path: str = "") -> str:
        """Plays the scripts too, behind a self-signed certificate that nobody has a reason to trust."""
        return f"https://127.0.0.1:{self._ports['tls']}{path}"

    def no_tls_url(self, path: str = "") -> str:
        """`https`, but the server speaks plain HTTP."""
        return f"https://127.0.0.1:{self._ports['plain']}{path}"

    def script(self, path: str, actions: Sequence[Action]) -> None:
        """From now on `path` answers with these, one a request; the last one stays."""
        assert actions, "a script has at least one action"
        self._scripts[path] = list(actions)

    def received(self, path: str) -> list[Request]:
        """The requests to `path`, in the order in which they arrived."""
        return [request for request in self.requests if request.path == path]

    @property
    def connections_open(self) -> int:
        return len(self._peers)

    async def wait_for_requests(self, count: int, path: str | None = None) -> None:
        """Return when `count` requests (to `path`) have been received, and fail when none come."""
        async with asyncio.timeout(_WAIT_TIMEOUT_S), self._changed:
            await self._changed.wait_for(lambda: len(self.requests if path is None else self.received(path)) >= count)

    async def wait_until_left(self) -> None:
        """Return when no connection is open any more: the client has let go of all of them."""
        async with asyncio.timeout(_WAIT_TIMEOUT_S), self._changed:
            await self._changed.wait_for(lambda: not self._peers)

    async def close_idle(self) -> None:
        """Close every connection on which no request is being answered, without a word to the client."""
        idle = [task for task, peer in self._peers.items() if not peer.busy]
        for task in idle:
            task.cancel()
        await asyncio.gather(*idle, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections += 1
        peer = self._peers[task] = Peer(self, reader, writer, number=self._connections)
        try:
            with suppress(ConnectionError, ssl.SSLError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while await self._exchange(peer):
                    pass
        finally:
            writer.close()
            with suppress(ConnectionError, ssl.SSLError, asyncio.CancelledError):
                await writer.wait_closed()
            del self._peers[task]
            async with self._changed:
                self._changed.notify_all()

    async def _exchange(self, peer: "Peer") -> bool:
        request = await peer.receive()
        if request is None:
            return False
        peer.busy = True
        script = self._scripts.get(request.path, [Reply(404)])
        action = script.pop(0) if len(script) > 1 else script[0]
        self.requests.append(request)
        async with self._changed:
            self._changed.notify_all()
        reusable = await action.play(peer)
        peer.busy = False
        return reusable


class Peer:
    """One connection, as an action sees it."""

    def __init__(
        self, server: FaultServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, number: int
    ) -> None:
        self.server = server
        self.busy = False
        self._reader = reader
        self._writer = writer
        self._number = number

    async def receive(self) -> Request | None:
        """The next request, or None when the client has left. Raises where it makes no sense."""
        try:
            start = await self._reader.readexactly(1)
            if start == _TLS_HANDSHAKE:
                await self.send(_head(400, {"Connection": "close"}))
                return None
            head = start + await self._reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return None
        request_line, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
        method, path, _version = request_line.split(" ")
        headers: dict[str, str] = {}
        for name, _, value in (line.partition(":") for line in lines):
            key = name.lower()
            headers[key] = f"{headers[key]}, {value.strip()}" if key in headers else value.strip()
        if headers.get("expect", "").lower() == "100-continue":
            await self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await self._body(headers)
        return Request(method=method, path=path, headers=headers, body=body, connection=self._number)

    async def send(self, data: bytes) -> None:
        """Send, and let the client run: it usually lives in the same event loop."""
        self._writer.write(data)
        await self._writer.drain()
        await asyncio.sleep(0)

    async def left_within(self, timeout_s: float | None) -> bool:
        """Wait until the client leaves, for `timeout_s` at most; True when it has. What it sends is ignored."""
        try:
            async with asyncio.timeout(timeout_s):
                while await self._reader.read(65536):
                    pass
        except TimeoutError:
            return False
        return True

    def reset(self) -> None:
        """End the connection with RST instead of FIN."""
        linger_none = struct.pack("ii", 1, 0)
        self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_none)
        self._writer.transport.abort()

    async def _body(self, headers: Mapping[str, str]) -> bytes:
        if headers.get("transfer-encoding", "").lower() != "chunked":
            size = int(headers.get("content-length", "0"))
            assert size <= _BODY_BYTES_MAX
            return await self._reader.readexactly(size)
        body = b""
        while size := int((await self._reader.readline()).split(b";")[0], 16):
            assert len(body) + size <= _BODY_BYTES_MAX
            body += await self._reader.readexactly(size)
            await self._reader.readline()
        await self._reader.readline()
        return body


@dataclass(frozen=True, slots=True)
class Reply:
    """A normal answer. `body`: bytes and text go out as they are, None is empty, anything else is sent as JSON.

    `headers` may override Content-Length and Content-Type, which makes wrong lengths. `informational` are
    1xx statuses sent before. With `closes` the server promises keep-alive and then closes all the same.
    """

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    chunked: bool = False
    informational: Sequence[int] = ()
    closes: bool = False

    async def play(self, peer: Peer) -> bool:
        body = self.body_bytes()
        default = {"Content-Type": "application/json"} if self._is_json else {}
        framing = {"Transfer-Encoding": "chunked"} if self.chunked else {"Content-Length": str(len(body))}
        if self.chunked:
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
        before = b"".join(_head(status, {}) for status in self.informational)
        await peer.send(before + _head(self.status, {**default, **framing, **self.headers}) + body)
        return not self.closes

    def body_bytes(self) -> bytes:
        if self._is_json:
            return json.dumps(self.body).encode()
        return self.body.encode() if isinstance(self.body, str) else self.body or b""

    @property
    def _is_json(self) -> bool:
        return self.body is not None and not isinstance(self.body, str | bytes)


@dataclass(frozen=True, slots=True)
class Redirect:
    """Tempts the client to call another path of this server: `requests` shows whether it did."""

    to: str
    status: int = 302

    async def play(self, peer: Peer) -> bool:
        return await Reply(self.status, headers={"Location": peer.server.url(self.to)}).play(peer)


@dataclass(frozen=True, slots=True)
class Raw:
    """Sends these bytes, then closes. The default is no HTTP at all; nothing (b"") is a close without an answer."""

    data: bytes = b"\x00\x16\x03SSH-2.0-?\r\n\xff\xfe{]\r\n\r\n" * 8

    async def play(self, peer: Peer) -> bool:
        await peer.send(self.data)
        return False


@dataclass(frozen=True, slots=True)
class Reset:
    """Reads the request, sends `after` (a status line, half a body), then resets the connection."""

    after: bytes = b""

    async def play(self, peer: Peer) -> bool:
        if self.after:
            await peer.send(self.after)
        peer.reset()
        return False


@dataclass(frozen=True, slots=True)
class NeverAnswers:
    """Reads the request, sends `after`, and nothing more until the client leaves."""

    after: bytes = b""

    async def play(self, peer: Peer) -> bool:
        if self.after:
            await peer.send(self.after)
        await peer.left_within(None)
        return False


@dataclass(frozen=True, slots=True)
class TruncatedBody:
    """Announces more than it sends, then closes."""

    sent: bytes = b'{"hold_id": "h-'
    announced_bytes: int = 1000

    async def play(self, peer: Peer) -> bool:
        await peer.send(_head(200, {"Content-Length": str(self.announced_bytes)}) + self.sent)
        return False


@dataclass(frozen=True, slots=True)
class EndlessBody:
    """Sends as fast as the client reads and never ends: chunked, or (without a length) until close."""

    chunked: bool = True
    piece: bytes = b" " * 16384

    async def play(self, peer: Peer) -> bool:
        framing = {"Transfer-Encoding": "chunked"} if self.chunked else {"Connection": "close"}
        await peer.send(_head(200, {"Content-Type": "application/json", **framing}))
        piece = b"%x\r\n%b\r\n" % (len(self.piece), self.piece) if self.chunked else self.piece
        while True:  # until the client leaves: then sending raises
            await peer.send(piece)


@dataclass(frozen=True, slots=True)
class EndlessHead:
    """Sends one header after another and never gets to the body."""

    async def play(self, peer: Peer) -> bool:
        await peer.send(b"HTTP/1.1 200 OK\r\n")
        line = b"X-Filler: " + b"x" * 1000 + b"\r\n"
        while True:
            await peer.send(line)


@dataclass(frozen=True, slots=True)
class SlowBody:
    """Sends a byte, pauses, and so on: each pause is shorter than a read timeout, all of them are longer.

    `from_head` is as slow with the status line and headers. Ends when everything is sent or the client leaves.
    """

    body: bytes = b'{"hold_id": "h-1"}'
    pause_s: float = 0.05
    from_head: bool = False

    async def play(self, peer: Peer) -> bool:
        head = _head(200, {"Content-Type": "application/json", "Content-Length": str(len(self.body))})
        if not self.from_head:
            await peer.send(head)
        for byte in head + self.body if self.from_head else self.body:
            await peer.send(bytes([byte]))
            if await peer.left_within(self.pause_s):
                return False
        return True


def huge_headers(size: int = 256 * 1024) -> Reply:
    """A good answer under a header that is longer than anyone should read."""
    return Reply(200, {}, headers={"X-Filler": "x" * size})


def gzip_bomb(size: int = 64 * 1024 * 1024) -> Reply:
    """A small body that becomes `size` bytes in a client that unpacks before it counts."""
    body = gzip.compress(b"\0" * size, compresslevel=9, mtime=0)
    return Reply(200, body, headers={"Content-Type": "application/json", "Content-Encoding": "gzip"})


def _head(status: int, headers: Mapping[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} As-Scripted", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")
