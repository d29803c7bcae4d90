"""What happens when nobody calls: holds whose time is up, unclear answers, several replicas, old rows."""

import asyncio
import gzip
import json
import tracemalloc
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from holdfast import Participant, Refused
from holdfast.fence.execution import Happening, Outcome
from holdfast.fence.steps import Event
from holdfast.participant import inquiry
from holdfast.participant.inquiry import Question, Verdict
from holdfast.testing import Branch, FakeCoordinator
from tests.harness.participant_app import Service, breaks, running, service_on

DAY_S = 86_400


async def test_confirm_keeps_the_hold_and_is_not_asked_again(service: Service, coordinator: FakeCoordinator) -> None:
    branch = coordinator.branch({"quantity": 1})
    assert (await branch.try_()).ok
    coordinator.decision = "confirm"
    assert await coordinator.reap() == 0, "its time is not up yet"
    assert coordinator.asked == []
    coordinator.pass_time(61)
    assert await coordinator.reap() == 1
    coordinator.pass_time(DAY_S)
    assert await coordinator.reap() == 0
    assert coordinator.asked == [branch.transaction_id]
    assert await branch.phase() == "held"
    assert (await branch.confirm()).ok


async def test_undecided_is_asked_again_when_the_coordinator_says(
    service: Service, coordinator: FakeCoordinator
) -> None:
    branch = coordinator.branch({"quantity": 1})
    assert (await branch.try_()).ok
    coordinator.pass_time(61)
    await coordinator.reap()
    coordinator.pass_time(9)
    await coordinator.reap()
    assert len(coordinator.asked) == 1
    coordinator.pass_time(1.5)
    await coordinator.reap()
    assert len(coordinator.asked) == 2
    assert await branch.phase() == "held"


async def test_past_the_hard_limit_it_releases_alone_and_a_late_confirm_is_a_conflict(
    service: Service, coordinator: FakeCoordinator
) -> None:
    for decision in ("unreachable", "undecided"):
        branch = coordinator.branch({"quantity": 1})
        assert (await branch.try_()).ok
        coordinator.decision = decision
        coordinator.pass_time(3500)  # the clock runs meanwhile, and a busy machine takes its time
        await coordinator.reap()
        assert await branch.phase() == "held"
        coordinator.pass_time(100)
        await coordinator.reap()
        assert await branch.phase() == "expired"
        assert (await branch.confirm()).problem == "hold-expired"
        assert (await branch.try_()).problem == "hold-expired"
        assert (await branch.cancel()).ok
        assert await service.effects(branch.transaction_id) == {"try": 1, "cancel": 1}


async def test_a_decided_confirm_outweighs_the_hard_limit(service: Service, coordinator: FakeCoordinator) -> None:
    branch = coordinator.branch({"quantity": 1})
    assert (await branch.try_()).ok
    coordinator.decision = "confirm"
    coordinator.pass_time(DAY_S)
    await coordinator.reap()
    assert (await branch.confirm()).ok


async def test_without_a_hard_limit_it_waits_for_ever_with_growing_pauses(url: str, kind: str) -> None:
    async with running(url, kind) as service, FakeCoordinator(service.participant) as coordinator:
        branch = coordinator.branch({"quantity": 1})
        assert (await branch.try_()).ok
        coordinator.decision = "unreachable"
        for _ in range(50):
            coordinator.pass_time(301)
            await coordinator.reap()
        assert await branch.phase() == "held"
        assert len(coordinator.asked) == 50, "never later than the cap"
        for _ in range(50):
            coordinator.pass_time(1)
            await coordinator.reap()
        assert len(coordinator.asked) < 65, "the pauses have grown"


