"""A gate on the network between two processes: it lets calls pass, holds one back, or lets nothing through.

It makes a story happen in the same order every time, without sleeping and hoping. One request per connection, HTTP/1.1
with Content-Length, which is what the coordinator and the participants speak. Understands nothing but the path.
"""

import asyncio
import re
import time
from dataclasses import dataclass, field
from typing import Any, Final

from examples.processes import HOST
from holdfast.json_text import parsed

_LENGTH: Final = re.compile(rb"^content-length: *(\d+)", re.IGNORECASE | re.MULTILINE)
_CONNECTION: Final = re.compile(rb"^connection:[^\r]*\r\n", re.IGNORECASE | re.MULTILINE)
CUT_OFF: Final = (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError)


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request that came by at `at` (seconds since the epoch), and its answer; status None: it got none."""

    at: float
    path: str
    status: int | None
    body: Any


@dataclass(slots=True)
class Barrier:
    """Calls wait here. `reached` is set by the first one; `let_pass` and `cut` end the waiting for all."""

    reached: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    passes: bool = False

    def let_pass(self) -> None:
        self.passes = True
        self.ended.set()

    def cut(self) -> None:
        self.ended.set()

    async def wait(self) -> bool:
        self.reached.set()
        await self.ended.wait()
        return self.passes


class Gate:
    """In front of the process on port `upstream`. Closed, it ends every connection without an answer."""

    def __init__(self, upstream: int) -> None:
        self.closed = False
        self.exchanges: Final[list[Exchange]] = []
        self._upstream = upstream
        self._requests: dict[str, Barrier] = {}
        self._answers: dict[str, Barrier] = {}
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"http://{HOST}:{self._server.sockets[0].getsockname()[1]}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, HOST, 0)

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    def hold_requests(self, operation: str) -> Barrier:
        """From now on calls of `operation` wait before they come to the participant."""
        return self._requests.setdefault(operation, Barrier())

    def hold_answers(self, operation: str) -> Barrier:
        """From now on calls of `operation` come to the participant, and its answers wait."""
        return self._answers.setdefault(operation, Barrier())

    def forget(self) -> None:
        """No barriers any more, for calls to come."""
        self._requests.clear()
        self._answers.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            await self._serve(reader, writer)
        except (*CUT_OFF, asyncio.CancelledError):  # cancelled by `stop` alone
            pass
        finally:
            self._serving.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        at = time.time()
        head, body = await _read(reader)
        path = head.split(b" ", 2)[1].decode()
        answer = None if self.closed else await self._pass(path.rpartition("/")[2], head + body)
        if answer is None:
            self.exchanges.append(Exchange(at, path, None, None))
            return
        status = int(answer.split(b" ", 2)[1])
        self.exchanges.append(Exchange(at, path, status, parsed(answer.partition(b"\r\n\r\n")[2])))
        writer.write(answer)
        await writer.drain()

    async def _pass(self, operation: str, request: bytes) -> bytes | None:
        barrier = self._requests.get(operation)
        if barrier is not None and not await barrier.wait():
            return None
        try:
            answer = await self._forward(request)
        except CUT_OFF:
            return None
        barrier = self._answers.get(operation)
        if barrier is not None and not await barrier.wait():
            return None
        return answer

    async def _forward(self, request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(HOST, self._upstream)
        try:
            writer.write(request)
            await writer.drain()
            return b"".join(await _read(reader))
        finally:
            writer.close()


async def _read(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """One request or answer, changed to say that it is the last one of its connection."""
    head = _CONNECTION.sub(b"", await reader.readuntil(b"\r\n\r\n"))
    length = _LENGTH.search(head)
    body = await reader.readexactly(int(length.group(1))) if length else b""
    return head[:-2] + b"Connection: close\r\n\r\n", body
