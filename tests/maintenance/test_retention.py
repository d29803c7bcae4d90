"""Retention: what is over its time goes, batch by batch, beside the traffic; what fails is said and tried again."""

import logging
import os
import threading
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, func, select

from app.api.rendering import exported
from app.engine.coordinator import _new_id
from app.maintenance import retention
from app.maintenance.export import Export
from app.maintenance.retention import DAY_S, Retention
from app.protocol.transaction_id import earliest_id
from app.protocol.values import Resolution, Settled
from app.storage import tables
from app.storage.purge import Record
from holdfast.wire import Decision
from tests.harness.network import Network
from tests.harness.replica import Replica, begin_of
from tests.harness.transactions import CAR, recorded, transaction
from tests.harness.virtual_time import EPOCH, in_virtual_time, now, pass_time, until

KEPT_S = 5 * DAY_S


class Refusing(Export):
    """An export whose disk is full until it is told otherwise; it remembers what it was given."""

    def __init__(self) -> None:
        super().__init__(Path(), exported)
        self.full = False
        self.given: list[str] = []

    def append(self, records: Iterable[Record], at: float) -> None:
        if self.full:
            raise OSError("No space left on device")
        self.given += [each.id for each, _ in records]


def retention_of(replica: Replica, export: Export | None = None, retention_s: float = KEPT_S) -> Retention:
    return Retention(
        journal=replica.journal, metrics=replica.metrics, retention_s=retention_s, export=export, clock=now
    )


def count(engine: Engine) -> int:
    with engine.connect() as connection:
        return connection.execute(select(func.count()).select_from(tables.transactions)).scalar_one()


def total(counter: Any) -> float:
    return float(counter._value.get())


def finished(engine: Engine, *ages_s: float, **fields: Any) -> None:
    """Transactions that began and ended so many seconds before the test began."""
    for age_s in ages_s:
        at = EPOCH - age_s
        ended: dict[str, Any] = {
            "decision": Decision.CONFIRM,
            "created_at": at,
            "finished_at": at,
            "wake_at": None,
        } | fields
        recorded(engine, replace(transaction(0), id=_new_id(at), **ended))


def test_an_id_tells_when_it_was_made() -> None:
    for at in (0.0, 0.001, EPOCH, 1_700_000_000.123, 4e9):
        assert earliest_id(at) <= _new_id(at)
        assert _new_id(at) < earliest_id(at + 0.002)
    assert earliest_id(-1.0) == earliest_id(0.0) <= _new_id(0.0)


