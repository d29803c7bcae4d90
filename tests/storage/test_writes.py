"""Record, save, claim and the registry: what each changes, and what it leaves alone when somebody else was quicker."""

import json
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Engine, event, func, insert, select
from sqlalchemy.exc import IntegrityError

from app.protocol.values import Branch, BranchPhase, HungReason, Transaction
from app.storage import calls, errors, participants, queries, tables, transactions
from app.storage.group_commit import Journal
from app.storage.mapping import branch_rows, transaction_of
from app.storage.participants import RegisteredParticipant
from holdfast.json_text import text_of
from holdfast.wire import Decision
from tests.harness.databases import on_servers
from tests.harness.transactions import CAR, call, found, recorded, transaction, written

URLS = replace(CAR, name="urls", participant=None)
HUNG = replace(CAR, hung_reason=HungReason.CONFIRM_UNANSWERED)


def count(engine: Engine, table: Any) -> int:
    with engine.connect() as connection:
        return connection.execute(select(func.count()).select_from(table)).scalar_one()


def keyed(number: int, key: str, request_hash: str = "a") -> transactions.NewRecord:
    return transactions.NewRecord(transaction=transaction(number), idempotency_key=key, request_hash=request_hash)


# --- record ------------------------------------------------------------------------------------------------------


def test_a_batch_is_recorded_with_its_branches(engine: Engine) -> None:
    twice = transaction(1, CAR, replace(CAR, name="other"), URLS)
    answers = written(
        engine,
        transactions.record,
        *(transactions.NewRecord(transaction=each) for each in (twice, transaction(2))),
    )
    assert [(answer.transaction_id, answer.created) for answer in answers] == [
        (twice.id, True),
        (transaction(2).id, True),
    ]
    assert (count(engine, tables.transactions), count(engine, tables.branches)) == (2, 4)
    assert found(engine, transactions.find, twice.id) == twice


def test_a_key_twice_in_one_batch_is_recorded_once(engine: Engine) -> None:
    answers = written(engine, transactions.record, keyed(1, "k", "a"), keyed(2, "k", "b"), keyed(3, "other"))
    assert [(answer.transaction_id, answer.request_hash, answer.created) for answer in answers] == [
        (transaction(1).id, "a", True),
        (transaction(1).id, "a", False),
        (transaction(3).id, "a", True),
    ]
    assert count(engine, tables.transactions) == 2


def test_a_key_that_is_there_answers_what_has_it_and_changes_nothing(engine: Engine) -> None:
    written(engine, transactions.record, keyed(1, "k"))
    (answer,) = written(engine, transactions.record, keyed(2, "k", "b"))
    assert (answer.transaction_id, answer.request_hash, answer.created) == (transaction(1).id, "a", False)
    assert count(engine, tables.transactions) == 1
    assert found(engine, transactions.find, transaction(2).id) is None


def test_keys_that_differ_a_little_are_different_keys(engine: Engine) -> None:
    keys = ["key", "Key", "key ", "keY", " key"]
    answers = written(engine, transactions.record, *(keyed(n, key, "a") for n, key in enumerate(keys)))
    again = written(engine, transactions.record, *(keyed(n + 10, key, "a") for n, key in enumerate(keys)))
    assert all(answer.created for answer in answers)
    assert [(answer.transaction_id, answer.created) for answer in again] == [
        (transaction(n).id, False) for n in range(len(keys))
    ]


def test_a_key_raced_for_by_two_connections_is_recorded_once(engine: Engine) -> None:
    with engine.execution_options(holdfast_writes=True).connect() as first, first.begin() as begun:
        (mine,) = transactions.record(first, [keyed(1, "k")])
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(written, engine, transactions.record, keyed(2, "k"))
            begun.commit()  # however far the other has got: it sees the key, or runs into the unique index
            outcome = outcome_of(other)
    assert mine == transactions.Recorded(transaction_id=transaction(1).id, request_hash="a", created=True)
    if not isinstance(outcome, IntegrityError):
        assert (outcome[0].transaction_id, outcome[0].created) == (transaction(1).id, False)
    assert count(engine, tables.transactions) == 1
    with pytest.raises(IntegrityError):
        written(engine, insert_blindly, keyed(3, "k"))


def insert_blindly(connection: Any, items: Any) -> list[None]:
    """As if another connection had committed the key after this one looked."""
    rows = [transactions._new_row(item, branch_rows(item.transaction)) for item in items]
    return [connection.execute(insert(tables.transactions), rows).close()]


