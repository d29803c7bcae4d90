"""A TCP connection to a participant's host, whichever of its addresses answers first (RFC 8305, Happy Eyeballs).

The library races the connection attempts; here is the order of the addresses, and what is remembered for it.
"""

import asyncio
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

from aiohappyeyeballs import start_connection

from app.calling.resolver import Address, Resolver

STAGGER_S: Final = 0.25
"""After this time without an answer the next address is tried, too (RFC 8305, 5)."""
SLOW_S: Final = 60.0
"""How long an address is tried last after another one had to be used instead."""
SLOW_MAX: Final = 1024
"""Maximum number of such addresses that are remembered."""


FaultOf = Callable[[str], str | None]
"""Why an address may not be connected to; None if it may."""


class Connector:
    """Connects to hosts whose addresses `resolver` finds. Belongs to the event loop that first uses it."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver
        self._slow_until: dict[Any, float] = {}

    async def connect(self, host: str, port: int, fault_of: FaultOf | None = None) -> socket.socket:
        """A connected socket. Raises OSError, with a message for the call history, if nothing answers.

        `fault_of` says why an address may not be connected to. If one may not, none may: a name that leads to
        such an address is not to be trusted. What is checked is what is connected to; no name is looked up again.
        """
        try:
            addresses: Sequence[Address] = await self._resolver.addresses(host, port)
        except OSError as error:
            raise OSError(f"can't look up {host}: {error}") from error
        for *_, where in addresses if fault_of else ():
            if fault_of and (fault := fault_of(where[0])):
                raise OSError(f"{host} has the address {where[0]}, which {fault}")
        if self._slow_until:
            addresses = self._slow_last(addresses)
        try:
            connected = await start_connection(addresses, happy_eyeballs_delay=STAGGER_S)
        except (OSError, RuntimeError) as error:  # uvloop raises RuntimeError, too
            raise OSError(f"can't connect to {host}: {error}") from error
        if len(addresses) > 1:
            self._remember(addresses, connected)
        return connected

    def _slow_last(self, addresses: Sequence[Address]) -> list[Address]:
        """Otherwise in the resolver's order, which may spread the load over the addresses."""
        now = asyncio.get_running_loop().time()
        return sorted(addresses, key=lambda address: self._slow_until.get(address[4], now) > now)

    def _remember(self, addresses: Sequence[Address], connected: socket.socket) -> None:
        """Those before the one that answered have failed, or not answered in time."""
        with suppress(OSError):  # it has been closed meanwhile
            peer = connected.getpeername()
            before = [where for *_, where in addresses]
            del before[before.index(peer) if peer in before else 0 :]
            self._slow_until.pop(peer, None)
            for where in before:
                self._slow_until.pop(where, None)
                self._slow_until[where] = asyncio.get_running_loop().time() + SLOW_S
            while len(self._slow_until) > SLOW_MAX:
                del self._slow_until[next(iter(self._slow_until))]
