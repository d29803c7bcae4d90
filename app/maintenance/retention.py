"""Purges finished transactions once their retention is over, in small batches; exports them first where that is wanted.

Any number of replicas do this at once. What may be purged is said in purge.py. A record is deleted only when its line
is durable in the export, so a crash in between exports it again: at least once, never not at all.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from app.background import RepeatingTask
from app.maintenance.export import Export
from app.metrics import Metrics
from app.protocol.transaction_id import earliest_id
from app.storage.errors import DatabaseError, StaleError
from app.storage.group_commit import Journal
from app.storage.purge import Purge, purge

log = logging.getLogger(__name__)

BATCH_MAX: Final = 200
"""Transactions looked at, and so purged, at once."""
PAUSE_FACTOR: Final = 9.0
"""After a batch it pauses for so many times as long as the batch took: a tenth of one connection, at the most."""
PAUSE_MIN_S: Final = 0.02
SWEEP_PAUSE_S: Final = 600.0
"""From one sweep through all that is old enough to the next, in seconds."""
RETRY_PAUSE_S: Final = 60.0
"""After a batch that failed."""
STOP_MAX_S: Final = 2.0
"""How long a batch that is under way may take when the process stops."""
DAY_S: Final = 86_400.0


class Retention:
    """Purges until it is stopped. `clock` gives seconds since the epoch; without an `export` nothing is kept."""

    def __init__(
        self,
        *,
        journal: Journal,
        metrics: Metrics,
        retention_s: float,
        export: Export | None,
        clock: Callable[[], float],
    ) -> None:
        self._journal = journal
        self._metrics = metrics
        self._retention_s = retention_s
        self._export = export
        self._clock = clock
        self._after_id = ""
        self._task = RepeatingTask("retention", self._round, failure_pause_s=RETRY_PAUSE_S, stop_max_s=STOP_MAX_S)

    async def run_once(self) -> bool:
        """Purge one batch; returns whether there may be more to purge."""
        now = self._clock()
        export = self._export
        batch = Purge(
            finished_by=now - self._retention_s,
            after_id=self._after_id,
            before_id=earliest_id(now - self._retention_s + 0.001),
            limit=BATCH_MAX,
            export=None if export is None else lambda records: export.append(records, now),
        )
        purged = await self._journal.write_apart(purge, batch)
        self._metrics.purged.inc(purged.count)
        self._after_id = purged.last_id or ""
        return purged.last_id is not None

    async def start(self) -> None:
        if self._retention_s > 0:
            await self._task.start()

    async def stop(self) -> None:
        """Let a batch that is under way come to its end, or it would be exported again."""
        await self._task.stop()

    async def _round(self) -> float:
        loop = asyncio.get_running_loop()
        started_at = loop.time()
        try:
            more = await self.run_once()
        except StaleError:
            log.info("event=purge_shared Another replica purges the same transactions.")
            return RETRY_PAUSE_S
        except (DatabaseError, OSError) as error:
            self._metrics.purge_failures.inc()
            log.error("event=purge_failed error=%s", error)
            return RETRY_PAUSE_S
        except Exception:
            self._metrics.purge_failures.inc()
            log.exception("event=purge_failed")
            return RETRY_PAUSE_S
        return max(PAUSE_MIN_S, PAUSE_FACTOR * (loop.time() - started_at)) if more else SWEEP_PAUSE_S
