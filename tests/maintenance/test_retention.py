"""Retention: what is over its time goes, batch by batch, beside the traffic; what fails is said and tried again."""

import asyncio
import json
import logging
import os
import threading
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from itertools import count as count_from
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, Table, delete, func, select, update

from app.api.rendering import exported
from app.engine.coordinator import _new_id
from app.maintenance import retention
from app.maintenance.export import Export
from app.maintenance.retention import DAY_S, Retention
from app.metrics import Metrics
from app.protocol.transaction_id import earliest_id
from app.protocol.values import CallRecord, Resolution, Settled, Transaction
from app.storage import calls, purge, tables
from app.storage.errors import DatabaseUnavailableError, StaleError
from app.storage.group_commit import Journal
from app.storage.leases import LeaseLostError
from app.storage.purge import Record
from holdfast.wire import Decision
from tests.harness.budget import TIMES
from tests.harness.network import Network
from tests.harness.replica import Replica, begin_of
from tests.harness.transactions import CAR, call, recorded, transaction, written
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


def checked(clock: Callable[[], float]) -> Callable[[], Awaitable[float]]:
    """A clock that is right whenever it is checked."""

    async def check() -> float:
        return clock()

    return check


def retention_of(replica: Replica, export: Export | None = None, retention_s: float = KEPT_S) -> Retention:
    return Retention(
        journal=replica.journal,
        metrics=replica.metrics,
        retention_s=retention_s,
        export=export,
        clock=now,
        check_clock=checked(now),
    )


def count(engine: Engine, table: Table = tables.transactions) -> int:
    with engine.connect() as connection:
        return connection.execute(select(func.count()).select_from(table)).scalar_one()


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
    async with Replica(database_url, Network(engine, now), recovers=False, alone=True) as replica:
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
async def test_only_what_is_over_its_time_by_a_clock_that_was_just_checked(database_url: str, engine: Engine) -> None:
    """The coordinator's own may be ahead; and while the database can't be asked nothing is purged."""
    finished(engine, KEPT_S + 10.0, KEPT_S - 10.0)
    says: list[float | Exception] = [DatabaseUnavailableError("gone"), EPOCH - 11.0, EPOCH, EPOCH]

    async def check() -> float:
        said = says.pop(0)
        if isinstance(said, Exception):
            raise said
        return said

    async with Replica(database_url, Network(engine, now), recovers=False, alone=True) as replica:
        service = retention_of(replica)
        service._check_clock = check
        service._clock = lambda: EPOCH + 31 * DAY_S
        with pytest.raises(DatabaseUnavailableError):
            await service.run_once()
        assert count(engine) == 2
        while says:
            before = len(says)
            await service.run_once()
            assert count(engine) == (2 if before == 3 else 1)


@in_virtual_time
async def test_without_a_retention_nothing_is_purged(database_url: str, engine: Engine) -> None:
    finished(engine, 2 * KEPT_S)
    async with Replica(database_url, Network(engine, now), recovers=False, alone=True) as replica:
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
    async with Replica(database_url, Network(engine, now), recovers=False, alone=True) as replica:
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
    async with Replica(database_url, Network(engine, now), recovers=False, alone=True) as replica:
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
    await pass_time(retention.LEASE_S)
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

    async with Replica(database_url, Network(engine, now), recovers=False, alone=True) as replica:
        service = retention_of(replica, Slow())
        await service.start()
        assert await asyncio.to_thread(reached.wait, 10)
        threading.Timer(0.05, go.set).start()
        await service.stop()
        assert count(engine) == 0


