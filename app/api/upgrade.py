"""Refuses what the version before doesn't know, as long as its replicas may still run."""

from app.api.problems import Problem
from app.storage.group_commit import Journal
from app.storage.migrations import is_finished


class Upgrade:
    """Whether the upgrade of this database is finished. Once it is, that stays so while this process runs."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._is_finished = False

    async def require_finished(self) -> None:
        """Raise the problem `upgrade-unfinished` if it isn't."""
        if not self._is_finished:
            self._is_finished = await self._journal.read(is_finished)
        if not self._is_finished:
            raise Problem("upgrade-unfinished")
