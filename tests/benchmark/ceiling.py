"""The ceiling: Holdfast as `python -m app serve` runs it, with persistence replaced by nothing.

python -m tests.benchmark.ceiling       # HOLDFAST_… as ever; the database URL is parsed and never opened
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import app.__main__
from app.calling.registry import read_registry, secrets_fault
from app.clock import Sample, wall_s
from app.main import create_app
from app.storage import calls, database_clock, notifications, participants, transactions
from app.storage.coordinator_id import find_coordinator_id
from app.storage.group_commit import Journal, WriteFunction
from app.storage.migrations import schema_fault
from app.storage.participants import RegisteredParticipant


class NullJournal(Journal):
    """Answers what the coordinator asks of its database as if all were well, and keeps only the registry."""

    def __init__(self, database_url: str, *, pooled: bool = False) -> None:
        self._participants: dict[str, RegisteredParticipant] = {}

    async def write(self, function: WriteFunction[Any, Any], item: Any) -> Any:
        return self._written(function, item)

    async def read(self, function: Callable[..., Any], *args: Any) -> Any:
        if function in (schema_fault, secrets_fault):
            return None
        if function is database_clock.ask:
            (elapsed,) = args
            return Sample(time=wall_s(), asked_at=elapsed(), answered_at=elapsed())
        if function is read_registry:
            return list(self._participants.values()), [], {}
        if function is transactions.next_wake_at:
            return None
        if function is find_coordinator_id:
            return "ceiling"
        if function is notifications.is_supported:
            return False  # nobody else is there to be told
        raise NotImplementedError(f"nothing is kept: {function.__name__}")

    async def close(self) -> None:
        return None

    def _written(self, function: Callable[..., Sequence[Any]], item: Any) -> Any:
        if function is transactions.record:
            return transactions.Recorded(
                transaction_id=item.transaction.id, request_hash=item.request_hash, created=True
            )
        if function is transactions.save:
            return replace(item.after, version=item.after.version + 1)
        if function is transactions.claim:
            return []
        if function is participants.put_participants:
            self._participants[item.participant.name] = item.participant
            return True
        if function is calls.add_calls:
            return None
        raise NotImplementedError(f"nothing is kept: {function.__name__}")


def main() -> int:
    """The command `serve` itself, with another journal: the same options, loop and server."""
    replaced = {"Journal": NullJournal, "create_app": partial(create_app, open_journal=NullJournal)}
    vars(app.__main__).update(replaced)
    return app.__main__.main(["serve"])


if __name__ == "__main__":
    sys.exit(main())
