"""Writes that nobody waits for: what a request notes beside its answer. One that fails is logged, and lost."""

import asyncio
import logging
from typing import Any, Final

from app.storage.errors import DatabaseError
from app.storage.group_commit import Journal, WriteFunction

log = logging.getLogger(__name__)

WAITING_MAX: Final = 1_000
"""Maximum number of writes that wait; further ones are lost, because the database is away or slow."""
CLOSE_MAX_S: Final = 2.0


class LaterWrites:
    """Writes to a journal, in the background."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, function: WriteFunction[Any, Any], item: Any) -> None:
        """Write this item soon."""
        if len(self._tasks) >= WAITING_MAX:
            log.warning("event=note_lost what=%s error=too many are waiting", function.__name__)
            return
        task = asyncio.create_task(self._write(function, item))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Wait for what is being written."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_MAX_S)

    async def _write(self, function: WriteFunction[Any, Any], item: Any) -> None:
        try:
            await self._journal.write(function, item)
        except DatabaseError as error:
            log.warning("event=note_lost what=%s error=%s", function.__name__, error.kind)
