"""A cancel of what the coordinator saw held, at a participant whose row is gone: reported, and never taken for done."""

from typing import Any

import pytest
from sqlalchemy import delete, insert, select
from sqlalchemy.orm import Session

from holdfast.testing import Branch, FakeCoordinator
from tests.harness.participant_app import Service, running

pytestmark = pytest.mark.parametrize("two_step", [False, True])


async def rows(service: Service, change: Any = None) -> list[dict[str, Any]]:
    """The participant's rows, as a backup has them; `change` is made before."""
    table = service.participant.table

    def work(session: Session, _: Any) -> list[dict[str, Any]]:
        if change is not None:
            session.execute(change)
        found = [dict(row) for row in session.execute(select(table)).mappings()]
        session.commit()
        return found

    return await service.participant._database.run(work)


async def held_and_lost(service: Service, branch: Branch) -> list[dict[str, Any]]:
    """Try, and lose the row; returns what was lost."""
    assert (await branch.try_()).ok
    lost = await rows(service)
    assert len(lost) == 1
    assert await rows(service, delete(service.participant.table)) == []
    return lost


async def test_it_is_forgotten_however_often_and_until_the_row_is_back(url: str, kind: str, two_step: bool) -> None:
    async with running(url, kind, two_step=two_step) as service, FakeCoordinator(service.participant) as coordinator:
        branch = coordinator.branch({"quantity": 2})
        lost = await held_and_lost(service, branch)
        for _ in range(2):
            answer = await branch.cancel()
            assert (answer.status, answer.problem) == (409, "forgotten")
            assert "by hand" in str(answer.detail)
            assert await branch.phase() is None, "a tombstone would make the next answer a success"
        assert (await service.effects())["cancel"] == 0
        await rows(service, insert(service.participant.table).values(lost))
        assert (await branch.cancel()).ok
        assert await branch.phase() == "cancelled"
        assert (await service.effects())["cancel"] == 1
        assert (await branch.cancel()).ok


async def test_what_a_row_says_counts_as_ever(url: str, kind: str, two_step: bool) -> None:
    async with running(url, kind, two_step=two_step) as service, FakeCoordinator(service.participant) as coordinator:
        branch = coordinator.branch({"quantity": 2})
        assert (await branch.cancel()).ok, "nobody saw it hold: an empty rollback"
        assert await branch.phase() == "cancelled"
        branch.held = True  # another replica of the coordinator did
        assert (await branch.cancel()).ok
        confirmed = coordinator.branch({"quantity": 2})
        assert (await confirmed.try_()).ok
        assert (await confirmed.confirm()).ok
        assert (await confirmed.cancel()).problem == "already-confirmed"


async def test_an_older_coordinator_does_not_say_it(url: str, kind: str, two_step: bool) -> None:
    async with running(url, kind, two_step=two_step) as service, FakeCoordinator(service.participant) as coordinator:
        branch = coordinator.branch({"quantity": 2})
        await held_and_lost(service, branch)
        branch.held = False
        answer = await branch.cancel()
        assert (answer.status, answer.body) == (200, {"phase": "cancelled"})


async def test_what_was_purged_is_forgotten_too(url: str, kind: str, two_step: bool) -> None:
    async with (
        running(url, kind, two_step=two_step, retention_s=60) as service,
        FakeCoordinator(service.participant) as coordinator,
    ):
        branch = coordinator.branch({"quantity": 2})
        assert (await branch.try_()).ok
        assert (await branch.cancel()).ok
        coordinator.pass_time(61)
        await coordinator.reap()
        assert await branch.phase() is None
        assert (await branch.cancel()).problem == "forgotten"
