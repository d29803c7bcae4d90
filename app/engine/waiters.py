"""Clients that wait for something to become true of a transaction. Changes nothing and reads through others."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from app.protocol.values import Transaction


@dataclass(slots=True, eq=False)
class _Waiter:
    """One client that waits; `seen` is what the transaction has become since it last looked."""

    changed: asyncio.Event = field(default_factory=asyncio.Event)
    seen: Transaction | None = None


class Waiters:
    """All that wait in this process.

    `find` looks a transaction up; `look_again_s` says after how many seconds to look again when nobody has said that
    it has changed.
    """

    def __init__(self, find: Callable[[str], Awaitable[Transaction]], look_again_s: Callable[[str], float]) -> None:
        self._find = find
        self._look_again_s = look_again_s
        self._waiters: dict[str, dict[_Waiter, None]] = {}  # in the order of their coming
        self._closed = False

    async def wait(self, transaction_id: str, awaited: Callable[[Transaction], bool], timeout_s: float) -> Transaction:
        """The transaction as soon as `awaited` is true of it, or as it stands after `timeout_s` seconds.

        Raises what `find` raises.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout_s
        waiter = _Waiter()
        self._waiters.setdefault(transaction_id, {})[waiter] = None
        try:
            while True:
                waiter.changed.clear()
                transaction = waiter.seen or await self._find(transaction_id)
                waiter.seen = None
                left_s = until - loop.time()
                if awaited(transaction) or left_s <= 0 or self._closed:
                    return transaction
                await wait_for_event(waiter.changed, min(left_s, self._look_again_s(transaction_id)))
        finally:
            waiters = self._waiters[transaction_id]
            del waiters[waiter]
            if not waiters:
                del self._waiters[transaction_id]

    def show(self, transaction: Transaction) -> None:
        """The transaction has become this."""
        for waiter in self._waiters.get(transaction.id, ()):
            waiter.seen = transaction
            waiter.changed.set()

    def look_again(self, transaction_id: str) -> None:
        """The transaction has changed: whoever waits for it looks it up."""
        for waiter in self._waiters.get(transaction_id, ()):
            waiter.changed.set()

    def close(self) -> None:
        """Nobody waits any longer: everybody gets the transaction as it stands."""
        self._closed = True
        for waiters in self._waiters.values():
            for waiter in waiters:
                waiter.changed.set()


async def wait_for_event(event: asyncio.Event, timeout_s: float) -> None:
    """Wait for `event`; after `timeout_s` seconds it is set by this function. Costs a timer and cancels nothing."""
    timer = asyncio.get_running_loop().call_later(max(0.0, timeout_s), event.set)
    try:
        await event.wait()
    finally:
        timer.cancel()
