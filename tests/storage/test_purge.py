"""What is purged, with all that belongs to it, and what never is."""

import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Engine, func, select, text, update

from app.protocol.values import Branch, CallRecord, HungReason, Resolution, Settled, Transaction
from app.storage import calls, errors, expressions, purge, tables, transactions
from app.storage.engines import make_engine
from app.storage.purge import Purge, Purged
from app.storage.tables import metadata
from holdfast.json_text import text_of
from holdfast.wire import Decision
from tests.harness.transactions import CAR, call, found, recorded, transaction, written

FLIGHT = Branch(name="flight", participant="flight")
LAST = transaction(10**12 - 1).id
TABLES = (tables.transactions, tables.transaction_participants, tables.hung_branches, tables.calls)


def ended(number: int, at: float = 100.0, *branches: Branch, **fields: Any) -> Transaction:
    """The nth transaction, finished at this second."""
    fields = {"decision": Decision.CONFIRM, "finished_at": at, "wake_at": None} | fields
    return transaction(number, *branches, **fields)


def batch(**fields: Any) -> Purge:
    """Everything finished by second 1000."""
    return replace(Purge(finished_by=1000.0, after_id="", before_id=LAST, limit=100, export=None), **fields)


def purged(engine: Engine, **fields: Any) -> Purged:
    (answer,) = written(engine, purge.purge, batch(**fields))
    assert isinstance(answer, Purged)
    return answer


def left(engine: Engine) -> list[int]:
    with engine.connect() as connection:
        ids = connection.execute(select(tables.transactions.c.id).order_by(tables.transactions.c.id)).scalars()
        return [int(id_[-12:]) for id_ in ids]


def counts(engine: Engine) -> list[int]:
    with engine.connect() as connection:
        return [connection.execute(select(func.count()).select_from(table)).scalar_one() for table in TABLES]


def with_calls(engine: Engine, of: Transaction, *attempts: int) -> None:
    recorded(engine, of)
    written(engine, calls.add_calls, tuple(call(of, attempt) for attempt in attempts))


def test_a_record_goes_with_all_that_belongs_to_it_and_its_neighbours_stay(engine: Engine) -> None:
    with_calls(engine, ended(1, 100.0, CAR, FLIGHT), 1, 2, 3)
    with_calls(engine, ended(2, 1000.1, CAR, FLIGHT), 1, 2)
    assert purged(engine) == Purged(count=1, last_id=transaction(2).id)
    assert (left(engine), counts(engine)) == ([2], [1, 2, 0, 2])
    assert found(engine, transactions.find, ended(1).id) is None
    assert len(found(engine, calls.list_calls, ended(2).id, 10, 0)) == 2


def test_an_idempotency_key_goes_with_its_record(engine: Engine) -> None:
    written(
        engine,
        transactions.record,
        transactions.NewRecord(transaction=ended(1), idempotency_key="k", request_hash="a"),
    )
    assert purged(engine).count == 1
    (again,) = written(
        engine, transactions.record, transactions.NewRecord(transaction=transaction(2), idempotency_key="k")
    )
    assert again.created


RESOLVED = replace(CAR, resolution=Resolution(settled=Settled.CONFIRMED, by="ada", at=50.0, reason="by hand"))
HUNG = replace(CAR, hung_reason=HungReason.CONFIRM_REFUSED)


@pytest.mark.parametrize(
    "kept",
    [
        transaction(1),
        transaction(1, decision=Decision.CONFIRM),
        transaction(1, HUNG, decision=Decision.CONFIRM, hung_since=40.0),
        transaction(1, wake_at=0.0),
        ended(1, 1000.001),
        ended(1, 100.0, RESOLVED),
        ended(1, 100.0, CAR, replace(RESOLVED, name="other")),
        ended(1, 100.0, RESOLVED, decision=Decision.CANCEL),
    ],
    ids=["trying", "confirming", "hung", "due", "young", "resolved", "one of two resolved", "mixed"],
)
def test_what_is_not_to_be_purged_never_is(engine: Engine, kept: Transaction) -> None:
    before = replace(kept, version=1)
    recorded(engine, before, ended(2))
    assert purged(engine) == Purged(count=1, last_id=ended(2).id)
    assert left(engine) == [1]


@pytest.mark.parametrize("column", ["wake_at", "hung_since", "resolved_at"])
def test_the_delete_itself_spares_what_is_not_finished(engine: Engine, column: str) -> None:
    """Even if what was looked at has become something else since, by whatever mistake."""
    recorded(engine, ended(1), ended(2))

    change = update(tables.transactions).where(tables.transactions.c.id == ended(1).id).values({column: 1.0})
    with pytest.raises(errors.StaleError), engine.execution_options(holdfast_writes=True).begin() as connection:
        purge.purge(connection, [batch(export=lambda _: connection.execute(change))])
    assert left(engine) == [1, 2]