async def test_re_acquiring(url: str, kind: str) -> None:
    async with (
        running(url, kind, reacquire=True, hold_max_s=100) as service,
        FakeCoordinator(service.participant, decision="unreachable") as coordinator,
    ):
        for is_sold_out in (False, True):
            branch = coordinator.branch({"quantity": 1})
            assert (await branch.try_()).ok
            coordinator.pass_time(101)
            await coordinator.reap()
            assert await branch.phase() == "expired"
            if is_sold_out:

                def sold_out(operation: str, hold: Any) -> Any:
                    raise Refused("sold out meanwhile")

                service.behave.append(sold_out)
                answer = await branch.confirm()
                assert (answer.problem, answer.detail) == ("hold-expired", "sold out meanwhile")
                assert await branch.phase() == "expired"
            else:
                assert (await branch.confirm()).ok
                assert (await branch.confirm()).ok
                assert await service.effects() == {"try": 2, "cancel": 1, "confirm": 1}
                keys = [hold.idempotency_key for _, hold in service.holds]
                assert keys[0] == keys[1] != keys[2] == keys[3]
                assert service.holds[-1][1].result == {"reserved": 1}


async def test_a_failing_release_backs_off_and_holds_up_nobody(service: Service, coordinator: FakeCoordinator) -> None:
    bad, good = coordinator.branch({"quantity": 13}), coordinator.branch({"quantity": 1})
    assert (await bad.try_()).ok
    assert (await good.try_()).ok
    service.behave.append(lambda operation, hold: breaks(operation, hold) if hold.payload.quantity == 13 else None)
    coordinator.decision = "cancel"
    coordinator.pass_time(61)
    assert await coordinator.reap() == 1
    assert [await bad.phase(), await good.phase()] == ["held", "cancelled"]
    service.behave.clear()
    coordinator.pass_time(2)
    assert await coordinator.reap() == 1
    assert await bad.phase() == "cancelled"
    assert await service.effects(bad.transaction_id) == {"try": 1, "cancel": 1}


async def test_replicas_share_the_work(service: Service, coordinator: FakeCoordinator) -> None:
    branches = [coordinator.branch({"quantity": 1}) for _ in range(12)]
    for branch in branches:
        assert (await branch.try_()).ok
    coordinator.decision = "cancel"
    coordinator.pass_time(61)
    rounds = await asyncio.gather(*(coordinator.reap() for _ in range(4)))
    assert sum(rounds) == 12, "each row by one of them"
    assert sorted(coordinator.asked) == sorted(branch.transaction_id for branch in branches)
    assert await service.effects() == {"try": 12, "cancel": 12}


async def test_a_replica_that_died_with_a_claim_is_succeeded(service: Service, coordinator: FakeCoordinator) -> None:
    branch = coordinator.branch({"quantity": 1})
    assert (await branch.try_()).ok
    coordinator.pass_time(61)
    coordinator.decision = "cancel"
    participant = service.participant
    async with participant._asking() as ask:
        reaper = participant._reaper(ask)
        (row,) = await reaper._due()
        assert await reaper._claim(row)
        assert not await reaper._claim(row)
    assert await coordinator.reap() == 0
    coordinator.pass_time(61)
    assert await coordinator.reap() == 1


@pytest.mark.parametrize("meets", [Event.DUE, Event.TOLD_CONFIRM, Event.TOLD_CANCEL])
async def test_a_cancel_that_comes_while_the_reaper_looks_releases_once(
    service: Service, coordinator: FakeCoordinator, meets: Event
) -> None:
    """The reaper has found a hold; before it does anything to it, the coordinator's Cancel is carried out."""
    branch = coordinator.branch({"quantity": 1})
    assert (await branch.try_()).ok
    coordinator.pass_time(61)
    coordinator.decision = "confirm" if meets is Event.TOLD_CONFIRM else "cancel"
    await reap_and_cancel(coordinator, branch, before=meets)
    coordinator.pass_time(DAY_S)
    await coordinator.reap()
    assert await branch.phase() == "cancelled"
    assert [operation for operation, _ in service.holds] == ["try", "cancel"]


async def test_a_sweep_that_was_planned_while_the_reaper_asked_is_not_forgotten(url: str, kind: str) -> None:
    async with running(url, kind, two_step=True) as service, FakeCoordinator(service.participant) as coordinator:
        branch = coordinator.branch({"quantity": 1})
        service.behave.append(breaks)
        assert (await branch.try_()).status == 500, "it may have acted outside, and may yet"
        service.behave.clear()
        coordinator.pass_time(61)
        coordinator.decision = "cancel"
        await reap_and_cancel(coordinator, branch, before=Event.TOLD_CANCEL)
        coordinator.pass_time(61)
        await coordinator.reap()
        assert [operation for operation, _ in service.holds] == ["try", "cancel", "cancel"], "the last is the sweep"


