"""PostgreSQL through PgBouncer in transaction mode, where a session lasts as long as a transaction."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from app.__main__ import main
from app.settings import Settings
from app.storage.engines import make_engine
from app.storage.group_commit import Journal
from app.storage.migrations import migrate
from tests.api.test_notifications import until_listening
from tests.harness.coordinator_app import Gate, running
from tests.harness.pgbouncer import PROGRAM, WHY_NONE, PgBouncer
from tests.harness.postgres import PostgresServer

pytestmark = pytest.mark.skipif(PROGRAM is None, reason=WHY_NONE)

BODY = {"branches": [{"participant": "inventory"}]}


@pytest.fixture
def pooled_url(postgres_url: str, postgres_server: PostgresServer) -> Iterator[str]:
    """The same database as `postgres_url`, through the pooler."""
    migrate(postgres_url)
    with PgBouncer(postgres_server) as pooler:
        yield pooler.url(postgres_url)


async def test_transactions_of_two_replicas_end_and_waiting_clients_are_told(
    pooled_url: str, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.engine.notifications.LISTENING_POLL_S", 3600.0)
    direct: dict[str, Any] = {"direct_database_url": postgres_url}
    async with running(pooled_url, **direct) as one, running(pooled_url, **direct) as other:
        await until_listening(postgres_url, 2)
        await one.register("inventory")
        answers = await asyncio.gather(*(one.begin(BODY) for _ in range(40)))
        assert {answer.status_code for answer in answers} == {201}
        gate = Gate()
        one.participants.script("/inventory/confirm", [gate])
        begun = (await one.begin(BODY, prefer="wait=0")).json()
        await gate.reached()
        path = f"/v1/transactions/{begun['id']}"
        waiting = asyncio.create_task(other.client.get(path, headers={"Prefer": "wait=1000"}))
        while begun["id"] not in other.parts.coordinator._waiters._waiters:
            await other.client.get(path)
        await other.client.get(path)
        gate.open()
        async with asyncio.timeout(60):
            assert (await waiting).json()["phase"] == "confirmed"


async def test_each_transaction_has_its_limits_and_leaves_none_behind(
    pooled_url: str, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.storage.engines.LOCK_WAIT_MAX_S", 1)
    journal = Journal(pooled_url, pooled=True)
    limits = text("SELECT current_setting('lock_timeout'), current_setting('idle_in_transaction_session_timeout')")
    try:
        for _ in range(10):  # more often than the driver would wait before it prepares a statement
            found = await journal.read(lambda connection: tuple(connection.execute(limits).one()))
            assert found[0] == "1s"
            assert found[1] != "0"
    finally:
        await journal.close()
    session = create_engine(pooled_url, connect_args={"prepare_threshold": None})
    with session.connect() as connection:
        assert connection.execute(limits).one()[0] == "0", "the next user of the session has limits of its own"
    session.dispose()


def test_without_the_direct_url_the_start_says_what_to_set(
    pooled_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOLDFAST_DATABASE_URL", pooled_url)
    monkeypatch.setenv("HOLDFAST_DATABASE_WAIT_S", "0")
    monkeypatch.setenv("HOLDFAST_PORT", "0")
    assert main(["serve"]) == 1
    assert "Set HOLDFAST_DIRECT_DATABASE_URL" in capsys.readouterr().err


def test_migrations_go_past_the_pooler(pooled_url: str, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their lock is a session's: through the pooler it would stay with whichever session took it."""
    monkeypatch.setenv("HOLDFAST_DATABASE_URL", pooled_url)
    monkeypatch.setenv("HOLDFAST_DIRECT_DATABASE_URL", postgres_url)
    assert main(["migrate"]) == 0
    engine = make_engine(postgres_url)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")).scalar_one() == 0
    engine.dispose()


def test_both_urls_are_of_postgresql() -> None:
    with pytest.raises(ValueError, match="both URLs must be of PostgreSQL"):
        Settings(database_url="sqlite:///x.db", direct_database_url="postgresql://h/d")
