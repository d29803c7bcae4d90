"""HOLDFAST_RESTORED_FROM: what a restored backup may have forgotten is never "unknown", which means cancel."""

from datetime import UTC, datetime
from typing import Any, Final

import pytest
from pydantic import ValidationError

from app.protocol.transaction_id import ENTROPY_BYTES, new_id
from app.settings import Settings
from app.storage.migrations import migrate
from tests.harness.coordinator_app import Service, check_problem, running

BEGUN: Final = 1_700_000_000.0
BACKUP: Final = BEGUN + 10
FIRST_START: Final = BEGUN + 100
RESTORED_FROM: Final = datetime.fromtimestamp(BACKUP, UTC)
ROUTES: Final = (("GET", ""), ("GET", "/decision"), ("GET", "/decision?branch=inventory"), ("GET", "/calls"))
COMMANDS: Final = (("POST", "/cancel"),)


def begun_at(time: float, byte: int = 0) -> str:
    """The id of a transaction that began then."""
    return new_id(time, bytes([byte]) * ENTROPY_BYTES)


async def check_forgotten(service: Service, *ids: str) -> None:
    for transaction_id in ids:
        for method, path in ROUTES + COMMANDS:
            answer = await service.client.request(method, f"/v1/transactions/{transaction_id}{path}")
            assert "backup" in check_problem(answer, 503, "unavailable")["detail"]
            assert int(answer.headers["retry-after"]) >= 1


async def check_unknown(service: Service, *ids: str) -> None:
    for transaction_id in ids:
        for method, path in ROUTES + COMMANDS:
            answer = await service.client.request(method, f"/v1/transactions/{transaction_id}{path}")
            check_problem(answer, 404, "unknown-transaction")


async def test_what_was_begun_between_a_backup_and_the_first_start_on_it_is_not_unknown(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    migrate(database_url)
    lost = [begun_at(BACKUP), begun_at(BEGUN + 50, 0xFF), begun_at(FIRST_START, 0xFF)]
    async with running(database_url, clock=lambda: BEGUN, follows_database=False) as service:
        await service.register("inventory")
        known = (await service.begin({"branches": [{"participant": "inventory"}]})).json()
        await check_unknown(service, *lost)
    on_it: dict[str, Any] = {"restored_from": RESTORED_FROM, "follows_database": False}
    async with running(database_url, clock=lambda: FIRST_START, **on_it) as service:
        assert await service.get(known["id"]) == known
        await check_forgotten(service, *lost)
        await check_unknown(service, begun_at(BACKUP - 0.001, 0xFF), begun_at(FIRST_START + 60))
    assert any(
        each.startswith("event=restored since=2023-11-14T22:13:30+00:00 until=2023-11-14T22:15:")
        for each in caplog.messages
    )
    async with running(database_url, clock=lambda: FIRST_START + 100, **on_it) as service:
        await check_forgotten(service, *lost)
        await check_unknown(service, begun_at(FIRST_START + 60))  # the first start counts, not this one
    async with running(database_url, clock=lambda: FIRST_START + 200, follows_database=False) as service:
        await check_unknown(service, *lost)


async def test_each_restore_has_a_first_start_of_its_own(sqlite_url: str) -> None:
    second = datetime.fromtimestamp(FIRST_START + 50, UTC)
    async with running(sqlite_url, clock=lambda: FIRST_START, restored_from=RESTORED_FROM):
        pass
    async with running(sqlite_url, clock=lambda: FIRST_START + 90, restored_from=second) as service:
        await check_forgotten(service, begun_at(FIRST_START + 80))
        await check_unknown(service, begun_at(FIRST_START + 40), begun_at(FIRST_START + 150))


async def test_a_backup_was_made_in_the_past_at_a_time_with_a_zone(sqlite_url: str) -> None:
    with pytest.raises(ValueError, match="HOLDFAST_RESTORED_FROM: not in the past"):
        async with running(sqlite_url, clock=lambda: BACKUP - 1, restored_from=RESTORED_FROM):
            pass
    with pytest.raises(ValidationError, match="timezone"):
        Settings.model_validate({"restored_from": "2026-01-01T00:00:00"})
