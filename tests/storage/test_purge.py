"""What is purged, with all that belongs to it, in small steps; and what never is."""

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Engine, func, insert, select, text, update

from app.protocol.values import Branch, HungReason, Resolution, Settled, Transaction
from app.storage import calls, errors, expressions, leases, purge, tables, transactions
from app.storage.leases import Lease, LeaseLostError
from app.storage.purge import Batch, Deletion
from holdfast.json_text import text_of
from holdfast.wire import Decision
from tests.harness.transactions import CAR, call, found, recorded, transaction, written

FLIGHT = Branch(name="flight", participant="flight")
TABLES = (tables.transactions, tables.branches, tables.hung_branches, tables.calls)


def ended(number: int, at: float = 100.0, *branches: Branch, **fields: Any) -> Transaction:
    """The nth transaction, finished at this second."""
    fields = {"decision": Decision.CONFIRM, "finished_at": at, "wake_at": None} | fields
    return transaction(number, *branches, **fields)


FINISHED_BY = 1000.0
LEASE = Lease(name="purge", holder="me", now=0.0, expires_at=60.0)
OTHER = replace(LEASE, holder="other")


def batch_of(engine: Engine, *, after: int = -1, before: int = 10**12 - 1, limit: int = 100) -> Batch | None:
    """The next batch after the nth transaction, if there is one."""
    after_id = "" if after < 0 else transaction(after).id
    ids = found(engine, purge.list_ids, after_id, transaction(before).id, limit)
    batch = found(engine, purge.find_batch, ids, FINISHED_BY) if ids else None
    assert batch is None or isinstance(batch, Batch)
    return batch


def deleted(engine: Engine, *of: Transaction, lease: Lease = LEASE) -> bool:
    """Delete these; returns whether calls are left over."""
    deletion = Deletion(ids=[each.id for each in of], finished_by=FINISHED_BY, lease=lease)
    (has_leftovers,) = written(engine, purge.delete_finished, deletion)
    assert isinstance(has_leftovers, bool)
    return has_leftovers


def purged(engine: Engine, **window: int) -> tuple[int, int | None]:
    """How many were purged, and the number of the last one that was looked at."""
    written(engine, leases.take_lease, LEASE)
    batch = batch_of(engine, **window)
    if batch is None:
        return 0, None
    assert not deleted(engine, *batch.transactions)
    return len(batch.transactions), number_of(batch.last_id)


def number_of(transaction_id: str) -> int:
    return int(transaction_id[-12:])


def left(engine: Engine) -> list[int]:
    with engine.connect() as connection:
        ids = connection.execute(select(tables.transactions.c.id).order_by(tables.transactions.c.id)).scalars()
        return [number_of(id_) for id_ in ids]


def counts(engine: Engine) -> list[int]:
    with engine.connect() as connection:
        return [connection.execute(select(func.count()).select_from(table)).scalar_one() for table in TABLES]


def with_calls(engine: Engine, of: Transaction, *attempts: int) -> None:
    recorded(engine, of)
    written(engine, calls.add_calls, tuple(call(of, attempt) for attempt in attempts))


def test_a_record_goes_with_all_that_belongs_to_it_and_its_neighbours_stay(engine: Engine) -> None:
    with_calls(engine, ended(1, 100.0, CAR, FLIGHT), 1, 2, 3)
    with_calls(engine, ended(2, 1000.1, CAR, FLIGHT), 1, 2)
    assert purged(engine) == (1, 2)
    assert (left(engine), counts(engine)) == ([2], [1, 2, 0, 2])
    assert found(engine, transactions.find, ended(1).id) is None
    assert len(found(engine, calls.list_calls, ended(2).id, 10, 0)) == 2


def test_an_idempotency_key_goes_with_its_record(engine: Engine) -> None:
    written(
        engine,
        transactions.record,
        transactions.NewRecord(transaction=ended(1), idempotency_key="k", request_hash="a"),
    )
    assert purged(engine) == (1, 1)
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
    assert purged(engine) == (1, 2)
    assert left(engine) == [1]


