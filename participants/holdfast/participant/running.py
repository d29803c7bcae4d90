"""What runs in this process: one call of a branch at a time, and an early "busy" for those that would wait long.

A repeat that waited for the row's lock would hold a connection, and a thread, for as long as the handler hangs. Waits
for no database. Other replicas meet in the row; there, too, no more than one call of a branch waits for it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from holdfast.fence.execution import Busy
from holdfast.fence.rows import Key

BUSY_AFTER_S: Final = 0.5
"""How long a call may have been running before others of its branch are answered "busy" instead of waiting for it."""
RETRY_AFTER_S: Final = 1.0


class _Run:
    """A call that is under way."""

    def __init__(self, lease_ends_at: float) -> None:
        self.loop: Final = asyncio.get_running_loop()
        self.started_at: Final = self.loop.time()
        self.lease_ends_at: Final = lease_ends_at
        self.ended: Final = asyncio.Event()


class Running:
    """The calls that are under way, by branch."""

    def __init__(self) -> None:
        self._runs: dict[Key, _Run] = {}

    @asynccontextmanager
    async def alone(self, key: Key, clock: Callable[[], float], *, lease_s: float) -> AsyncIterator[None]:
        """Be the only call of a branch in this process. Raises Busy when another has been running for a while.

        One that has been running for longer than `lease_s` seconds by `clock` keeps nobody away: the row says what is
        to be done about it.
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
    """Until `run` has ended. Raises Busy when it takes longer than `BUSY_AFTER_S`."""
    loop = asyncio.get_running_loop()
    if run.loop is not loop:  # another thread's
        raise Busy(RETRY_AFTER_S)
    try:
        async with asyncio.timeout_at(run.started_at + BUSY_AFTER_S):
            await run.ended.wait()
    except TimeoutError:
        raise Busy(RETRY_AFTER_S) from None
