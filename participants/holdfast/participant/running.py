"""Lets this process run one call of a branch at a time, and answers "busy" early to those that would wait long.

Otherwise a repeated call would wait for the row's lock, and hold a connection and a thread while the handler hangs.
Doesn't use the database. Replicas are serialised by the row, so each has at most one call of a branch waiting for it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from holdfast.fence.execution import Busy
from holdfast.fence.rows import Key

BUSY_AFTER_S: Final = 0.5
"""How long a call runs, in seconds, before others of its branch are answered "busy" instead of waiting."""
RETRY_AFTER_S: Final = 1.0


class _Run:
    """A call in progress."""

    def __init__(self, lease_ends_at: float) -> None:
        self.loop: Final = asyncio.get_running_loop()
        self.started_at: Final = self.loop.time()
        self.lease_ends_at: Final = lease_ends_at
        self.ended: Final = asyncio.Event()


class Running:
    """The calls in progress, by branch."""

    def __init__(self) -> None:
        self._runs: dict[Key, _Run] = {}

    @asynccontextmanager
    async def alone(self, key: Key, clock: Callable[[], float], *, lease_s: float) -> AsyncIterator[None]:
        """Run as the only call of a branch in this process. Raises Busy if another one has been running for a while.

        A call that has been running for longer than `lease_s` seconds on `clock` no longer blocks others; the row's
        state says how to deal with it.
        """
        while (run := self._runs.get(key)) is not None and clock() < run.lease_ends_at:
            await _wait_for(run)
        run = self._runs[key] = _Run(clock() + lease_s)
        try:
            yield
        finally:
            if self._runs.get(key) is run:
                del self._runs[key]
            run.ended.set()


async def _wait_for(run: _Run) -> None:
    """Wait until `run` has ended. Raises Busy if it runs for longer than `BUSY_AFTER_S`."""
    loop = asyncio.get_running_loop()
    if run.loop is not loop:  # another thread's
        raise Busy(RETRY_AFTER_S)
    try:
        async with asyncio.timeout_at(run.started_at + BUSY_AFTER_S):
            await run.ended.wait()
    except TimeoutError:
        raise Busy(RETRY_AFTER_S) from None
