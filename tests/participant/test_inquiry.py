"""Whom a participant in doubt asks, about what, and whom it believes."""

import asyncio
import logging
from typing import Any, get_args

import httpx
import pytest
from sqlalchemy import Engine, MetaData, create_engine
from sqlalchemy.orm import Session

from holdfast import Participant
from holdfast.fence.rows import ADDED, Key, Row, branches_table, read, without
from holdfast.participant import inquiry
from holdfast.participant.inquiry import Question, Verdict
from holdfast.testing import Branch, Decided, FakeCoordinator
from tests.harness.participant_app import Service, running, service_on

one_of_each = pytest.mark.parametrize("kind", ["sqlite", "postgresql+asyncpg", "mariadb+pymysql"])
sqlite_only = pytest.mark.parametrize("kind", ["sqlite"])
ANSWERS = [decision for decision in get_args(Decided) if decision != "unreachable"]
RELEASING = ["cancel", "unknown"]


async def row_of(service: Service, branch: Branch) -> Row:
    key = Key(service.participant.name, branch.transaction_id, branch.name)
    table = service.participant._rules.table
    row = await service.participant._database.run(lambda session, _: read(session, table, key))
    assert row is not None
    return row


async def held(coordinator: FakeCoordinator, **options: Any) -> Branch:
    """A branch that is held, and whose time is up."""
    branch = coordinator.branch({"quantity": 1}, **options)
    assert (await branch.try_()).ok
    coordinator.pass_time(61)
    return branch


@pytest.mark.parametrize("decision", ANSWERS)
async def test_what_another_coordinator_says_counts_for_nothing(
    service: Service, coordinator: FakeCoordinator, decision: Decided, caplog: pytest.LogCaptureFixture
) -> None:
    branch = await held(coordinator)
    coordinator.decision, coordinator.coordinator_id = decision, "staging"
    assert await coordinator.reap() == 0
    assert coordinator.asked == [branch.transaction_id]
    assert "event=coordinator_unreachable" in caplog.text
    assert "coordinator staging answered, but the Try came from fake; check coordinator_url" in caplog.text
    assert await branch.phase() == "held"
    coordinator.decision, coordinator.coordinator_id = "cancel", "fake"
    coordinator.pass_time(301)
    assert await coordinator.reap() == 1, "it went on asking"
    assert await branch.phase() == "cancelled"


@sqlite_only
async def test_a_confirmed_hold_survives_the_url_of_another_coordinator(
    service: Service, coordinator: FakeCoordinator
) -> None:
    """Confirm is decided and late, and `coordinator_url` is that of a staging system, which knows nothing of it."""
    branch = await held(coordinator)
    coordinator.decision, coordinator.coordinator_id = "unknown", "staging"
    for _ in range(5):
        coordinator.pass_time(301)
        await coordinator.reap()
    assert (await branch.confirm()).ok
    assert await service.effects() == {"try": 1, "confirm": 1}


@sqlite_only
async def test_past_the_hard_limit_another_coordinator_delays_nothing(
    service: Service, coordinator: FakeCoordinator
) -> None:
    branch = await held(coordinator)
    coordinator.decision, coordinator.coordinator_id = "undecided", "staging"
    coordinator.pass_time(3600)
    assert await coordinator.reap() == 1
    assert await branch.phase() == "expired"


@one_of_each
@pytest.mark.parametrize("decision", RELEASING)
@pytest.mark.parametrize(("tries", "answers"), [(None, None), (None, "new"), ("new", None), ("new", "new")])
async def test_where_one_side_does_not_say_who_it_is_the_answer_counts(
    service: Service, coordinator: FakeCoordinator, decision: Decided, tries: str | None, answers: str | None
) -> None:
    """An older coordinator says so neither in the Try nor in the answer; while it is upgraded, in one of them."""
    coordinator.coordinator_id = tries
    branch = await held(coordinator)
    assert (await row_of(service, branch)).coordinator_id == tries
    coordinator.decision, coordinator.coordinator_id = decision, answers
    assert await coordinator.reap() == 1
    assert await branch.phase() == "cancelled"


@one_of_each
@pytest.mark.parametrize("two_step", [False, True])
async def test_a_hold_is_of_whoever_sent_the_first_try(url: str, kind: str, two_step: bool) -> None:
    async with running(url, kind, two_step=two_step) as service, FakeCoordinator(service.participant) as coordinator:
        branch = await held(coordinator)
        coordinator.coordinator_id = "staging"
        assert (await branch.try_()).ok
        assert (await row_of(service, branch)).coordinator_id == "fake"


