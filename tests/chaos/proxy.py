"""A network that goes wrong: one process that passes bytes on between ports, until it is told not to.

`python -m tests.chaos.proxy SOCKET LINKS`, the links in JSON: [[name, port, port behind it], …]. Whoever connects to
SOCKET says one line for each change, {"link": name, "mode": …, "delay_s": …}, and is answered `done`. `Network` does.
Knows nothing of what it passes on.
"""

import asyncio
import json
import os
import socket
import sys
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any, Final, cast

import uvloop

READY: Final = "running on http"  # the word of the other processes, which they are waited for by
ANSWER_MAX_S: Final = 30.0
_LINGER_NOT: Final = b"\x01\x00\x00\x00\x00\x00\x00\x00"
"""struct linger {on, 0 seconds}: closing then resets the connection."""


class Mode(StrEnum):
    """What a link does."""

    PASS = "pass"
    DELAY = "delay"  # every piece arrives later, in its order
    SWALLOW = "swallow"  # connections stay and are accepted, and nothing arrives; what was sent is lost
    CUT = "cut"  # connections are reset, new ones too
    RESET = "reset"  # connections are reset once


class Place(StrEnum):
    """Between whom a link is."""

    CLIENTS = "clients and a replica"
    PARTICIPANT = "the replicas and a participant"
    DATABASE = "a replica and PostgreSQL"


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkPorts:
    """A link by its name, where it listens, and where it leads to."""

    name: str
    place: Place
    port: int
    port_behind: int


class Network:
    """Commands to the proxy, from another process."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(ANSWER_MAX_S)
        self._socket.connect(path)
        self._lines = self._socket.makefile("r")

    def set(self, link: str, mode: Mode, delay_s: float = 0.0) -> None:
        """Returns when it is so."""
        self._socket.sendall(json.dumps({"link": link, "mode": mode, "delay_s": delay_s}).encode() + b"\n")
        assert self._lines.readline() == "done\n", "the proxy has ended"

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


class Link:
    """One port, and the one behind it."""

    def __init__(self, port_behind: int) -> None:
        self.port_behind = port_behind
        self.mode = Mode.PASS
        self.delay_s = 0.0
        self.ends: set[End] = set()

    def change(self, mode: Mode, delay_s: float) -> None:
        """What was swallowed is lost: a connection that lacks some bytes can only be reset."""
        loses = self.mode is Mode.SWALLOW or mode in (Mode.CUT, Mode.RESET)
        self.mode, self.delay_s = (Mode.PASS if mode is Mode.RESET else mode), delay_s
        for end in list(self.ends) if loses else ():
            end.reset()


class End(asyncio.Protocol):
    """One side of a connection that is passed on; `other` is the opposite one, as soon as it is there."""

    def __init__(self, link: Link, other: "End | None" = None) -> None:
        self._link = link
        self._other = other
        self._transport: asyncio.Transport | None = None
        self._early: list[bytes] = []
        self._late: deque[tuple[float, bytes | None]] = deque()
        self._ended = False
        self._reaching: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._ended or self._link.mode is Mode.CUT:
            self.reset()
            return
        self._link.ends.add(self)
        if self._other is None:
            self._reaching = asyncio.create_task(self._reach())
        else:
            self._other._met(self)

    def data_received(self, data: bytes) -> None:
        if self._link.mode is Mode.SWALLOW:
            return
        if self._other is None:
            self._early.append(data)
            return
        if self._link.mode is Mode.DELAY or self._late:
            self._send_later(data)
        else:
            self._other.write(data)

    def eof_received(self) -> None:
        """Half-open connections are none of this: the transport closes, and the other one with it."""

    def connection_lost(self, error: Exception | None) -> None:
        self._ended = True
        self._link.ends.discard(self)
        if self._link.mode is Mode.SWALLOW:
            return
        if self._late:
            self._send_later(None)
        elif self._other is not None:
            self._other.close()

    def pause_writing(self) -> None:
        if self._other is not None and self._other._transport is not None:
            self._other._transport.pause_reading()

    def resume_writing(self) -> None:
        if self._other is not None and self._other._transport is not None and not self._other._ended:
            self._other._transport.resume_reading()

    def write(self, data: bytes) -> None:
        if self._transport is not None and not self._ended and self._link.mode is not Mode.SWALLOW:
            self._transport.write(data)

    def close(self) -> None:
        if self._transport is not None and not self._ended:
            self._transport.close()
        self._ended = True

    def reset(self) -> None:
        if self._transport is not None:
            with suppress(OSError):
                self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
            self._transport.abort()
        self._ended = True

    def _send_later(self, data: bytes | None) -> None:
        """After all that is to be sent before it; None closes."""
        loop = asyncio.get_running_loop()
        delay_s = self._link.delay_s if self._link.mode is Mode.DELAY else 0.0
        self._late.append((loop.time() + delay_s, data))
        if len(self._late) == 1:
            loop.call_later(delay_s, self._send_due)

    def _send_due(self) -> None:
        """One timer at a time: two might change places."""
        assert self._other is not None
        loop = asyncio.get_running_loop()
        while self._late and (self._late[0][0] <= loop.time() or self._link.mode is not Mode.DELAY):
            data = self._late.popleft()[1]
            if data is None:
                self._other.close()
            else:
                self._other.write(data)
        if self._late:
            loop.call_later(max(0.001, self._late[0][0] - loop.time()), self._send_due)

    async def _reach(self) -> None:
        """Connect to the port behind; nobody there is a connection that is closed at once."""
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: End(self._link, self), "127.0.0.1", self._link.port_behind)
        except OSError:
            self.reset()

    def _met(self, other: "End") -> None:
        self._other = other
        if self._ended:
            other.close()
        early, self._early = self._early, []
        for data in early:
            self.data_received(data)


async def _obey(links: dict[str, Link], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        told: dict[str, Any] = json.loads(line)
        links[told["link"]].change(Mode(told["mode"]), told["delay_s"])
        writer.write(b"done\n")
    writer.close()


async def serve(path: str, asked: Sequence[tuple[str, int, int]]) -> None:
    """Pass on until the process ends."""
    loop = asyncio.get_running_loop()
    links: dict[str, Link] = {}
    servers: list[asyncio.AbstractServer] = []
    for name, port, port_behind in asked:
        link = links[name] = Link(port_behind)
        servers.append(await loop.create_server(partial(End, link), "127.0.0.1", port, backlog=512))
    with suppress(FileNotFoundError):
        os.unlink(path)
    server = await asyncio.start_unix_server(lambda reader, writer: _obey(links, reader, writer), path)
    print(READY, flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], json.loads(sys.argv[2])))
