"""Whether requests can be served: the database answers, accepts writes, and has the schema that this version needs.

Anybody may ask, so a look is shared by all who ask while it is made, and for a second after.
"""

import asyncio
import secrets
from typing import Final

from app.clock import elapsed_s
from app.storage.errors import DatabaseError
from app.storage.group_commit import Journal
from app.storage.migrations import schema_fault
from app.storage.probe import probe

ANSWER_MAX_S: Final = 5.0
"""If the database takes longer than this, the process is not ready, and its metrics say that the database is down."""
SHARED_S: float = 1.0
"""How long a look is shared after its end, in seconds."""

Fault = tuple[str, str | None]
"""The slug of a problem, and its detail, if that says more than the catalogue."""


class Readiness:
    """Looks at the database of `journal`."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._look: asyncio.Task[Fault | None] | None = None
        self._ended_at = 0.0

    async def fault(self) -> Fault | None:
        """Why requests can't be served, or couldn't be a moment ago."""
        if self._look is None or (self._look.done() and elapsed_s() - self._ended_at >= SHARED_S):
            self._look = asyncio.create_task(self._looked())
        return await asyncio.shield(self._look)

    async def _looked(self) -> Fault | None:
        try:
            async with asyncio.timeout(ANSWER_MAX_S):
                fault = await self._journal.read(schema_fault)
                await self._journal.write(probe, f"probe-{secrets.token_hex(8)}")
        except TimeoutError:
            took = f"The database took longer than {ANSWER_MAX_S:g} s for a write"
            return "unavailable", f"{took}. Look for locks, a full disk or overload."
        except DatabaseError:
            return "unavailable", None
        finally:
            self._ended_at = elapsed_s()
        return ("schema-outdated", fault) if fault else None