@sqlite_only
async def test_each_branch_is_asked_about_by_its_name(url: str, kind: str) -> None:
    asked: list[httpx.URL] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url)
        is_released = request.url.params["branch"] == "b&c=d/é ?"
        return httpx.Response(200, json={"decision": "cancel" if is_released else "confirm"})

    now = [1_000_000.0]
    options: dict[str, Any] = {"transport": httpx.MockTransport(answer), "clock": lambda: now[0]}
    async with running(url, kind, **options) as service:
        names = ["a", "b&c=d/é ?", "%2F"]
        async with FakeCoordinator(service.participant) as coordinator:
            branches = [await held(coordinator, transaction_id="t-1", name=name) for name in names]
        now[0] += 600
        await service.participant.reap()
        assert sorted(url.params["branch"] for url in asked) == sorted(names)
        assert {url.path for url in asked} == {"/v1/transactions/t-1/decision"}
        assert [await branch.phase() for branch in branches] == ["held", "cancelled", "held"]


UNKNOWN: dict[str, Any] = {"type": "/problems/unknown-transaction", "status": 404}


@pytest.mark.parametrize(
    ("status", "document", "verdict"),
    [
        (200, {"decision": "cancel"}, Verdict.CANCEL),
        (404, UNKNOWN, Verdict.CANCEL),
        (200, {"decision": "confirm"}, Verdict.CONFIRM),
        (200, {"decision": "undecided", "recheck_in_s": 9}, Verdict.UNDECIDED),
    ],
)
@pytest.mark.parametrize(
    ("tried", "said", "counts"),
    [
        ("production", {"coordinator_id": "production"}, True),
        ("production", {}, True),
        ("production", {"coordinator_id": None}, True),
        (None, {"coordinator_id": "production"}, True),
        (None, {}, True),
        ("production", {"coordinator_id": "staging"}, False),
        ("production", {"coordinator_id": "Production"}, False),
        ("production", {"coordinator_id": ""}, False),
        ("production", {"coordinator_id": 7}, False),
        ("production", {"coordinator_id": ["production"]}, False),
    ],
)
async def test_whose_answer_counts(
    status: int, document: dict[str, Any], verdict: Verdict, tried: str | None, said: dict[str, Any], counts: bool
) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(status, json=document | said))
    answered = await inquiry.ask(transport, "http://c", Question("t-1", "seats", tried), timeout_s=10)
    assert answered.verdict is (verdict if counts else Verdict.UNREACHABLE)
    assert not answered.is_silent, "others are asked all the same"
    assert ("check coordinator_url" in answered.why) is not counts


def old_table(session: Session, _: Any) -> None:
    """The table as version 0.1 made it."""
    branches_table(MetaData()).drop(session.connection())
    without(branches_table(MetaData()), ADDED).create(session.connection())
    session.commit()


@one_of_each
async def test_many_replicas_migrate_a_table_at_once(service: Service) -> None:
    await service.participant._database.run(old_table)
    replicas: list[Participant] = [service_on(service.database).participant for _ in range(4)]
    await asyncio.gather(*(replica.create_table() for replica in replicas))
    assert await replicas[0]._database.missing_columns(replicas[0].table) == ()


@one_of_each
async def test_before_its_migration_a_table_does_not_know_whose_its_holds_are(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    await service.participant._database.run(old_table)
    own = service_on(service.database, metadata=MetaData())
    with caplog.at_level(logging.WARNING, "holdfast"):
        async with FakeCoordinator(own.participant) as coordinator:
            branch = await held(coordinator)
            coordinator.decision, coordinator.coordinator_id = "unknown", "staging"
            assert await coordinator.reap() == 1
            assert await branch.phase() == "cancelled", "as version 0.1 did"
    assert "has no column coordinator_id: the decision of another coordinator is obeyed, too" in caplog.text
    participant = service_on(service.database).participant
    await participant.create_table()
    async with FakeCoordinator(participant) as coordinator:
        branch = await held(coordinator)
        coordinator.decision, coordinator.coordinator_id = "unknown", "staging"
        assert await coordinator.reap() == 0
        assert await branch.phase() == "held"


def test_the_column_may_lack_alone(sqlite_url: str) -> None:
    """A table that a version between 0.1 and 0.2 made."""
    engine: Engine = create_engine(sqlite_url)
    participant = Participant("seats", engine, coordinator_url="http://coordinator")
    without(branches_table(MetaData()), ["coordinator_id"]).create(engine)
    assert asyncio.run(participant._database.missing_columns(participant.table)) == ("coordinator_id",)
    asyncio.run(participant.create_table())
    assert asyncio.run(participant._database.missing_columns(participant.table)) == ()
    engine.dispose()
