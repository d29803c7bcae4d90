"""Transactions that a restored backup may have forgotten. They are never called unknown: that would mean cancel."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Self

from app.protocol.transaction_id import earliest_id
from app.storage.errors import DuplicateKeyError
from app.storage.group_commit import Journal
from app.storage.restores import Restore, note_restores

log = logging.getLogger(__name__)

MILLISECOND_S: Final = 0.001
"""The precision of ids, in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forgotten:
    """The ids of transactions that were begun between a backup and the first start on it; none by default."""

    since_id: str = ""
    before_id: str = ""

    @classmethod
    def between(cls, restored_from: float, first_start: float) -> Self:
        """Both in seconds since the epoch."""
        return cls(since_id=earliest_id(restored_from), before_id=earliest_id(first_start + MILLISECOND_S))

    def may_include(self, transaction_id: str) -> bool:
        """Whether a transaction with this id, if there was one, may have been forgotten."""
        return self.since_id <= transaction_id < self.before_id


NOTHING: Final = Forgotten()


async def find_forgotten(journal: Journal, restored_from: datetime | None, clock: Callable[[], float]) -> Forgotten:
    """What the restore of a backup may have forgotten; the first start after it is noted in the database.

    Raises ValueError if that time is yet to come.
    """
    if restored_from is None:
        return NOTHING
    if restored_from.timestamp() > clock():
        raise ValueError("HOLDFAST_RESTORED_FROM: not in the past; a backup was made before it is restored")
    restore = Restore(restored_from=restored_from.timestamp(), started_at=clock())
    try:
        first_start = await journal.write(note_restores, restore)
    except DuplicateKeyError:  # another replica noted it at the same moment
        first_start = await journal.write(note_restores, restore)
    log.warning(
        "event=restored since=%s until=%s Unknown transactions begun in between are answered 503. Settle the holds of "
        "that time, then remove HOLDFAST_RESTORED_FROM.",
        restored_from.isoformat(),
        datetime.fromtimestamp(first_start, UTC).isoformat(),
    )
    return Forgotten.between(restore.restored_from, first_start)
