"""Purges finished transactions after their retention, in small batches, and exports them first if configured.

One replica at a time does this: the one that holds the lease. purge.py says what may be purged. A batch is exported,
then deleted, each in short database transactions, so that nothing waits for it and nothing it does takes long:

1. Read the batch, and its calls page by page, into the export; wait until its lines are on disk.
2. Delete its transactions. From this commit on they are never exported again. A few calls are deleted with them.
3. Delete more calls than that in chunks, which are recorded as left over until none is left.

A crash between 1 and 2 exports the batch again: at least once. Otherwise every transaction is exported once.
"""

import asyncio
import logging
import secrets
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Final

from app.background import RepeatingTask
from app.maintenance.export import Export
from app.metrics import Metrics
from app.protocol.transaction_id import earliest_id
from app.protocol.values import CallRecord, Transaction
from app.storage import purge
from app.storage.errors import DatabaseError, DuplicateKeyError
from app.storage.group_commit import Journal
from app.storage.leases import Lease, LeaseLostError, release_lease, take_lease
from app.storage.purge import Deletion, Record

log = logging.getLogger(__name__)

BATCH_MAX: Final = 200
"""Maximum number of transactions that a batch looks at."""
EXPORTED_MAX: Final = 10_000
"""Maximum number of transactions remembered as exported but not deleted; a forgotten one is exported again."""
LEASE_NAME: Final = "purge"
LEASE_S: Final = 60.0
"""After this much silence another replica purges, in seconds. It is extended when a third has passed."""
PAUSE_FACTOR: Final = 9.0
"""The pause after a batch, as a multiple of its duration: purging takes at most a tenth of one connection."""
PAUSE_MIN_S: Final = 0.02
SWEEP_PAUSE_S: Final = 600.0
"""Pause between two sweeps over all old transactions, in seconds."""
RETRY_PAUSE_S: Final = 60.0
"""Pause after a failed batch, and while another replica purges, in seconds."""
STOP_MAX_S: Final = 2.0
"""How long a batch in progress may take when the process stops, in seconds."""
DAY_S: Final = 86_400.0


class _ExportStoppedError(Exception):
    """The process stops, or another replica has taken over; the export's file is as it was before the batch."""


