"""Clients that wait until something is true of a transaction. Changes no transaction; looks them up by a callback."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from app.protocol.values import Transaction


@dataclass(slots=True, eq=False)
class _Waiter:
    """One waiting client; `seen` is the transaction's newest state since it last looked."""

    changed: asyncio.Event = field(default_factory=asyncio.Event)
    seen: Transaction | None = None


class Waiters:
    """All waiting clients of this process.

    `find` looks a transaction up. `look_again_s` gives the number of seconds after which to look again without having
    been woken.
    """

    def __init__(self, find: Callable[[str], Awaitable[Transaction]], look_again_s: Callable[[str], float]) -> None:
        self._find = find
        self._look_again_s = look_again_s
        self._waiters: dict[str, dict[_Waiter, None]] = {}  # in order of arrival
        self._closed = False

    async def wait(self, transaction_id: str, awaited: Callable[[Transaction], bool], timeout_s: float) -> Transaction:
        """Wait until `awaited` is true of the transaction, or for `timeout_s` seconds, and return it as it stands then.

        Raises what `find` raises.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout_s
        with self._waiting(transaction_id) as waiter:
            while True:
                waiter.changed.clear()
                transaction = waiter.seen or await self._find(transaction_id)
                waiter.seen = None
                left_s = until - loop.time()
                if awaited(transaction) or left_s <= 0 or self._closed:
                    return transaction
                await wait_for_event(waiter.changed, min(left_s, self._look_again_s(transaction_id)))

    @contextmanager
    def watching(self, transaction_id: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever the transaction may have changed, for those who look it up otherwise."""
        with self._waiting(transaction_id) as waiter:
            yield waiter.changed

    def show(self, transaction: Transaction) -> None:
        """Give the transaction's new state to the clients that wait for it."""
        for waiter in self._waiters.get(transaction.id, ()):
            waiter.seen = transaction
            waiter.changed.set()

    def look_again(self, transaction_id: str) -> None:
        """The transaction has changed: the clients that wait for it look it up again."""
        for waiter in self._waiters.get(transaction_id, ()):
            waiter.changed.set()

    @contextmanager
    def _waiting(self, transaction_id: str) -> Iterator[_Waiter]:
        waiter = _Waiter()
        self._waiters.setdefault(transaction_id, {})[waiter] = None
        try:
            yield waiter
        finally:
            waiters = self._waiters[transaction_id]
            del waiters[waiter]
            if not waiters:
                del self._waiters[transaction_id]

    def close(self) -> None:
        """Stop all waiting: every client gets the transaction as it stands."""
        self._closed = True
        for waiters in self._waiters.values():
            for waiter in waiters:
                waiter.changed.set()


async def wait_for_event(event: asyncio.Event, timeout_s: float) -> None:
    """Wait for `event`, and set it after `timeout_s` seconds. Cheaper than a timeout that cancels a task."""
    timer = asyncio.get_running_loop().call_later(max(0.0, timeout_s), event.set)
    try:
        await event.wait()
    finally:
        timer.cancel()
