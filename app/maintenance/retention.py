"""Purges finished transactions after their retention, in small batches, and exports them first if configured.

Any number of replicas can do this at once. purge.py says what may be purged. A record is deleted only after its line is
durable in the export, so that a crash in between exports it again: at least once.
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
"""Maximum number of transactions that a batch looks at."""
PAUSE_FACTOR: Final = 9.0
"""The pause after a batch, as a multiple of its duration: purging takes at most a tenth of one connection."""
PAUSE_MIN_S: Final = 0.02
SWEEP_PAUSE_S: Final = 600.0
"""Pause between two sweeps over all old transactions, in seconds."""
RETRY_PAUSE_S: Final = 60.0
"""Pause after a failed batch, in seconds."""
STOP_MAX_S: Final = 2.0
"""How long a batch in progress may take when the process stops, in seconds."""
DAY_S: Final = 86_400.0


class Retention:
    """Purges until it is stopped. `clock` gives seconds since the epoch. Without `export`, purged records are gone."""

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
        """Purge one batch; returns whether there may be more."""
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
        """Let a batch in progress finish; otherwise it would be exported again."""
        await self._task.stop()

    async def _round(self) -> float:
        loop = asyncio.get_running_loop()
        started_at = loop.time()
        try:
            more = await self.run_once()
        except StaleError:
            log.info("event=purge_shared Another replica is purging the same transactions; this one pauses.")
            return RETRY_PAUSE_S
        except (DatabaseError, OSError) as error:
            self._metrics.purge_failures.inc()
            log.error("event=purge_failed error=%s Nothing is lost; it is tried again in %.0f s.", error, RETRY_PAUSE_S)
            return RETRY_PAUSE_S
        except Exception:
            self._metrics.purge_failures.inc()
            log.exception("event=purge_failed")
            return RETRY_PAUSE_S
        return max(PAUSE_MIN_S, PAUSE_FACTOR * (loop.time() - started_at)) if more else SWEEP_PAUSE_S
