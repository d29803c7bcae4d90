"""Deletes old entries of the record of who did what, which nothing else deletes."""

import logging
from collections.abc import Awaitable, Callable
from typing import Final

from app.background import RepeatingTask
from app.storage import audit
from app.storage.errors import DatabaseError
from app.storage.group_commit import Journal

log = logging.getLogger(__name__)

SWEEP_PAUSE_S: Final = 3_600.0
"""Pause after the last old entry was deleted, in seconds."""
BATCH_PAUSE_S: Final = 1.0
RETRY_PAUSE_S: Final = 60.0
STOP_MAX_S: Final = 2.0


class AuditRetention:
    """Deletes entries after `retention_s` seconds. Several replicas may do so at once: they delete the same rows.

    `check_clock` is awaited before each batch: it gives a time that has surely come, or raises DatabaseError.
    """

    def __init__(self, *, journal: Journal, retention_s: float, check_clock: Callable[[], Awaitable[float]]) -> None:
        self._journal = journal
        self._retention_s = retention_s
        self._check_clock = check_clock
        self._task = RepeatingTask("audit_retention", self._round, failure_pause_s=RETRY_PAUSE_S, stop_max_s=STOP_MAX_S)

    async def start(self) -> None:
        await self._task.start()

    async def stop(self) -> None:
        """Delete no more."""
        await self._task.stop()

    async def run_once(self) -> bool:
        """Delete a batch; returns whether there may be more."""
        return await self._journal.write_apart(audit.delete_older, await self._check_clock() - self._retention_s)

    async def _round(self) -> float:
        try:
            return BATCH_PAUSE_S if await self.run_once() else SWEEP_PAUSE_S
        except DatabaseError as error:
            log.warning("event=audit_retention_failed error=%s", error.kind)
            return RETRY_PAUSE_S
