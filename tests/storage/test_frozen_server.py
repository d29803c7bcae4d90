"""A server that is neither well nor dead: it answers no more, while its kernel acknowledges (a stuck disk, SIGSTOP)."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, text

from app.storage import queries, transactions
from app.storage.errors import DatabaseUnavailableError
from app.storage.group_commit import Journal
from app.storage.migrations import migrate
from tests.harness.coordinator_app import until
from tests.harness.database_server import DatabaseServer
from tests.harness.databases import on_servers, rows
from tests.harness.transactions import transaction

LIMIT_S = 0.5


def new(number: int) -> transactions.NewRecord:
    return transactions.NewRecord(transaction=transaction(number))


def backend(connection: Connection, _items: Sequence[Any] = (None,)) -> Sequence[int]:
    return [connection.execute(text("SELECT pg_backend_pid()")).scalar_one()]


@contextmanager
def frozen(*process_ids: int) -> Iterator[None]:
    """These processes do nothing, until the end."""
    for process_id in process_ids:
        os.kill(process_id, signal.SIGSTOP)
    try:
        yield
    finally:
        for process_id in process_ids:
            os.kill(process_id, signal.SIGCONT)


@pytest.fixture
async def impatient(database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Journal]:
    """A journal that gives up after LIMIT_S."""
    monkeypatch.setattr("app.storage.limited_connection.SILENCE_MAX_S", LIMIT_S)
    monkeypatch.setattr("app.storage.engines.STATEMENT_MAX_S", 1)
    monkeypatch.setattr("app.storage.engines.CONNECT_TIMEOUT_S", 1)
    migrate(database_url)
    journal = Journal(database_url)
    yield journal
    await journal.close()


on_postgresql = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


@on_postgresql
async def test_a_backend_that_hangs_is_left_for_another(impatient: Journal) -> None:
    reader = (await impatient.read(backend))[0]
    writer = await impatient.write(backend, None)
    async with asyncio.timeout(20 * LIMIT_S):
        with frozen(*{reader, writer}):
            assert await impatient.read(queries.count_unfinished) == 0
        writer = await impatient.write(backend, None)
        with frozen(writer):
            written = await asyncio.gather(*(impatient.write(transactions.record, new(n)) for n in range(5)))
    assert all(isinstance(each, transactions.Recorded) for each in written)
    assert await impatient.read(queries.count_unfinished) == 5


@on_postgresql
async def test_what_became_of_a_commit_that_hangs_is_unknown(impatient: Journal) -> None:
    """It is not done again: it may be durable, as here."""
    stopped: list[int] = []

    def freezes_before_its_commit(connection: Connection, items: Sequence[Any]) -> Sequence[Any]:
        transactions.record(connection, items)
        stopped.extend(backend(connection))
        os.kill(stopped[0], signal.SIGSTOP)
        return items

    try:
        async with asyncio.timeout(20 * LIMIT_S):
            with pytest.raises(DatabaseUnavailableError, match="silent"):
                await impatient.write(freezes_before_its_commit, new(1))
    finally:
        for process_id in stopped:
            os.kill(process_id, signal.SIGCONT)
    assert len(stopped) == 1

    async def is_durable() -> bool:
        return await impatient.read(queries.count_unfinished) == 1

    await until(is_durable)  # the backend has yet to read its COMMIT


@on_servers
async def test_a_server_that_hangs_altogether_is_out_of_reach(
    impatient: Journal, database_url: str, database_server: DatabaseServer
) -> None:
    await impatient.write(transactions.record, new(1))
    with frozen(database_server.process_id, *backends(database_url)):
        async with asyncio.timeout(20):
            outcomes = await asyncio.gather(
                impatient.write(transactions.record, new(2)),
                impatient.read(queries.count_unfinished),
                return_exceptions=True,
            )
    assert [type(each) for each in outcomes] == [DatabaseUnavailableError] * 2
    assert isinstance(await impatient.write(transactions.record, new(3)), transactions.Recorded)


@on_postgresql
async def test_a_commit_that_a_standby_may_lack_is_unknown(
    impatient: Journal, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The synchronous standby is gone, and somebody cancels the wait: PostgreSQL warns, and commits."""
    monkeypatch.setattr("app.storage.limited_connection.SILENCE_MAX_S", 20)

    def waits_for_a_standby(connection: Connection, items: Sequence[Any]) -> Sequence[Any]:
        transactions.record(connection, items)
        threads.append(backend(connection)[0])
        return items

    threads: list[int] = []
    gone, back = "ALTER SYSTEM SET synchronous_standby_names = 'gone'", "ALTER SYSTEM RESET synchronous_standby_names"
    administer(database_url, gone)
    try:
        waiting = asyncio.create_task(impatient.write(waits_for_a_standby, new(1)))
        while not waiting.done():
            cancel = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
            await asyncio.to_thread(administer, database_url, cancel)
        with pytest.raises(DatabaseUnavailableError, match="canceling wait for synchronous replication"):
            await waiting
    finally:
        administer(database_url, back)
    assert len(threads) == 1, "it isn't done again"
    assert await impatient.read(queries.count_unfinished) == 1


def administer(database_url: str, statement: str) -> None:
    """Outside of transactions, and without waiting for a standby."""
    url = database_url.replace("+psycopg", "")
    with psycopg.connect(url, autocommit=True, options="-c synchronous_commit=local") as connection:
        connection.execute(statement.encode())
        connection.execute("SELECT pg_reload_conf()")


def backends(database_url: str) -> list[int]:
    """PostgreSQL's processes for this database; MariaDB has threads."""
    if not database_url.startswith("postgresql"):
        return []
    others = "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    return [int(str(pid)) for (pid,) in rows(database_url, f"SELECT pid FROM pg_stat_activity {others}")]