async def reap_and_cancel(coordinator: FakeCoordinator, branch: Branch, *, before: Event) -> None:
    """One round of the reaper, with a Cancel carried out just before it does `before` to its finding."""
    participant = coordinator.participant
    async with participant._asking() as ask:
        reaper = participant._reaper(ask)

        async def perform(happening: Happening) -> Outcome:
            if happening.event is before:
                assert (await branch.cancel()).ok
            return await reaper.perform(happening)

        await replace(reaper, perform=perform).run_once()


async def test_no_connection_is_held_while_the_coordinator_is_asked(url: str, kind: str) -> None:
    in_use: list[int] = []

    class Transport(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            in_use.append(service.connections_in_use)
            assert request.url == "http://coordinator/v1/transactions/t%2F1/decision?branch=a%26b%2F%C3%A9"
            return httpx.Response(200, json={"decision": "cancel", "recheck_in_s": 0})

    now = [1_000_000.0]
    async with running(url, kind, transport=Transport(), clock=lambda: now[0]) as service:
        async with FakeCoordinator(service.participant) as coordinator:
            branch = coordinator.branch({"quantity": 1}, transaction_id="t/1", name="a&b/é")
            assert (await branch.try_()).ok
        now[0] += 61
        assert await service.participant.reap() == 1
        assert in_use == [0]
        assert await branch.phase() == "cancelled"


async def test_retention_removes_finished_rows_one_by_one_and_nothing_else(
    service: Service, coordinator: FakeCoordinator
) -> None:
    old = {name: coordinator.branch({"quantity": 1}, name=name, transaction_id="old") for name in ("a", "b", "c", "d")}
    assert (await old["a"].try_()).ok
    assert (await old["a"].confirm()).ok
    assert (await old["b"].try_()).ok
    assert (await old["c"].cancel()).ok
    coordinator.decision = "confirm"
    coordinator.pass_time(29 * DAY_S)
    await coordinator.reap()
    assert (await old["d"].try_()).ok
    assert (await old["d"].cancel()).ok
    assert [await branch.phase() for branch in old.values()] == ["confirmed", "held", "cancelled", "cancelled"]
    assert (await old["c"].try_()).problem == "already-cancelled", "a tombstone lasts as long"
    coordinator.pass_time(2 * DAY_S)
    await coordinator.reap()
    assert [await branch.phase() for branch in old.values()] == [None, "held", None, "cancelled"]
    assert (await old["b"].confirm()).ok, "what is not finished is never removed"


async def test_the_background_task_lives_with_the_lifespan_and_survives_failures(
    service: Service, coordinator: FakeCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    participant = service.participant
    monkeypatch.setattr(participant, "_reap_interval_s", 0.001)
    rounds, enough = [0], asyncio.Event()
    original = service.participant._rules.clock

    def failing_clock() -> float:
        rounds[0] += 1
        if rounds[0] == 3:
            enough.set()
        if rounds[0] < 3:
            raise RuntimeError("broken clock")
        return original()

    monkeypatch.setattr(participant, "_rules", replace(participant._rules, clock=failing_clock))
    async with participant.lifespan():
        await asyncio.wait_for(enough.wait(), 10)
    after = rounds[0]
    assert "reaper of seats" not in {task.get_name() for task in asyncio.all_tasks()}
    assert rounds[0] == after


def answering(status: int, body: Any, headers: dict[str, str] | None = None) -> Callable[..., httpx.Response]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return lambda request: httpx.Response(status, content=content, headers=headers)


def failing(request: httpx.Request) -> httpx.Response:
    raise httpx.ReadError("reset", request=request)


def raw(request: httpx.Request) -> httpx.Response:
    raise RuntimeError("not even an HTTP error")


async def hanging(request: httpx.Request) -> httpx.Response:
    await asyncio.Event().wait()
    raise AssertionError


class Endless(httpx.AsyncByteStream):
    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            yield b" " * 65_536


PACKED = gzip.compress(b" " * 10_000_000 + b'{"decision": "confirm"}')


class Packed(httpx.AsyncByteStream):
    """A confirm behind so many spaces that unpacking it is seen in the memory."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield PACKED


QUESTION = Question("t-1", "seats", "production")
UNKNOWN = {"type": "/problems/unknown-transaction", "status": 404}


@pytest.mark.parametrize(
    ("respond", "verdict"),
    [
        (answering(200, {"decision": "confirm", "recheck_in_s": 0}), Verdict.CONFIRM),
        (answering(200, {"decision": "cancel", "recheck_in_s": 0}), Verdict.CANCEL),
        (answering(200, {"decision": "undecided", "recheck_in_s": 7}), Verdict.UNDECIDED),
        (answering(404, UNKNOWN), Verdict.CANCEL),
        (answering(404, {"type": "https://docs.example.org/problems/unknown-transaction"}), Verdict.CANCEL),
        (answering(404, {"detail": "Not Found"}), Verdict.UNREACHABLE),
        (answering(404, {"type": "about:blank"}), Verdict.UNREACHABLE),
        (answering(404, b"<html>no such host</html>"), Verdict.UNREACHABLE),
        (answering(410, UNKNOWN), Verdict.UNREACHABLE),
        (answering(200, UNKNOWN), Verdict.UNREACHABLE),
        (answering(200, {"decision": "maybe"}), Verdict.UNREACHABLE),
        (answering(200, {"decision": ["cancel"]}), Verdict.UNREACHABLE),
        (answering(200, b"cancel"), Verdict.UNREACHABLE),
        (answering(200, ["cancel"]), Verdict.UNREACHABLE),
        (answering(302, b"", {"Location": "http://elsewhere/"}), Verdict.UNREACHABLE),
        (answering(500, {"decision": "cancel"}), Verdict.UNREACHABLE),
        (answering(401, UNKNOWN), Verdict.UNREACHABLE),
        (lambda request: httpx.Response(200, stream=Endless()), Verdict.UNREACHABLE),
        (failing, Verdict.UNREACHABLE),
        (raw, Verdict.UNREACHABLE),
        (hanging, Verdict.UNREACHABLE),
    ],
)
async def test_what_counts_as_an_answer(respond: Any, verdict: Verdict) -> None:
    transport = httpx.MockTransport(respond)
    answered = await inquiry.ask(transport, "http://coordinator/", QUESTION, timeout_s=0.05)
    assert answered.verdict is verdict


async def test_what_is_packed_is_not_unpacked() -> None:
    packed = httpx.Response(200, headers={"Content-Encoding": "gzip"}, stream=Packed())
    tracemalloc.start()
    try:
        answered = await inquiry.ask(httpx.MockTransport(lambda _: packed), "http://c", QUESTION, timeout_s=10)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert answered.verdict is Verdict.UNREACHABLE
    assert peak_bytes < 1_000_000


@pytest.mark.parametrize(
    ("said", "seconds"),
    [(7, 7.0), (0, 0.1), (-3, 0.1), (10**9, 3600.0), (None, 5.0), ("soon", 5.0), (True, 5.0), (10**400, 3600.0)],
)
async def test_recheck_is_taken_with_sense(said: Any, seconds: float) -> None:
    transport = httpx.MockTransport(answering(200, {"decision": "undecided", "recheck_in_s": said}))
    answered = await inquiry.ask(transport, "http://coordinator", QUESTION, timeout_s=1)
    assert answered.recheck_in_s == seconds


async def test_a_table_is_made_once_by_many_replicas(url: str, kind: str) -> None:
    async with running(url, kind) as service:
        table = service.participant.table
        if isinstance(service.database, AsyncEngine):
            async with service.database.begin() as connection:
                await connection.run_sync(table.drop)
        else:
            table.drop(service.database)
        replicas: list[Participant] = [service_on(service.database).participant for _ in range(4)]
        await asyncio.gather(*(replica.create_table() for replica in replicas))
        assert await service.rows(select(table)) == []
