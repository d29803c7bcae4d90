"""Keeps one background task per event loop running, however many lifespans use it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakKeyDictionary


@dataclass(slots=True)
class _Running:
    task: asyncio.Task[None]
    users: int


class Background:
    """A task that its first user starts and its last user stops."""

    def __init__(self, name: str, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._name: Final = name
        self._run: Final = run
        self._running: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, _Running]] = WeakKeyDictionary()

    @property
    def is_running(self) -> bool:
        """Whether the task is running in any event loop of this process."""
        return any(not running.task.done() for running in self._running.values())

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep the task running until the end of the block."""
        loop = asyncio.get_running_loop()
        running = self._running.get(loop)
        if running is None:
            task = loop.create_task(self._run(), name=self._name)
            running = self._running[loop] = _Running(task, 0)
        running.users += 1
        try:
            yield
        finally:
            running.users -= 1
            if running.users == 0:
                del self._running[loop]
                running.task.cancel()
                with suppress(asyncio.CancelledError):
                    await running.task