async def test_a_stop_ends_an_export_that_takes_too_long(
    database_url: str, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it stays, and nothing is deleted."""
    monkeypatch.setattr(retention, "STOP_MAX_S", 0.01)
    finished(engine, KEPT_S)
    reached = threading.Event()

    def endless(_: Connection, transaction_id: str, after_id: int) -> tuple[list[CallRecord], int | None]:
        reached.set()
        return [call(replace(transaction(0), id=transaction_id), 1)], after_id + 1

    monkeypatch.setattr(purge, "page_calls", endless)
    monkeypatch.setattr(purge, "find_few_calls", lambda *_: None)
    journal = Journal(database_url)
    service = Retention(
        journal=journal,
        metrics=Metrics(),
        retention_s=KEPT_S,
        export=Export(tmp_path, exported),
        clock=lambda: EPOCH,
        check_clock=checked(lambda: EPOCH),
    )
    await service.start()
    assert await asyncio.to_thread(reached.wait, 10)
    await service.stop()
    await journal.close()
    assert (count(engine), lines_of(tmp_path)) == (1, [])


def lines_of(directory: Path) -> list[dict[str, Any]]:
    """The exported records, without a last line that has no end."""
    files = directory.glob("transactions-*.jsonl")
    return [json.loads(line) for file in files for line in file.read_bytes().split(b"\n")[:-1]]


@in_virtual_time
async def test_replicas_purge_together(
    database_url: str, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH_MAX", 3)
    finished(engine, *(KEPT_S + n for n in range(50)))
    network = Network(engine, now)
    async with (
        Replica(database_url, network, recovers=False) as one,
        Replica(database_url, network, recovers=False) as two,
    ):
        both = [retention_of(replica, Export(tmp_path, exported)) for replica in (one, two)]
        began = now()
        for each in both:
            await each.start()
        await until(lambda: count(engine) == 0)
        assert now() - began < retention.RETRY_PAUSE_S
        for each in both:
            await each.stop()
        assert total(one.metrics.purged) + total(two.metrics.purged) == 50
        assert total(one.metrics.purge_failures) + total(two.metrics.purge_failures) == 0
    assert len({line["id"] for line in lines_of(tmp_path)}) == len(lines_of(tmp_path)) == 50


@in_virtual_time
async def test_who_falls_silent_is_replaced_and_who_stops_hands_over(
    database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH_MAX", 3)
    finished(engine, *(KEPT_S + n for n in range(20)))
    network = Network(engine, now)
    async with Replica(database_url, network, recovers=False) as replica:
        silent, second, third = (retention_of(replica) for _ in range(3))
        assert await silent.run_once()
        await pass_time(retention.LEASE_S - 1.0)
        with pytest.raises(LeaseLostError):
            await second.run_once()
        await pass_time(1.0)
        assert await second.run_once()
        with pytest.raises(LeaseLostError):
            await silent.run_once()
        await second.stop()
        await third.start()
        await pass_time(30.0)
        assert count(engine) == 0
        await third.stop()


@in_virtual_time
async def test_who_was_frozen_while_it_exported_deletes_nothing(database_url: str, engine: Engine) -> None:
    finished(engine, *(KEPT_S + n for n in range(3)))
    async with Replica(database_url, Network(engine, now), recovers=False, alone=True) as replica:
        other = retention_of(replica)
        thawed = asyncio.Event()

        class Frozen(Retention):
            async def _export_new(self, transactions: Sequence[Transaction]) -> None:
                await thawed.wait()

        frozen = Frozen(
            journal=replica.journal,
            metrics=replica.metrics,
            retention_s=KEPT_S,
            export=None,
            clock=now,
            check_clock=checked(now),
        )
        purging = asyncio.create_task(frozen.run_once())
        await pass_time(retention.LEASE_S)
        await other._hold_lease()
        thawed.set()
        with pytest.raises(LeaseLostError):
            await purging
        assert count(engine) == 3
        assert await other.run_once()
        assert (count(engine), total(replica.metrics.purged)) == (0, 3)


@in_virtual_time
async def test_the_lease_is_kept_while_an_export_takes_long(
    database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished(engine, KEPT_S)
    async with Replica(database_url, Network(engine, now), recovers=False, alone=True) as replica:
        ends = asyncio.Event()

        async def slowly(*_: Any) -> None:
            await ends.wait()

        monkeypatch.setattr(asyncio, "to_thread", slowly)
        service, other = retention_of(replica, Refusing()), retention_of(replica)
        purging = asyncio.create_task(service.run_once())
        for _ in range(10):
            await pass_time(retention.LEASE_S / 2)
            with pytest.raises(LeaseLostError):
                await other.run_once()
        ends.set()
        assert await purging
        assert count(engine) == 0


# --- what fails --------------------------------------------------------------------------------------------------


def ids_of(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        return list(connection.execute(select(tables.transactions.c.id).order_by(tables.transactions.c.id)).scalars())


def with_calls(engine: Engine, transaction_id: str, attempts: int) -> None:
    of = replace(transaction(0), id=transaction_id)
    written(engine, calls.add_calls, tuple(call(of, attempt) for attempt in range(attempts)))


@in_virtual_time
async def test_one_that_can_not_be_exported_holds_up_no_other(
    database_url: str, engine: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    finished(engine, *(KEPT_S + n for n in range(9)))
    ids = ids_of(engine)
    for id_ in ids:
        with_calls(engine, id_, 2)
    with engine.execution_options(holdfast_writes=True).begin() as connection:
        odd = tables.calls.c.transaction_id == ids[4]
        connection.execute(update(tables.calls).where(odd).values(operation="unheard"))
    async with Replica(database_url, Network(engine, now), recovers=False, alone=True) as replica:
        service = retention_of(replica, Export(tmp_path, exported))
        await service.start()
        await pass_time(3 * retention.RETRY_PAUSE_S)
        assert ids_of(engine) == [ids[4]]
        assert sorted(line["id"] for line in lines_of(tmp_path)) == ids[:4] + ids[5:]
        assert (total(replica.metrics.purged), total(replica.metrics.purge_failures)) == (8, 2)
        assert any(f"event=purge_skipped transaction_id={ids[4]}" in message for message in caplog.messages)
        with engine.execution_options(holdfast_writes=True).begin() as connection:
            connection.execute(update(tables.calls).where(odd).values(operation="try"))
        await pass_time(retention.SWEEP_PAUSE_S)
        assert count(engine) == 0
        assert len(lines_of(tmp_path)) == 9
        await service.stop()


@pytest.mark.parametrize(
    "failure", [DatabaseUnavailableError("lock timeout"), StaleError("changed"), ValueError("odd")]
)
@in_virtual_time
async def test_what_was_exported_is_not_exported_again_because_it_can_not_be_deleted(
    database_url: str, engine: Engine, tmp_path: Path, failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished(engine, *(KEPT_S + n for n in range(5)))
    ids = ids_of(engine)
    delete_finished, stuck = purge.delete_finished, {*ids}

    def fails(connection: Connection, items: Sequence[purge.Deletion]) -> list[bool]:
        if any(id_ in stuck for item in items for id_ in item.ids):
            raise failure
        return delete_finished(connection, items)

    monkeypatch.setattr(purge, "delete_finished", fails)
    async with Replica(database_url, Network(engine, now), recovers=False, alone=True) as replica:
        service = retention_of(replica, Export(tmp_path, exported))
        await service.start()
        await pass_time(10 * retention.RETRY_PAUSE_S)
        assert ids_of(engine) == ids
        stuck -= {*ids[1:]}
        await pass_time(2 * retention.SWEEP_PAUSE_S)
        assert ids_of(engine) == ids[:1]
        stuck.clear()
        await pass_time(2 * retention.SWEEP_PAUSE_S)
        assert count(engine) == 0
        assert sorted(line["id"] for line in lines_of(tmp_path)) == ids
        await service.stop()


@in_virtual_time
async def test_what_is_remembered_as_exported_is_bounded(
    database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "EXPORTED_MAX", 3)
    finished(engine, KEPT_S, KEPT_S + 1.0)
    async with Replica(database_url, Network(engine, now), recovers=False, alone=True) as replica:
        service = retention_of(replica, Refusing())
        service._exported |= {f"old-{number}": None for number in range(3)}
        await service.run_once()
        assert [*service._exported] == ["old-2"]


@in_virtual_time
async def test_leftovers_that_can_not_be_deleted_hold_up_nothing(
    database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished(engine, *(KEPT_S + n for n in range(3)))

    def fails(*_: Any) -> list[bool]:
        raise DatabaseUnavailableError("lock timeout")

    monkeypatch.setattr(purge, "delete_leftover_calls", fails)
    async with Replica(database_url, Network(engine, now), recovers=False, alone=True) as replica:
        service = retention_of(replica)
        await service.start()
        await pass_time(1.5 * retention.RETRY_PAUSE_S)
        assert (count(engine), total(replica.metrics.purge_failures)) == (0, 1)
        await service.stop()


# --- many calls, and crashes -------------------------------------------------------------------------------------


async def test_very_many_calls_go_in_chunks_and_are_exported_once(
    database_url: str, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts, chunk = 20_000 * TIMES, 1_000  # FUZZ_TIMES=5: a hundred thousand
    monkeypatch.setattr(purge, "CALLS_MAX", chunk)
    finished(engine, KEPT_S, KEPT_S + 10.0, KEPT_S - 10.0)
    _, many, young = ids_of(engine)
    with_calls(engine, many, attempts)
    with_calls(engine, young, 7)
    journal = Journal(database_url)
    service = Retention(
        journal=journal,
        metrics=Metrics(),
        retention_s=KEPT_S,
        export=Export(tmp_path, exported),
        clock=lambda: EPOCH,
        check_clock=checked(lambda: EPOCH),
    )
    there, has_more = [attempts + 7], True
    while has_more:
        has_more = await service.run_once()
        there.append(count(engine, tables.calls))
    await journal.close()
    assert max(before - after for before, after in pairwise(there)) == chunk
    assert (there[-1], ids_of(engine), count(engine, tables.leftover_calls)) == (7, [young], 0)
    line = next(line for line in lines_of(tmp_path) if line["id"] == many)
    assert [each["attempt"] for each in line["calls"]] == [*range(attempts)]
    assert len(lines_of(tmp_path)) == 2


class DiedError(Exception):
    """The process is killed here."""


class DyingJournal(Journal):
    """The journal of a process that dies at the nth point: before or after one of its reads or commits."""

    def __init__(self, database_url: str, at: int) -> None:
        super().__init__(database_url)
        self._at = at
        self.points: list[str] = []

    def passed(self, point: str) -> None:
        self.points.append(point)
        if len(self.points) >= self._at:
            raise DiedError(point)

    async def read(self, function: Callable[..., Any], *args: Any) -> Any:
        self.passed(f"before {function.__name__}")
        result = await super().read(function, *args)
        self.passed(f"after {function.__name__}")
        return result

    def read_in_this_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        self.passed(f"before {function.__name__}")
        result = super().read_in_this_thread(function, *args)
        self.passed(f"after {function.__name__}")
        return result

    async def write_apart(self, function: Callable[..., Sequence[Any]], item: Any) -> Any:
        self.passed(f"before {function.__name__}")
        result = await super().write_apart(function, item)
        self.passed(f"after {function.__name__}")
        return result


async def swept(journal: Journal, directory: Path, at: float) -> None:
    """Purge with a process of its own until nothing is left to purge."""
    service = Retention(
        journal=journal,
        metrics=Metrics(),
        retention_s=KEPT_S,
        export=Export(directory, exported),
        clock=lambda: at,
        check_clock=checked(lambda: at),
    )
    try:
        while await service.run_once():
            pass
    finally:
        await journal.close()


async def test_a_crash_at_any_point_loses_nothing_and_repeats_no_line_but_those_of_its_batch(
    database_url: str, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purge, "CALLS_MAX", 4)
    monkeypatch.setattr(retention, "BATCH_MAX", 2)
    monkeypatch.setattr(os, "truncate", lambda *_: None)  # a process that is killed leaves its half line
    seen: set[str] = set()
    for at in count_from(1):
        with engine.execution_options(holdfast_writes=True).begin() as connection:
            for table in (tables.transactions, tables.calls, tables.leftover_calls, tables.leases):
                connection.execute(delete(table))
        finished(engine, *(KEPT_S + n for n in range(4)), KEPT_S - 1000.0)
        *old, young = ids_of(engine)
        for id_, attempts in zip([*old, young], (1, 0, 7, 2, 3), strict=True):
            with_calls(engine, id_, attempts)
        (directory := tmp_path / f"{at}").mkdir()
        dying = DyingJournal(database_url, at)
        try:
            await swept(dying, directory, EPOCH)
        except DiedError as died:
            seen.add(str(died))
            await swept(Journal(database_url), directory, EPOCH + 5.0 + retention.LEASE_S)
        assert (ids_of(engine), count(engine, tables.calls), count(engine, tables.leftover_calls)) == ([young], 3, 0)
        lines = lines_of(directory)
        assert {line["id"]: len(line["calls"]) for line in lines} == dict(zip(old, (1, 0, 7, 2), strict=True))
        between = dying.points[-1] == "before delete_finished"
        assert (len(lines) > len(old)) == between, dying.points[-1]
        if len(dying.points) < at:
            break
    reads, writes = "list_ids find_batch find_few_calls page_calls", "take_lease delete_finished delete_leftover_calls"
    functions = f"{reads} {writes}".split()
    assert seen == {f"{when} {name}" for when in ("before", "after") for name in functions}