def outcome_of(future: Future[Any]) -> Any:
    error = future.exception(timeout=30)
    return error or future.result()


# --- save --------------------------------------------------------------------------------------------------------


def decided(before: Transaction) -> transactions.Save:
    after = replace(before, decision=Decision.CONFIRM, decided_at=5.0, wake_at=90.0)
    return transactions.Save(before=before, after=after, calls=(call(before, 1), call(before, 2)))


def test_a_save_writes_the_step_and_its_calls_and_bumps_the_version(engine: Engine) -> None:
    recorded(engine, transaction(1), transaction(2))
    answers = written(engine, transactions.save, decided(transaction(1)), decided(transaction(2)))
    assert [answer.version for answer in answers] == [2, 2]
    assert (
        found(engine, transactions.find, transaction(1).id)
        == answers[0]
        == replace(decided(transaction(1)).after, version=2)
    )
    listed = found(engine, calls.list_calls, transaction(2).id, 10, 0)
    assert [call for _, call in listed] == list(decided(transaction(2)).calls)


@pytest.mark.parametrize("other", [1, 3])
def test_a_stale_save_changes_nothing(engine: Engine, other: int) -> None:
    recorded(engine, transaction(1), transaction(2))
    written(engine, transactions.save, decided(transaction(1)))
    before = found(engine, queries.list_newest, queries.Filter(), 10, None)
    stale = replace(transaction(1), version=other, branches=(HUNG,))
    with pytest.raises(errors.StaleError):
        written(engine, transactions.save, decided(transaction(2)), decided(stale))
    assert found(engine, queries.list_newest, queries.Filter(), 10, None) == before
    assert count(engine, tables.calls) == 2
    assert count(engine, tables.hung_branches) == 0


def test_a_save_of_what_was_never_recorded_is_stale(engine: Engine) -> None:
    with pytest.raises(errors.StaleError):
        written(engine, transactions.save, decided(transaction(9)))


def hung_rows(engine: Engine) -> set[tuple[str, str | None, str]]:
    with engine.connect() as connection:
        columns = (tables.hung_branches.c.branch, tables.hung_branches.c.participant, tables.hung_branches.c.reason)
        return {(name, participant, reason) for name, participant, reason in connection.execute(select(*columns))}


def test_hung_branches_are_kept_in_step(engine: Engine) -> None:
    saved = transaction(1, CAR, URLS)
    recorded(engine, saved, transaction(2))
    steps: list[tuple[tuple[Branch, ...], set[tuple[str, str | None, str]]]] = [
        ((HUNG, URLS), {("car", "car", "confirm_unanswered")}),
        ((HUNG, URLS), {("car", "car", "confirm_unanswered")}),
        (
            (replace(HUNG, hung_reason=HungReason.CONFIRM_REFUSED), replace(URLS, hung_reason=HUNG.hung_reason)),
            {("car", "car", "confirm_refused"), ("urls", None, "confirm_unanswered")},
        ),
        ((CAR, URLS), set()),
    ]
    for branches, rows in steps:
        other = found(engine, transactions.find, transaction(2).id)
        saves = [
            transactions.Save(before=saved, after=replace(saved, branches=branches)),
            transactions.Save(before=other, after=other),
        ]
        saved, _ = written(engine, transactions.save, *saves)
        assert hung_rows(engine) == rows


# --- claim -------------------------------------------------------------------------------------------------------


def claim(due_by: float | None, limit: int = 100, id_: str | None = None) -> transactions.Claim:
    return transactions.Claim(due_by=due_by, lease_until=1000.0, limit=limit, transaction_id=id_)


def test_a_claim_takes_what_is_due_the_longest_first_and_leases_it(engine: Engine) -> None:
    finished = transaction(4, wake_at=None, decision=Decision.CANCEL, finished_at=5.0)
    recorded(engine, transaction(3), transaction(1), transaction(2), finished, transaction(5))
    (first,) = written(engine, transactions.claim, claim(63.0, limit=2))
    assert first == [transactions.Claimed(id=transaction(n).id, version=2) for n in (1, 2)]
    taken = [
        transactions.Taken(transaction=replace(transaction(n), version=2, wake_at=1000.0), commands=[]) for n in (1, 2)
    ]
    assert found(engine, transactions.find_claimed, first) == taken
    (second,) = written(engine, transactions.claim, claim(63.0))
    assert [each.id for each in second] == [transaction(3).id]
    assert written(engine, transactions.claim, claim(63.0)) == [[]]  # leased, finished, or not yet due
    assert found(engine, transactions.next_wake_at) == 65.0