@in_virtual_time
async def test_it_goes_batch_by_batch_until_only_the_young_is_left(
    database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH_MAX", 4)
    finished(engine, *(KEPT_S + n for n in range(10)), KEPT_S - 100.0, 5.0)
    async with Replica(database_url, Network(engine, now), recovers=False) as replica:
        service = retention_of(replica)
        assert [(await service.run_once(), count(engine)) for _ in range(4)] == [
            (True, 8),
            (True, 4),
            (True, 2),
            (False, 2),
        ]
        assert total(replica.metrics.purged) == 10
        await pass_time(99.0)
        assert (await service.run_once(), count(engine)) == (False, 2)
        await pass_time(2.0)
        assert (await service.run_once(), count(engine)) == (True, 1)


@in_virtual_time
async def test_it_runs_by_itself_beside_the_traffic_and_stops_at_once(database_url: str, engine: Engine) -> None:
    network = Network(engine, now)
    finished(engine, *(KEPT_S + n for n in range(5)))
    async with Replica(database_url, network, recovers=False) as replica:
        service = retention_of(replica)
        await service.start()
        fresh = await replica.finish(begin_of())
        await until(lambda: count(engine) == 1)
        finished(engine, KEPT_S - 10.0)
        await pass_time(retention.SWEEP_PAUSE_S + 1.0)
        assert count(engine) == 1
        before = now()
        await service.stop()
        assert now() == before
        assert (await replica.coordinator.find(fresh.id)).phase == "confirmed"
        network.check(fresh.id)


@in_virtual_time
async def test_without_a_retention_nothing_is_purged(database_url: str, engine: Engine) -> None:
    finished(engine, 2 * KEPT_S)
    async with Replica(database_url, Network(engine, now), recovers=False) as replica:
        service = retention_of(replica, retention_s=0.0)
        await service.start()
        await pass_time(3600.0)
        await service.stop()
    assert count(engine) == 1


@in_virtual_time
async def test_a_record_that_a_person_resolved_is_kept_and_looked_at_once_a_sweep(
    database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH_MAX", 2)
    by_hand = Resolution(settled=Settled.CANCELLED, by="ada", at=5.0, reason="refunded")
    finished(engine, *(KEPT_S + n for n in range(6)), branches=(replace(CAR, resolution=by_hand),))
    finished(engine, KEPT_S)
    async with Replica(database_url, Network(engine, now), recovers=False) as replica:
        service = retention_of(replica)
        looked: list[bool] = []
        while not looked or looked[-1]:
            looked.append(await service.run_once())
        assert len(looked) == 5, "seven rows are four batches, and one that finds nothing more"
        assert (count(engine), total(replica.metrics.purged)) == (6, 1)


@in_virtual_time
async def test_what_can_not_be_exported_is_not_deleted_and_tried_again(
    database_url: str, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    finished(engine, *(KEPT_S + n for n in range(3)))
    export = Refusing()
    export.full = True
    async with Replica(database_url, Network(engine, now), recovers=False) as replica:
        service = retention_of(replica, export)
        with caplog.at_level(logging.ERROR):
            await service.start()
            await pass_time(130.0)
        assert (count(engine), total(replica.metrics.purged), total(replica.metrics.purge_failures)) == (3, 0, 3)
        assert any("event=purge_failed" in message and "No space left" in message for message in caplog.messages)
        export.full = False
        await pass_time(60.0)
        assert (count(engine), len(export.given)) == (0, 3)
        await service.stop()


@in_virtual_time
async def test_a_crash_between_export_and_delete_exports_again(
    database_url: str, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished(engine, *(KEPT_S + n for n in range(3)))
    network = Network(engine, now)
    directory = tmp_path / "export"
    os.mkdir(directory)

    def dies(*_: Any) -> None:
        raise ConnectionError("the process is gone")

    async with Replica(database_url, network, recovers=False) as replica:
        with monkeypatch.context() as dying:
            dying.setattr("app.storage.purge._delete", dies)
            with pytest.raises(ConnectionError):
                await retention_of(replica, Export(directory, exported)).run_once()
    assert count(engine) == 3
    async with Replica(database_url, network, recovers=False) as replica:
        assert await retention_of(replica, Export(directory, exported)).run_once()
    assert count(engine) == 0
    check_same_lines(directory, 3)


def check_same_lines(directory: Path, lines: int) -> None:
    first, second = [path.read_text().splitlines() for path in directory.iterdir()]
    assert first == second
    assert len(first) == lines


@in_virtual_time
async def test_a_stop_lets_a_batch_come_to_its_end(database_url: str, engine: Engine) -> None:
    finished(engine, *(KEPT_S + n for n in range(3)))
    reached, go = threading.Event(), threading.Event()

    class Slow(Refusing):
        def append(self, records: Iterable[Record], at: float) -> None:
            super().append(records, at)
            reached.set()
            assert go.wait(10)

    async with Replica(database_url, Network(engine, now), recovers=False) as replica:
        service = retention_of(replica, Slow())
        await service.start()
        await pass_time(0)
        assert reached.wait(10)
        threading.Timer(0.05, go.set).start()
        await service.stop()
        assert count(engine) == 0


@in_virtual_time
async def test_replicas_purge_together(database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "BATCH_MAX", 3)
    finished(engine, *(KEPT_S + n for n in range(50)))
    network = Network(engine, now)
    async with (
        Replica(database_url, network, recovers=False) as one,
        Replica(database_url, network, recovers=False) as two,
    ):
        both = [retention_of(replica) for replica in (one, two)]
        for each in both:
            await each.start()
        await until(lambda: count(engine) == 0)
        for each in both:
            await each.stop()
        assert total(one.metrics.purged) + total(two.metrics.purged) == 50
        assert total(one.metrics.purge_failures) + total(two.metrics.purge_failures) == 0