@pytest.mark.parametrize("column", ["wake_at", "hung_since", "resolved_at"])
def test_the_delete_itself_spares_what_is_not_finished(engine: Engine, column: str) -> None:
    """Even if what was looked at has become something else since, by whatever mistake."""
    recorded(engine, ended(1), ended(2))
    written(engine, leases.take_lease, LEASE)
    with engine.execution_options(holdfast_writes=True).begin() as connection:
        change = update(tables.transactions).where(tables.transactions.c.id == ended(1).id).values({column: 1.0})
        connection.execute(change)
    with pytest.raises(errors.StaleError):
        deleted(engine, ended(1), ended(2))
    assert left(engine) == [1, 2]


def test_who_has_lost_the_lease_deletes_nothing(engine: Engine) -> None:
    with_calls(engine, ended(1), 1)
    with pytest.raises(LeaseLostError):
        deleted(engine, ended(1))
    written(engine, leases.take_lease, LEASE)
    written(engine, leases.take_lease, replace(OTHER, now=LEASE.expires_at, expires_at=120.0))
    with pytest.raises(LeaseLostError):
        deleted(engine, ended(1))
    with pytest.raises(LeaseLostError):
        written(engine, purge.delete_leftover_calls, LEASE)
    assert counts(engine) == [1, 1, 0, 1]


def test_a_lease_is_one_process_s_until_it_expires_or_is_released(engine: Engine) -> None:
    def take(lease: Lease, now: float) -> bool:
        (is_taken,) = written(engine, leases.take_lease, replace(lease, now=now, expires_at=now + 60.0))
        return bool(is_taken)

    assert take(LEASE, 0.0)
    assert [take(OTHER, 59.9), take(LEASE, 59.9), take(OTHER, 60.0), take(OTHER, 119.8)] == [False, True, False, False]
    assert [take(OTHER, 119.9), take(LEASE, 150.0)] == [True, False]
    written(engine, leases.release_lease, replace(LEASE, now=150.0))
    assert not take(LEASE, 150.0), "it was another's"
    written(engine, leases.release_lease, replace(OTHER, now=150.0))
    assert take(LEASE, 150.0)
    assert take(replace(OTHER, name="something else"), 150.0)


def test_a_batch_looks_at_so_many_rows_whatever_they_are_and_the_next_goes_on(engine: Engine) -> None:
    kept = (2, 3, 4, 5, 9)
    recorded(engine, *(ended(n, 100.0, RESOLVED if n in kept else CAR) for n in range(1, 11)))
    seen: list[tuple[int, int | None]] = [purged(engine, limit=2)]
    while (last := seen[-1][1]) is not None:
        seen.append(purged(engine, limit=2, after=last))
    assert seen == [(1, 2), (0, 4), (1, 6), (2, 8), (1, 10), (0, None)]
    assert left(engine) == list(kept)


def test_what_began_too_late_is_not_looked_at(engine: Engine) -> None:
    recorded(engine, *(ended(n) for n in range(1, 6)))
    assert purged(engine, before=4) == (3, 3)
    assert purged(engine, before=4) == (0, None)
    assert left(engine) == [4, 5]


def test_large_records_are_purged_fewer_at_once(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expressions, "READ_BYTES_MAX", 10_000)
    recorded(engine, *(ended(n, 100.0, replace(CAR, payload=text_of("x" * 4_000))) for n in range(1, 6)))
    assert purged(engine) == (2, 2)
    assert purged(engine, after=2) == (2, 4)
    assert left(engine) == [5]


