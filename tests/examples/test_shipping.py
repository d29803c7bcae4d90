"""The version column: who comes second reads again, and no van is overbooked."""

import asyncio
from pathlib import Path
from types import ModuleType

import pytest
from sqlalchemy import event, update
from sqlalchemy.orm import Session

from holdfast.testing import Answer, Branch
from tests.examples.examples import Load, coordinated

FOUR = {"day": "friday", "parcels": 4}


async def test_try_confirm_and_cancel_however_often(load: Load) -> None:
    async with coordinated(load("shipping"), "shipping") as (coordinator, balances):
        kept, given_back = coordinator.branch(FOUR), coordinator.branch(FOUR)
        for branch in (kept, kept, given_back):
            assert (await branch.try_()).body == {"parcels": 4}
        assert await balances.of("days", "friday") == {"room": 10, "reserved": 8, "booked": 0}
        assert [(await kept.confirm()).ok, (await kept.confirm()).ok] == [True, True]
        assert [(await given_back.cancel()).ok, (await given_back.cancel()).ok] == [True, True]
        assert await balances.of("days", "friday") == {"room": 10, "reserved": 0, "booked": 4}
        assert await balances.states() == []


async def test_a_full_day_and_an_unknown_day_are_refused(load: Load) -> None:
    async with coordinated(load("shipping"), "shipping") as (coordinator, balances):
        full = await coordinator.branch({"day": "friday", "parcels": 11}).try_()
        assert (full.problem, full.detail) == ("refused", "the vans of friday are full")
        assert (await coordinator.branch({"day": "sunday", "parcels": 1}).try_()).detail == "no vans on sunday"
        assert (await coordinator.branch({"day": "friday", "parcels": "many"}).try_()).problem == "invalid-payload"
        assert await balances.of("days", "friday") == {"room": 10, "reserved": 0, "booked": 0}


async def test_a_hold_whose_time_is_up_is_released_when_nobody_knows_the_transaction(load: Load) -> None:
    async with coordinated(load("shipping"), "shipping") as (coordinator, balances):
        await coordinator.branch(FOUR).try_()
        coordinator.pass_time(61)
        coordinator.decision = "unknown"
        await coordinator.reap()
        assert await balances.of("days", "friday") == {"room": 10, "reserved": 0, "booked": 0}


@pytest.fixture
def on_postgres(load: Load, postgres_url: str, tmp_path: Path) -> ModuleType:
    """Here two transactions may read the same row; SQLite lets only one write at a time."""
    return load("shipping", DATABASE_URL=postgres_url)


def interfere(module: ModuleType, times: int) -> list[int]:
    """Between the next readings of a day and what follows them, somebody else reserves a parcel, `times` times."""
    left = [times]

    @event.listens_for(module.engine, "before_cursor_execute")
    def quicker(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("UPDATE days") and left[0]:
            left[0] -= 1
            remaining, left[0] = left[0], 0  # not for the interference itself
            with Session(module.engine) as session, session.begin():
                more = {"reserved": module.Day.reserved + 1, "version": module.Day.version + 1}
                session.execute(update(module.Day).where(module.Day.name == "friday").values(more))
            left[0] = remaining

    return left


async def test_who_comes_second_reads_again(on_postgres: ModuleType) -> None:
    async with coordinated(on_postgres, "shipping") as (coordinator, balances):
        interfere(on_postgres, times=3)
        assert (await coordinator.branch(FOUR).try_()).ok
        assert (await balances.of("days", "friday"))["reserved"] == 3 + 4


async def test_who_comes_second_is_refused_when_the_room_is_gone(on_postgres: ModuleType) -> None:
    async with coordinated(on_postgres, "shipping") as (coordinator, balances):
        interfere(on_postgres, times=7)
        assert (await coordinator.branch(FOUR).try_()).problem == "refused"
        assert (await balances.of("days", "friday"))["reserved"] == 7


async def test_who_is_always_too_late_is_asked_again_later(on_postgres: ModuleType) -> None:
    async with coordinated(on_postgres, "shipping") as (coordinator, _):
        on_postgres.ATTEMPTS_MAX = 5  # type: ignore[attr-defined]
        left = interfere(on_postgres, times=9)
        branch = coordinator.branch({"day": "friday", "parcels": 1})
        assert (await branch.try_()).status >= 500, "no refusal: it would cancel the transaction"
        assert left == [4]
        left[0] = 4
        assert (await branch.try_()).ok


async def test_at_the_same_time_no_van_is_overbooked(on_postgres: ModuleType) -> None:
    async def patient(branch: Branch) -> Answer:
        while (answer := await branch.try_()).status >= 500:
            pass
        return answer

    async with coordinated(on_postgres, "shipping") as (coordinator, balances):
        branches = [coordinator.branch(FOUR) for _ in range(6)]
        answers = await asyncio.gather(*(patient(branch) for branch in branches))
        assert sorted(answer.status for answer in answers) == [200] * 2 + [409] * 4
        assert await balances.of("days", "friday") == {"room": 10, "reserved": 8, "booked": 0}