class Retention:
    """Purges until it is stopped. Without `export`, purged records are gone.

    `clock` gives seconds since the epoch. `check_clock` is awaited before each batch: it gives a time that has surely
    come, or raises DatabaseError.
    """

    def __init__(
        self,
        *,
        journal: Journal,
        metrics: Metrics,
        retention_s: float,
        export: Export | None,
        clock: Callable[[], float],
        check_clock: Callable[[], Awaitable[float]],
    ) -> None:
        self._journal = journal
        self._metrics = metrics
        self._retention_s = retention_s
        self._export = export
        self._clock = clock
        self._check_clock = check_clock
        self._holder = secrets.token_hex(8)
        self._leased_until = 0.0
        self._after_id = ""
        self._singly_until = ""
        """Up to this id transactions are purged one by one, to get past the one that made a batch fail."""
        self._has_leftovers = True
        self._exported: dict[str, None] = {}
        """Ids of transactions that were exported, but not deleted yet; the oldest first."""
        self._task = RepeatingTask("retention", self._round, failure_pause_s=RETRY_PAUSE_S, stop_max_s=STOP_MAX_S)

    async def start(self) -> None:
        if self._retention_s > 0:
            await self._task.start()

    async def stop(self) -> None:
        """Let a batch in progress finish, so that it isn't exported again, and hand over to another replica."""
        await self._task.stop()
        if self._leased_until:
            try:
                await self._journal.write_apart(release_lease, self._lease())
            except DatabaseError as error:
                log.info("event=purge_not_handed_over error=%s Another replica purges in %.0f s.", error, LEASE_S)

    async def run_once(self) -> bool:
        """Purge one batch, or delete some leftover calls; returns whether there may be more.

        Raises LeaseLostError while another replica purges.
        """
        await self._hold_lease()
        if self._has_leftovers:
            self._has_leftovers = False  # if this fails, the next sweep tries it again
            self._has_leftovers = await self._journal.write_apart(purge.delete_leftover_calls, self._lease())
            if self._has_leftovers:
                return True
        finished_by = await self._check_clock() - self._retention_s
        limit = 1 if self._after_id < self._singly_until else BATCH_MAX
        ids = await self._journal.read(purge.list_ids, self._after_id, earliest_id(finished_by + 0.001), limit)
        if not ids:
            self._start_again()
            return False
        try:
            await self._purge(ids, finished_by)
        except (OSError, LeaseLostError):
            raise
        except Exception:
            self._get_past(ids)
            raise
        return True

    async def _purge(self, window: Sequence[str], finished_by: float) -> None:
        batch = await self._journal.read(purge.find_batch, window, finished_by)
        if batch.transactions:
            await self._export_new(batch.transactions)
            ids = [each.id for each in batch.transactions]
            deletion = Deletion(ids=ids, finished_by=finished_by, lease=self._lease())
            self._has_leftovers = await self._journal.write_apart(purge.delete_finished, deletion)
            self._metrics.purged.inc(len(batch.transactions))
            for transaction in batch.transactions:
                self._exported.pop(transaction.id, None)
        self._after_id = batch.last_id

    async def _export_new(self, transactions: Sequence[Transaction]) -> None:
        """Export those that weren't exported yet, in a thread, and keep the lease meanwhile."""
        new = [each for each in transactions if each.id not in self._exported]
        if self._export is None or not new:
            return
        stopped = threading.Event()
        exporting = asyncio.create_task(
            asyncio.to_thread(self._export.append, self._records(new, stopped), self._clock())
        )
        try:
            while not (await asyncio.wait([exporting], timeout=LEASE_S / 3))[0]:
                await self._hold_lease()
        finally:
            stopped.set()
            await asyncio.wait([exporting])
        exporting.result()
        self._exported |= {each.id: None for each in new}
        while len(self._exported) > EXPORTED_MAX:
            del self._exported[next(iter(self._exported))]

    def _records(self, transactions: Sequence[Transaction], stopped: threading.Event) -> Iterator[Record]:
        """The transactions with their calls, which are read lazily because there may be very many."""
        ids = [each.id for each in transactions]
        few = self._journal.read_in_this_thread(purge.find_few_calls, ids)
        for each in transactions:
            yield each, self._pages(each.id, stopped) if few is None else iter(few.get(each.id, ()))

    def _pages(self, transaction_id: str, stopped: threading.Event) -> Iterator[CallRecord]:
        after_id: int | None = 0
        while after_id is not None:
            if stopped.is_set():
                raise _ExportStoppedError
            page, after_id = self._journal.read_in_this_thread(purge.page_calls, transaction_id, after_id)
            yield from page

    def _get_past(self, ids: Sequence[str]) -> None:
        """A batch failed: go on one by one, or without the one that failed."""
        self._has_leftovers = True  # a commit whose reply was lost may have left some
        if len(ids) > 1:
            self._singly_until = ids[-1]
        else:
            self._after_id = ids[-1]
            log.error("event=purge_skipped transaction_id=%s It is tried again in the next sweep.", ids[-1])

    def _start_again(self) -> None:
        self._after_id = self._singly_until = ""
        self._has_leftovers = True

    # --- the lease ---------------------------------------------------------------------------------------------------

    def _lease(self) -> Lease:
        now = self._clock()
        return Lease(name=LEASE_NAME, holder=self._holder, now=now, expires_at=now + LEASE_S)

    async def _hold_lease(self) -> None:
        """Take the lease, or extend it in time. Raises LeaseLostError if another replica has it."""
        lease = self._lease()
        if lease.now < self._leased_until - LEASE_S * 2 / 3:
            return
        try:
            is_taken = await self._journal.write_apart(take_lease, lease)
        except DuplicateKeyError:
            is_taken = False
        if not is_taken:
            self._leased_until = 0.0
            self._start_again()
            raise LeaseLostError("another replica purges")
        self._leased_until = lease.expires_at

    # --- the service -------------------------------------------------------------------------------------------------

    async def _round(self) -> float:
        loop = asyncio.get_running_loop()
        started_at = loop.time()
        try:
            more = await self.run_once()
        except LeaseLostError:
            log.debug("event=purge_shared Another replica purges.")
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
