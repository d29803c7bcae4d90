"""The network passes everything on, until it is told to cut, swallow, delay or reset a link."""

import asyncio
import json
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import cast

import pytest

from tests.chaos.proxy import Mode, Network
from tests.harness.repository import ROOT
from tests.harness.server_process import free_port

ANSWER_S = 5.0
SILENCE_S = 0.2
"""Nothing comes for so long where nothing is to come: too short finds nothing, and never fails what is sound."""
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Echo(asyncio.Protocol):
    """Sends everything back."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)


class Wire:
    """A link to a server that sends everything back."""

    def __init__(self, port: int, network: Network, closing: AsyncExitStack) -> None:
        self._port = port
        self._network = network
        self._closing = closing

    async def set(self, mode: Mode, delay_s: float = 0.0) -> None:
        await asyncio.to_thread(self._network.set, "link", mode, delay_s)

    async def connect(self) -> Streams:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._closing.callback(writer.close)
        return reader, writer


@asynccontextmanager
async def through(*, somebody_behind: bool = True) -> AsyncIterator[Wire]:
    """The proxy as a process, and the server in this loop."""
    async with AsyncExitStack() as stack:
        behind = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", 0)
        stack.callback(behind.close)
        port, port_behind = free_port(), behind.sockets[0].getsockname()[1]
        if not somebody_behind:
            behind.close()
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="proxy-"))  # short: a socket's path has a limit
        control = f"{folder}/control"
        command = [sys.executable, "-m", "tests.chaos.proxy", control, json.dumps([["link", port, port_behind]])]
        proxy = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
        stack.push_async_callback(proxy.wait)
        stack.callback(proxy.kill)
        assert proxy.stdout is not None
        assert await proxy.stdout.readline()
        network = Network(control)
        stack.callback(network.close)
        yield Wire(port, network, stack)


async def told(streams: Streams, text: bytes) -> bytes:
    """What comes back."""
    streams[1].write(text)
    return await asyncio.wait_for(streams[0].readexactly(len(text)), ANSWER_S)


async def has_ended(streams: Streams) -> bool:
    try:
        return await asyncio.wait_for(streams[0].read(1), ANSWER_S) == b""
    except ConnectionError:
        return True


async def turns_away(wire: Wire) -> bool:
    """A connection that is reset at once may never have been there."""
    try:
        return await has_ended(await wire.connect())
    except ConnectionError:
        return True


async def is_silent(streams: Streams) -> bool:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(streams[0].read(1), SILENCE_S)
    return True


async def test_everything_is_passed_on_in_its_order() -> None:
    async with through() as wire:
        streams = await wire.connect()
        large = bytes(range(256)) * 8_000
        assert await told(streams, b"early") == b"early"
        assert await told(streams, large) == large


async def test_a_link_that_is_cut_resets_what_is_there_and_what_comes_until_it_passes_again() -> None:
    async with through() as wire:
        before = await wire.connect()
        await told(before, b"there")
        await wire.set(Mode.CUT)
        assert await has_ended(before)
        assert await turns_away(wire)
        await wire.set(Mode.PASS)
        assert await told(await wire.connect(), b"again") == b"again"


async def test_a_link_that_swallows_is_silent_and_what_it_swallowed_never_arrives() -> None:
    async with through() as wire:
        before = await wire.connect()
        await told(before, b"there")
        await wire.set(Mode.SWALLOW)
        before[1].write(b"lost")
        during = await wire.connect()
        during[1].write(b"lost too")
        assert await is_silent(before)
        assert await is_silent(during)
        await wire.set(Mode.PASS)
        assert await has_ended(before)
        assert await has_ended(during)
        assert await told(await wire.connect(), b"again") == b"again"


async def test_a_slow_link_delivers_late_and_in_order() -> None:
    async with through() as wire:
        streams = await wire.connect()
        await told(streams, b"there")
        await wire.set(Mode.DELAY, 0.15)
        loop = asyncio.get_running_loop()
        sent_at = loop.time()
        large = bytes(range(256)) * 4_000
        assert await told(streams, large) == large
        assert loop.time() - sent_at >= 2 * 0.15  # there and back
        streams[1].write(b"slow")
        await wire.set(Mode.PASS)
        streams[1].write(b"next")
        assert await asyncio.wait_for(streams[0].readexactly(8), ANSWER_S) == b"slownext"


async def test_a_reset_ends_what_is_there_and_nothing_else() -> None:
    async with through() as wire:
        before = await wire.connect()
        await told(before, b"there")
        await wire.set(Mode.RESET)
        assert await has_ended(before)
        assert await told(await wire.connect(), b"again") == b"again"


async def test_nobody_behind_is_a_connection_that_ends() -> None:
    async with through(somebody_behind=False) as wire:
        assert await turns_away(wire)
