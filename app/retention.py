"""Purges finished transactions once their retention is over, in small batches; exports them first where that is wanted.

Any number of replicas do this at once. What may be purged is said in purge.py. A record is deleted only when its line
is durable in the export, so a crash in between exports it again: at least once, never not at all.
"""

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from app.journal import Journal
from app.metrics import Metrics
from app.models import CallRecord
from app.purge import Purge, Record, purge
from app.store import StaleError
from app.transaction import Transaction

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

Render = Callable[[Transaction, Iterable[CallRecord]], Iterable[bytes]]
"""The JSON of a record, in pieces and on one line."""


class Export:
    """Appends records to a file of this process alone, a new one for each day (UTC)."""

    def __init__(self, directory: Path, render: Render) -> None:
        self._directory = directory
        self._render = render
        self._process = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"

    def append(self, records: Iterable[Record], at: float) -> None:
        """Write a line for each record; returns when all are on the disk. Raises OSError, and leaves no half line."""
        path = self._directory / f"transactions-{datetime.fromtimestamp(at, UTC):%Y-%m-%d}-{self._process}.jsonl"
        with open(path, "ab", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            whole = file.tell()
        try:
            with open(path, "ab") as file:
                for record in records:
                    file.writelines(self._render(*record))
                    file.write(b"\n")
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            with suppress(OSError):
                os.truncate(path, whole)
            raise
        if whole == 0:
            _sync_directory(self._directory)


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
        self._stopped = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

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

    def start(self) -> None:
        if self._retention_s > 0:
            self._task = asyncio.create_task(self._run(), name="retention")

    async def stop(self) -> None:
        """Let a batch that is under way come to its end, or it would be exported again."""
        self._stopped.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=STOP_MAX_S)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._stopped.is_set():
            started_at = loop.time()
            pause_s = RETRY_PAUSE_S
            try:
                more = await self.run_once()
                pause_s = max(PAUSE_MIN_S, PAUSE_FACTOR * (loop.time() - started_at)) if more else SWEEP_PAUSE_S
            except StaleError:
                log.info("event=purge_shared Another replica purges the same transactions.")
            except (SQLAlchemyError, OSError) as error:
                self._metrics.purge_failures.inc()
                log.error("event=purge_failed error=%s: %s", type(error).__name__, getattr(error, "orig", error))
            except Exception:
                self._metrics.purge_failures.inc()
                log.exception("event=purge_failed")
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._stopped.wait()


def earliest_id(at: float) -> str:
    """No transaction that began at this moment or later has an id below this: ids begin with milliseconds."""
    milliseconds = f"{max(0, int(at * 1000)):012x}"
    return f"{milliseconds[:8]}-{milliseconds[8:]}-0000-0000-000000000000"


def _sync_directory(directory: Path) -> None:
    """Make a new file's name durable, too."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
