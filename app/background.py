"""One way to start and stop background services, whatever they do.

A service has `start()` and `stop()`, each awaited once, in this order. After `stop()` it does nothing more.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

log = logging.getLogger(__name__)


class RepeatingTask:
    """Calls `work` repeatedly in its own task until it is stopped.

    `work` returns the pause before the next call, in seconds. An exception is logged, and the next call follows after
    `failure_pause_s` seconds. A call in progress when the service stops has `stop_max_s` seconds to finish.
    """

    def __init__(
        self, name: str, work: Callable[[], Awaitable[float]], *, failure_pause_s: float, stop_max_s: float
    ) -> None:
        self._name = name
        self._work = work
        self._failure_pause_s = failure_pause_s
        self._stop_max_s = stop_max_s
        self._stopping = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        """The running task; None before the start."""

    async def start(self) -> None:
        self.task = asyncio.create_task(self._repeat(), name=self._name)

    async def stop(self) -> None:
        self._stopping.set()
        if self.task is not None:
            await asyncio.wait([self.task], timeout=self._stop_max_s)
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)

    async def _repeat(self) -> None:
        while not self._stopping.is_set():
            pause_s = self._failure_pause_s
            try:
                pause_s = await self._work()
            except Exception:
                log.exception("event=%s_failed", self._name)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._stopping.wait()
