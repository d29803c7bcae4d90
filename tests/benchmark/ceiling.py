"""The ceiling: Holdfast as `python -m app serve` runs it, with persistence replaced by nothing.

python -m tests.benchmark.ceiling       # HOLDFAST_… as ever; the database URL is parsed and never opened
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from sqlalchemy.exc import DBAPIError

import app.__main__
from app import store
from app.journal import Journal, WriteFunction
from app.main import create_app
from app.migrations import schema_is_current
from app.models import RegisteredParticipant


class NullJournal(Journal):
    """Answers what the coordinator asks of its database as if all were well, and keeps only the registry."""

    def __init__(self, database_url: str) -> None:
        self._participants: dict[str, RegisteredParticipant] = {}

    async def write(self, function: WriteFunction[Any, Any], item: Any) -> Any:
        return self._written(function, item)

    async def read(self, function: Callable[..., Any], *args: Any) -> Any:
        if function is schema_is_current:
            return True
        if function is store.list_participants:
            return list(self._participants.values())
        if function is store.next_wake_at:
            return None
        if function is store.try_to_listen:  # nobody else is there to be told
            raise DBAPIError("LISTEN", None, NotImplementedError("nothing is kept"))
        raise NotImplementedError(f"nothing is kept: {function.__name__}")

    async def close(self) -> None:
        return None

    def _written(self, function: Callable[..., Sequence[Any]], item: Any) -> Any:
        if function is store.record:
            return store.Recorded(transaction_id=item.transaction.id, request_hash=item.request_hash, created=True)
        if function is store.save:
            return replace(item.after, version=item.after.version + 1)
        if function is store.claim:
            return []
        if function is store.put_participants:
            self._participants[item.name] = item
            return True
        if function is store.add_calls:
            return None
        raise NotImplementedError(f"nothing is kept: {function.__name__}")


def main() -> int:
    """The command `serve` itself, with another journal: the same options, loop and server."""
    replaced = {"Journal": NullJournal, "create_app": partial(create_app, open_journal=NullJournal)}
    vars(app.__main__).update(replaced)
    return app.__main__.main(["serve"])


if __name__ == "__main__":
    sys.exit(main())