def test_records_with_many_calls_are_purged_fewer_at_once(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(purge, "CALLS_MAX", 5)
    for number in range(1, 9):
        with_calls(engine, ended(number), 1, 2)
    assert [purged(engine), purged(engine, after=2), purged(engine, after=3)] == [(2, 2), (1, 3), (2, 5)]
    assert (left(engine), counts(engine)[3]) == ([6, 7, 8], 6)


def test_records_with_long_answers_are_purged_fewer_at_once(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expressions, "READ_BYTES_MAX", 10_000)
    for number in range(1, 5):
        recorded(engine, ended(number))
        written(engine, calls.add_calls, (replace(call(ended(number), 1), response="\u20ac" * 1_500),))
    assert purged(engine) == (2, 2)


def test_a_row_that_can_not_be_read_stays(engine: Engine) -> None:
    recorded(engine, ended(1), ended(2), ended(3))
    with engine.execution_options(holdfast_writes=True).begin() as connection:
        connection.execute(text("UPDATE transactions SET progress = '{' WHERE id = :id"), {"id": ended(2).id})
    assert purged(engine) == (2, 3)
    assert left(engine) == [2]


def test_few_calls_are_read_at_once_and_many_page_by_page(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(purge, "CALLS_MAX", 6)
    with_calls(engine, ended(1), 1, 2, 3, 4, 5)
    with_calls(engine, ended(2), 2, 1)
    recorded(engine, ended(3))
    ids = [ended(1).id, ended(3).id]
    assert found(engine, purge.find_few_calls, ids) == {ended(1).id: [call(ended(1), n) for n in (1, 2, 3, 4, 5)]}
    assert found(engine, purge.find_few_calls, [*ids, ended(2).id]) is None
    monkeypatch.setattr(purge, "CALLS_MAX", 2)
    assert pages(engine, ended(1)) == [[1, 2], [3, 4], [5]]
    assert pages(engine, ended(2)) == [[2, 1]]
    assert pages(engine, ended(3)) == [[]]


def test_a_page_of_calls_is_bounded_by_bytes(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expressions, "READ_BYTES_MAX", 10_000)
    recorded(engine, ended(1))
    sizes = (4_000, 4_000, 4_000, 12_000, 1)
    made = tuple(replace(call(ended(1), n), error="x" * size) for n, size in enumerate(sizes, 1))
    written(engine, calls.add_calls, made)
    assert pages(engine, ended(1)) == [[1, 2], [3], [4], [5]]


def pages(engine: Engine, of: Transaction) -> list[list[int]]:
    """The attempts on each page of its calls."""
    seen: list[list[int]] = []
    after_id: int | None = 0
    while after_id is not None:
        page, after_id = found(engine, purge.page_calls, of.id, after_id)
        seen.append([each.attempt for each in page])
    return seen


def test_many_calls_are_left_over_and_go_in_chunks(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(purge, "CALLS_MAX", 4)
    with_calls(engine, ended(1), *range(10))
    with_calls(engine, ended(2, 2000.0), 1, 2, 3, 4, 5)
    written(engine, leases.take_lease, LEASE)
    assert batch_of(engine) == Batch(transactions=[ended(1)], last_id=ended(2).id)
    assert deleted(engine, ended(1))
    assert (left(engine), counts(engine)) == ([2], [1, 1, 0, 15])
    assert chunks(engine) == [11, 7, 5]
    assert leftovers(engine) == 0
    assert len(found(engine, calls.list_calls, ended(2).id, 10, 0)) == 5


def test_calls_of_several_go_in_one_chunk(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(purge, "LEFTOVERS_MAX", 2)
    monkeypatch.setattr(purge, "CALLS_MAX", 6)
    written(engine, leases.take_lease, LEASE)
    with engine.execution_options(holdfast_writes=True).begin() as connection:
        ids = [{"transaction_id": ended(n).id} for n in range(1, 6)]
        connection.execute(insert(tables.leftover_calls), ids)
    for number, count in ((1, 1), (2, 2), (3, 6), (5, 1)):
        written(engine, calls.add_calls, tuple(call(ended(number), n) for n in range(count)))
    assert chunks(engine) == [7, 1, 0, 0]
    assert leftovers(engine) == 0


def chunks(engine: Engine) -> list[int]:
    """How many calls there are after each chunk."""
    there: list[int] = []
    while written(engine, purge.delete_leftover_calls, LEASE) == [True]:
        there.append(counts(engine)[3])
    return [*there, counts(engine)[3]]


def leftovers(engine: Engine) -> int:
    with engine.connect() as connection:
        return connection.execute(select(func.count()).select_from(tables.leftover_calls)).scalar_one()