def test_a_claim_is_bounded_by_bytes_and_takes_one_at_least(engine: Engine) -> None:
    large = replace(CAR, payload=text_of("x" * 4_000))
    recorded(engine, *(transaction(n, large) for n in range(6)))
    claimed = [
        written(engine, transactions.claim, replace(claim(100.0), bytes_max=bytes_max))[0]
        for bytes_max in (10_000, 1, 10_000, 10_000)
    ]
    wanted = [[0, 1], [2], [3, 4], [5]]
    assert [[each.id for each in some] for some in claimed] == [[transaction(n).id for n in some] for some in wanted]


def test_a_claim_reads_no_document(engine: Engine) -> None:
    recorded(engine, *(transaction(n, replace(CAR, payload=text_of("x" * 4_000))) for n in range(3)))
    statements: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    assert len(written(engine, transactions.claim, claim(100.0))[0]) == 3
    for statement in statements:
        assert "branches" not in statement
        assert "progress" not in statement.replace("(transactions.progress)", "").replace(
            "length(CAST(transactions.progress AS BLOB))", ""
        )


async def test_rows_are_parsed_when_no_database_transaction_is_open(
    engine: Engine, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parsing large documents can outlast the idle limit of a session, and would hold its locks."""
    id_ = transaction(1).id
    recorded(engine, transaction(1))
    in_use, at_parsing = [0], list[int]()
    event.listen(journal.engine, "checkout", lambda *_: in_use.append(in_use.pop() + 1))
    event.listen(journal.engine, "checkin", lambda *_: in_use.append(in_use.pop() - 1))

    def parsed(*row: Any) -> Transaction:
        at_parsing.append(in_use[0])
        return transaction_of(*row)

    monkeypatch.setattr(transactions, "transaction_of", parsed)
    assert await journal.read(transactions.find, id_) == transaction(1)
    assert await journal.read(transactions.find_all, [id_]) == [transaction(1)]
    assert (await journal.read(queries.list_newest, queries.Filter(), 10, None)).transactions == [transaction(1)]
    (claimed,) = await journal.write(transactions.claim, claim(100.0))
    (taken,) = await journal.read(transactions.find_claimed, [claimed])
    assert taken.transaction.id == id_
    assert at_parsing == [0] * 4


def test_what_somebody_else_has_taken_since_is_left_to_them(engine: Engine) -> None:
    recorded(engine, transaction(1), transaction(2))
    (claimed,) = written(engine, transactions.claim, claim(100.0))
    written(engine, transactions.claim, claim(None, id_=transaction(1).id))
    assert [each.transaction.id for each in found(engine, transactions.find_claimed, claimed)] == [transaction(2).id]
    assert found(engine, transactions.find_claimed, []) == []


# --- branches ------------------------------------------------------------------------------------------------------


def test_a_step_writes_no_branch_that_nothing_has_happened_to(engine: Engine) -> None:
    untouched = [Branch(name=name, participant="car", payload=text_of(name)) for name in ("b", "c")]
    before = transaction(1, CAR, *untouched)
    recorded(engine, before)
    assert progress_of(engine)["branches"] == [{"phase": "trying"}]
    written(engine, transactions.save, decided(before))
    assert len(progress_of(engine)["branches"]) == 1
    last = replace(before, version=2, branches=(CAR, untouched[0], replace(untouched[1], phase=BranchPhase.HELD)))
    written(engine, transactions.save, transactions.Save(before=before, after=last))
    assert [branch["phase"] for branch in progress_of(engine)["branches"]] == ["trying", "pending", "held"]
    assert found(engine, transactions.find, before.id) == replace(last, version=3)


def progress_of(engine: Engine) -> Any:
    with engine.connect() as connection:
        return json.loads(connection.execute(select(tables.transactions.c.progress)).scalar_one())


def test_a_transaction_that_is_purged_while_it_is_read_is_gone(engine: Engine) -> None:
    finished = transaction(1, wake_at=None, decision=Decision.CANCEL, finished_at=5.0)
    recorded(engine, finished, transaction(2))
    without_branches(engine)
    assert found(engine, transactions.find, finished.id) is None
    assert found(engine, transactions.find_all, [finished.id]) == []


def test_an_unfinished_transaction_without_its_branches_is_damaged_and_not_gone(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    recorded(engine, transaction(1))
    without_branches(engine)
    with pytest.raises(errors.UnreadableRowError):
        found(engine, transactions.find, transaction(1).id)
    assert found(engine, transactions.find_all, [transaction(1).id]) == []
    assert f"event=row_unreadable error={transaction(1).id}" in caplog.text


def without_branches(engine: Engine) -> None:
    with engine.execution_options(holdfast_writes=True).begin() as connection:
        connection.execute(tables.branches.delete())


def test_a_claim_stops_whoever_had_it(engine: Engine) -> None:
    recorded(engine, transaction(1))
    written(engine, transactions.claim, claim(100.0))
    with pytest.raises(errors.StaleError):
        written(engine, transactions.save, decided(transaction(1)))


def test_one_transaction_is_claimed_by_its_id_whoever_has_it(engine: Engine) -> None:
    recorded(engine, transaction(1), transaction(2, wake_at=None, decision=Decision.CANCEL, finished_at=5.0))
    wanted = [claim(None, id_=transaction(n).id) for n in (1, 2, 3)]
    taken, finished, unknown = written(engine, transactions.claim, *wanted)
    assert ([each.version for each in taken], finished, unknown) == ([2], [], [])


def test_claims_that_race_are_disjoint(engine: Engine) -> None:
    recorded(engine, *map(transaction, range(40)))
    barrier = threading.Barrier(2)

    def claim_all() -> list[str]:
        claimed: list[str] = []
        barrier.wait(timeout=30)
        while taken := written(engine, transactions.claim, claim(1000.0 - 1, limit=3))[0]:
            claimed += [each.id for each in taken]
        return claimed

    with ThreadPoolExecutor(2) as pool:
        one, two = (future.result(timeout=30) for future in [pool.submit(claim_all), pool.submit(claim_all)])
    assert sorted(one + two) == [transaction(n).id for n in range(40)]


@on_servers
def test_a_claim_does_not_wait_for_rows_that_another_is_claiming(engine: Engine) -> None:
    recorded(engine, *map(transaction, range(6)))
    with engine.begin() as first, engine.begin() as second:
        (one,) = transactions.claim(first, [claim(999.0, limit=3)])
        (two,) = transactions.claim(second, [claim(999.0, limit=100)])
        (none,) = transactions.claim(second, [claim(999.0, id_=transaction(0).id)])
    assert [each.id for each in one + two] == [transaction(n).id for n in range(6)]
    assert none == []


def test_released_leases_are_due_at_once(engine: Engine) -> None:
    finished = transaction(3, wake_at=None, decision=Decision.CANCEL, finished_at=5.0)
    recorded(engine, transaction(1), transaction(2, wake_at=4.0), finished)
    assert written(engine, transactions.release_leases, 10.0) == [1]
    assert [found(engine, transactions.find, transaction(n).id).wake_at for n in (1, 2, 3)] == [10.0, 4.0, None]
    assert len(written(engine, transactions.claim, claim(10.0))[0]) == 2


# --- the registry ------------------------------------------------------------------------------------------------


def participant(name: str, port: int = 1, **fields: Any) -> RegisteredParticipant:
    entry = RegisteredParticipant(
        name=name, base_url=f"http://localhost:{port}", call_timeout_s=None, concurrency_max=64
    )
    return replace(entry, **fields)


def registration(entry: RegisteredParticipant) -> participants.Registration:
    return participants.Registration(participant=entry)


def removal(name: str) -> participants.Removal:
    return participants.Removal(name=name)


def test_participants_are_put_replaced_and_listed_by_name(engine: Engine) -> None:
    entries = [participant("b"), participant("a", call_timeout_s=0.5), participant("b", 2, concurrency_max=1)]
    assert written(engine, participants.put_participants, *map(registration, entries)) == [True, True, False]
    assert found(engine, participants.list_participants) == [entries[1], entries[2]]


def test_a_participant_in_use_is_not_deleted(engine: Engine) -> None:
    written(engine, participants.put_participants, *map(registration, [participant("car"), participant("idle")]))
    recorded(engine, transaction(1))
    assert written(engine, participants.delete_participants, removal("car"), removal("idle"), removal("unknown")) == [
        False,
        True,
        None,
    ]
    ended = replace(transaction(1), decision=Decision.CANCEL, finished_at=9.0, wake_at=None)
    written(engine, transactions.save, transactions.Save(before=transaction(1), after=ended))
    assert written(engine, participants.delete_participants, removal("car"), removal("car")) == [True, None]
    assert found(engine, participants.list_participants) == []