def test_a_batch_looks_at_so_many_rows_whatever_they_are_and_the_next_goes_on(engine: Engine) -> None:
    kept = (2, 3, 4, 5, 9)
    recorded(engine, *(ended(n, 100.0, RESOLVED if n in kept else CAR) for n in range(1, 11)))
    seen: list[tuple[int, int]] = []
    answer = Purged(count=0, last_id="")
    while answer.last_id is not None:
        answer = purged(engine, limit=2, after_id=answer.last_id)
        seen += [(answer.count, int(answer.last_id[-12:]))] if answer.last_id else []
    assert seen == [(1, 2), (0, 4), (1, 6), (2, 8), (1, 10)]
    assert left(engine) == list(kept)


def test_what_began_too_late_is_not_looked_at(engine: Engine) -> None:
    recorded(engine, *(ended(n) for n in range(1, 6)))
    assert purged(engine, before_id=ended(4).id) == Purged(count=3, last_id=ended(3).id)
    assert purged(engine, before_id=ended(4).id) == Purged(count=0, last_id=None)
    assert left(engine) == [4, 5]


def test_large_records_are_purged_fewer_at_once(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expressions, "READ_BYTES_MAX", 10_000)
    recorded(engine, *(ended(n, 100.0, replace(CAR, payload=text_of("x" * 4_000))) for n in range(1, 6)))
    assert purged(engine) == Purged(count=2, last_id=ended(2).id)
    assert purged(engine, after_id=ended(2).id) == Purged(count=2, last_id=ended(4).id)
    assert left(engine) == [5]


def test_a_row_that_can_not_be_read_stays(engine: Engine) -> None:
    recorded(engine, ended(1), ended(2), ended(3))
    with engine.execution_options(holdfast_writes=True).begin() as connection:
        connection.execute(text("UPDATE transactions SET state = '{' WHERE id = :id"), {"id": ended(2).id})
    assert purged(engine) == Purged(count=2, last_id=ended(3).id)
    assert left(engine) == [2]


def test_the_export_gets_every_record_with_its_calls(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(purge, "CALLS_AT_ONCE", 2)
    with_calls(engine, ended(1), 1, 2, 3, 4, 5)
    recorded(engine, ended(2))
    with_calls(engine, ended(3), 2, 1)
    with_calls(engine, ended(4, 2000.0), 1)
    exported: list[tuple[Transaction, list[CallRecord]]] = []

    def export(records: Iterable[purge.Record]) -> None:
        exported.extend((each, list(history)) for each, history in records)

    assert purged(engine, export=export).count == 3
    expected = {1: (1, 2, 3, 4, 5), 2: (), 3: (2, 1)}
    assert exported == [(ended(n), [call(ended(n), a) for a in attempts]) for n, attempts in expected.items()]


def test_an_export_that_takes_no_calls_gets_the_next_record_all_the_same(engine: Engine) -> None:
    for number in (1, 2, 3):
        with_calls(engine, ended(number), 1, 2)
    exported: list[Transaction] = []
    purged(engine, export=lambda records: exported.extend(each for each, _ in records))
    assert exported == [ended(1), ended(2), ended(3)]


def test_nothing_is_deleted_when_the_export_fails(engine: Engine) -> None:
    with_calls(engine, ended(1), 1)

    def fail(_: Iterable[purge.Record]) -> None:
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        purged(engine, export=fail)
    assert counts(engine) == [1, 1, 0, 1]


@pytest.fixture
def postgres_engine(postgres_url: str) -> Iterator[Engine]:
    made = make_engine(postgres_url)
    with made.begin() as connection:
        metadata.create_all(connection)
    yield made
    made.dispose()


def test_two_replicas_purge_together_and_export_nothing_twice(postgres_engine: Engine) -> None:
    """What one has locked the other leaves alone, and does not wait for."""
    engine = postgres_engine
    recorded(engine, *(ended(n) for n in range(1, 11)))
    exporting, go = threading.Event(), threading.Event()
    first: list[str] = []
    second: list[str] = []

    def slowly(records: Iterable[purge.Record]) -> None:
        first.extend(each.id for each, _ in records)
        exporting.set()
        assert go.wait(30)

    def quickly(records: Iterable[purge.Record]) -> None:
        second.extend(each.id for each, _ in records)

    one = threading.Thread(target=purged, args=(engine,), kwargs={"limit": 4, "export": slowly})
    one.start()
    assert exporting.wait(30)
    assert purged(engine, limit=6, export=quickly) == Purged(count=2, last_id=ended(6).id)
    go.set()
    one.join(30)
    assert (len(first), sorted(second)) == (4, [ended(5).id, ended(6).id])
    assert left(engine) == [7, 8, 9, 10]
