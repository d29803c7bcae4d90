"""Two replicas on one database: whoever waits at one is told what happens at the other."""

import asyncio
from typing import Final

import pytest
from sqlalchemy import text

from app.engine import notifications
from app.storage.group_commit import Journal
from app.storage.migrations import migrate
from tests.harness.coordinator_app import Gate, running
from tests.harness.postgres import PostgresServer

NEVER_S: Final = 3600.0
LIMIT_S: Final = 60.0
BODY: Final = {"branches": [{"participant": "inventory"}]}


@pytest.fixture
def only_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks a transaction up but once and when told."""
    monkeypatch.setattr(notifications, "LISTENING_POLL_S", NEVER_S)
    monkeypatch.setattr(notifications, "POLL_S", 0.02)


async def until_listening(url: str, listeners: int) -> None:
    """Return once so many connections listen to this database."""
    journal = Journal(url)
    query = text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN %'")
    async with asyncio.timeout(LIMIT_S):
        while await journal.read(lambda connection: connection.execute(query).scalar_one()) < listeners:
            pass
    await journal.close()


@pytest.mark.usefixtures("only_told")
async def test_whoever_waits_at_another_replica_is_told(postgres_url: str) -> None:
    migrate(postgres_url)
    async with running(postgres_url) as one, running(postgres_url) as other:
        await until_listening(postgres_url, 2)
        gate = Gate()
        one.participants.script("/inventory/confirm", [gate])
        await one.register("inventory")
        begun = (await one.begin(BODY, prefer="wait=0")).json()
        await gate.reached()
        path = f"/v1/transactions/{begun['id']}"
        waiting = asyncio.create_task(other.client.get(path, headers={"Prefer": "wait=1000"}))
        while begun["id"] not in other.parts.coordinator._waiters._waiters:
            await other.client.get(path)
        await other.client.get(path)  # the waiting one has looked by now, and waits to be told
        gate.open()
        async with asyncio.timeout(LIMIT_S):
            assert (await waiting).json()["phase"] == "confirmed"


async def test_a_listener_that_was_cut_off_listens_again(postgres_url: str, postgres_server: PostgresServer) -> None:
    migrate(postgres_url)
    async with running(postgres_url) as service:
        await until_listening(postgres_url, 1)
        postgres_server.crash_and_start()
        await until_listening(postgres_url, 1)
        await service.register("inventory")
        assert (await service.begin(BODY)).status_code == 201


async def test_where_there_are_no_notices_nothing_is_told(sqlite_url: str) -> None:
    journal = Journal(sqlite_url)
    told = notifications.Notifications(journal, alone=False)
    await told.start()
    assert told.poll_s == notifications.POLL_S
    told.tell("a transaction")
    await told.stop()
    await journal.close()
