"""Replicas whose machines have the wrong time, on a database server: they all go by the database's clock."""

import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final

import pytest
from sqlalchemy import Connection

from app.clock import DatabaseClock, elapsed_s
from app.main import recovery_of
from app.maintenance import clock_sync
from app.storage import database_clock, purge
from app.storage.migrations import migrate
from tests.harness.coordinator_app import Gate, Json, reply, running, until
from tests.harness.databases import on_servers

pytestmark = on_servers

DAY_S: Final = 86_400.0
REQUEST: Final = {"branches": [{"participant": "inventory"}]}


def off_by(seconds: float) -> Callable[[], float]:
    """The clock of a machine that is so far ahead, or behind."""
    return lambda: time.time() + seconds


def seconds_of(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()


def check_times(shown: Json, not_before: float) -> None:
    """All times of a finished transaction are those of the real world."""
    times = [seconds_of(shown[name]) for name in ("created_at", "decided_at", "finished_at")]
    assert all(not_before - 1.0 < at < time.time() + 1.0 for at in times), times
    assert seconds_of(shown["deadline"]) - times[0] == pytest.approx(30.0, abs=0.01)


async def test_a_replica_that_is_a_month_ahead_purges_nothing_and_begins_nothing_twice(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    list_ids, swept = purge.list_ids, list[str]()

    def listed(connection: Connection, after_id: str, before_id: str, limit: int) -> Sequence[str]:
        ids = list_ids(connection, after_id, before_id, limit)
        if not ids:
            swept.append(before_id)
        return ids

    async def has_swept() -> bool:
        return bool(swept)

    migrate(database_url)
    async with running(database_url) as right:
        await right.register("inventory")
        first = await right.begin(REQUEST, idempotency_key='"order-1"')
        assert first.status_code == 201
    monkeypatch.setattr(purge, "list_ids", listed)
    async with running(database_url, clock=off_by(31 * DAY_S)) as ahead:
        await until(has_swept)
        assert await ahead.get(first.json()["id"]) == first.json()
        again = await ahead.begin(REQUEST, idempotency_key='"order-1"')
        assert again.json()["id"] == first.json()["id"]
        assert ahead.participants.received == [], "nothing is tried or confirmed once more"


@pytest.mark.parametrize("off_s", [31 * DAY_S, 300.0, -300.0])
async def test_everything_is_recorded_with_the_databases_time_and_the_difference_is_told(
    off_s: float, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    migrate(database_url)
    started_at = time.time()
    async with running(database_url, clock=off_by(off_s)) as service:
        await service.register("inventory")
        check_times((await service.begin(REQUEST)).json(), started_at)

        async def is_told() -> bool:
            metrics = (await service.client.get("/metrics")).text
            (line,) = (
                each for each in metrics.splitlines() if each.startswith('holdfast_clock_ahead_seconds{clock="m')
            )
            return abs(float(line.split()[1]) - off_s) < 1.0

        await until(is_told)
    assert any(message.startswith(f"event=clock_off by_s={off_s:.0f}."[:21]) for message in caplog.messages)


@pytest.mark.parametrize("off_s", [300.0, 31 * DAY_S])
async def test_a_replica_that_is_ahead_leaves_the_others_their_transactions(off_s: float, database_url: str) -> None:
    migrate(database_url)
    async with running(database_url) as right:
        await right.register("inventory")
        gate = Gate()
        right.participants.script("/inventory/try", [gate])
        begun = (await right.begin(REQUEST | {"answer_at": "record"})).json()
        await gate.reached()
        async with running(database_url, clock=off_by(off_s)) as ahead:
            assert await recovery_of(ahead.parts).run_once() == 0
            assert (await ahead.get(begun["id"]))["decision"] == "undecided"
            gate.open()
            assert (await right.until_finished(begun["id"]))["outcome"] == "confirmed"
            assert ahead.participants.received == []


@pytest.mark.parametrize("off_s", [(1.0, -1.0), (-1.0, 1.0)])
async def test_a_hold_ends_at_the_same_moment_for_whoever_takes_the_transaction_over(
    off_s: tuple[float, float], database_url: str
) -> None:
    """Two machines that are a second off, each its own way, and a hold that lasts for one."""
    two = {"branches": [{"participant": "inventory"}, {"participant": "card"}], "answer_at": "record"}
    migrate(database_url)
    async with running(database_url, clock=off_by(off_s[0])) as first:
        await first.register("inventory", "card")
        held, gate = Gate(reply(200, {}, tcc_hold_ttl="1")), Gate()
        held.open()
        first.participants.script("/inventory/try", [held])
        first.participants.script("/card/try", [gate])
        begun = (await first.begin(two)).json()
        await held.reached()
        await gate.reached()
        ended_at = seconds_of(begun["created_at"]) + 1.0
        await first.until(begun["id"], lambda each: each["branches"][0]["phase"] == "held")
    async with running(database_url, clock=off_by(off_s[1])) as second:
        gate = Gate()
        second.participants.script("/inventory/try", [reply(200, {}, tcc_hold_ttl="1")])
        second.participants.script("/card/try", [gate])

        async def has_ended() -> bool:
            return (await second.parts.journal.read(database_clock.ask, elapsed_s)).time > ended_at

        await until(has_ended)
        gate.open()
        ended = await second.until_finished(begun["id"])
        assert (ended["outcome"], ended["reason"]["code"]) == ("cancelled", "hold_expired")
        assert not second.participants.at("/inventory/confirm")


async def test_a_replica_that_stood_still_with_its_machine_confirms_nothing_after_a_holds_end(
    database_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No clock of its own tells it: the database refuses the decision, and says what time it is."""
    monkeypatch.setattr(clock_sync, "PAUSE_S", 3600.0)
    migrate(database_url)
    async with running(database_url) as service:
        await service.register("inventory", "card")
        gate = Gate()
        service.participants.script("/inventory/try", [reply(200, {}, tcc_hold_ttl="0.2")])
        service.participants.script("/card/try", [gate])
        two = {"branches": [{"participant": "inventory"}, {"participant": "card"}], "answer_at": "record"}
        begun = (await service.begin(two)).json()
        await gate.reached()
        clock = service.parts.clock
        assert isinstance(clock, DatabaseClock)
        ended_at = clock() + 0.2
        stop(clock)

        async def has_ended() -> bool:
            return (await service.parts.journal.read(database_clock.ask, elapsed_s)).time > ended_at

        await until(has_ended)
        assert clock() < ended_at
        gate.open()
        ended = await service.until_finished(begun["id"])
        assert (ended["outcome"], ended["reason"]["code"]) == ("cancelled", "hold_expired")
        assert seconds_of(ended["decided_at"]) > ended_at - 0.03, "it has learned the time"
        assert not service.participants.at("/inventory/confirm")
    assert any(message.startswith("event=decision_late ") for message in caplog.messages)


def stop(clock: Any) -> None:
    """The clock stands still from now on, until something moves it forward."""
    clock._line = elapsed_s(), clock(), 0.0
