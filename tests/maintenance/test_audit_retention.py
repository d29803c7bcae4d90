"""Entries of the record are deleted by a time that has surely come."""

from typing import Any, Final

import pytest

from app.maintenance.audit_retention import AuditRetention
from app.storage import audit
from app.storage.errors import DatabaseUnavailableError
from app.storage.group_commit import Journal

RETENTION_S: Final = 100.0


class WritingJournal(Journal):
    """Remembers what it was to write."""

    def __init__(self) -> None:
        self.written: list[tuple[Any, Any]] = []

    async def write_apart(self, function: Any, item: Any) -> Any:
        self.written.append((function, item))
        return False


async def test_nothing_is_deleted_before_the_clock_was_checked() -> None:
    journal = WritingJournal()
    says: list[float | None] = [None, 5_000.0]

    async def check() -> float:
        said = says.pop(0)
        if said is None:
            raise DatabaseUnavailableError("gone")
        return said

    service = AuditRetention(journal=journal, retention_s=RETENTION_S, check_clock=check)
    with pytest.raises(DatabaseUnavailableError):
        await service.run_once()
    assert journal.written == []
    assert await service.run_once() is False
    assert journal.written == [(audit.delete_older, 4_900.0)]
