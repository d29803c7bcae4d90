"""A server that only reads: a primary that was demoted keeps its connections, and new ones may reach its successor."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text

from app.storage import queries, transactions
from app.storage.engines import make_engine
from app.storage.errors import DatabaseUnavailableError
from app.storage.group_commit import Journal
from app.storage.migrations import migrate
from app.storage.probe import probe
from tests.harness.databases import on_servers
from tests.harness.transactions import transaction

STICKY = {
    "postgresql": "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    "mysql": "SET SESSION TRANSACTION READ ONLY",
}
"""Makes one connection read for the rest of its life, as those to a demoted server do behind a proxy."""


def stick(connection: Connection, items: Sequence[Any]) -> Sequence[Any]:
    connection.execute(text(STICKY[connection.dialect.name]))
    return items


def stick_a_reader(connection: Connection) -> None:
    stick(connection, ())
    connection.commit()


def new(number: int) -> transactions.NewRecord:
    return transactions.NewRecord(transaction=transaction(number))


@on_servers
async def test_connections_to_a_demoted_server_are_given_up_at_the_first_write(
    journal: Journal, engine: Engine
) -> None:
    await asyncio.gather(*(journal.read(stick_a_reader) for _ in range(3)), journal.write(stick, None))
    recorded = await asyncio.gather(*(journal.write(transactions.record, new(n)) for n in range(3)))
    assert all(isinstance(each, transactions.Recorded) for each in recorded)
    await asyncio.gather(*(journal.write_apart(transactions.record, new(n)) for n in range(3, 9)))
    assert await journal.read(queries.count_unfinished) == 9


@on_servers
async def test_and_at_a_readiness_probe(journal: Journal, engine: Engine) -> None:
    await journal.write(stick, None)
    assert await journal.write(probe, "a")
    assert await journal.write(probe, "a"), "nothing of it stays"


@pytest.fixture
def read_only_url(postgres_url: str) -> Iterator[str]:
    """A database of which every new connection only reads."""
    engine = make_engine(postgres_url)
    migrate(postgres_url)
    with engine.begin() as connection:
        name = connection.engine.url.database
        connection.execute(text(f"ALTER DATABASE {name} SET default_transaction_read_only = on"))
    yield postgres_url
    engine.dispose()


async def test_a_postgresql_server_that_only_reads_is_none(read_only_url: str) -> None:
    """libpq tries the next host of the URL, if there are several."""
    journal = Journal(read_only_url)
    with pytest.raises(DatabaseUnavailableError, match="read-only"):
        await journal.read(queries.count_unfinished)
    await journal.close()


async def test_but_the_url_has_the_last_word(read_only_url: str) -> None:
    journal = Journal(f"{read_only_url}?target_session_attrs=any")
    assert await journal.read(queries.count_unfinished) == 0
    for number in range(2):
        with pytest.raises(DatabaseUnavailableError, match="read-only"):
            await journal.write(transactions.record, new(number))
    await journal.close()
