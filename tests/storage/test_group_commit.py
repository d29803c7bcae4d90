"""The journal: one commit for many, each caller its own outcome, and no success that is not durable."""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

import pytest
from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.exc import OperationalError

from app.storage import calls, errors, queries, transactions
from app.storage.engines import make_engine, normal_url
from app.storage.errors import ConcurrentWriteError, DatabaseUnavailableError, DuplicateKeyError, JournalClosedError
from app.storage.group_commit import RETRIES_MAX, Journal
from app.storage.tables import metadata
from holdfast.json_text import text_of
from tests.harness.database_server import DatabaseServer
from tests.harness.databases import on_servers
from tests.harness.transactions import CAR, call, found, recorded, transaction


class Held:
    """A write that holds up the writer until it is let go, so that a batch gathers behind it."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self._go = threading.Event()

    def write(self, _connection: Connection, items: Sequence[Any]) -> Sequence[Any]:
        self.begun.set()
        assert self._go.wait(timeout=30)
        return items

    def let_go(self) -> None:
        self._go.set()


async def outcomes_of_one_batch(journal: Journal, *writes: tuple[Any, Any]) -> list[Any]:
    """The outcomes of writes that all wait at the same moment."""
    held = Held()
    first = asyncio.create_task(journal.write(held.write, None))
    await asyncio.to_thread(held.begun.wait, 30)
    tasks = [asyncio.create_task(journal.write(function, item)) for function, item in writes]
    await asyncio.sleep(0)
    held.let_go()
    await first
    return await asyncio.gather(*tasks, return_exceptions=True)


@contextmanager
def commits_of(journal: Journal) -> Iterator[list[int]]:
    counted: list[int] = []

    def count(_connection: Connection) -> None:
        counted.append(1)

    event.listen(journal.engine, "commit", count)
    yield counted
    event.remove(journal.engine, "commit", count)


@contextmanager
def failing_commits(journal: Journal, times: int, error: Exception) -> Iterator[list[int]]:
    """Have so many commits fail with `error`, as far as the journal is told; how often it was, so far."""
    failed: list[int] = []

    def fail(_connection: Connection) -> None:
        if len(failed) < times:
            failed.append(1)
            raise OperationalError("COMMIT", None, error)

    event.listen(journal.engine, "commit", fail)
    yield failed
    event.remove(journal.engine, "commit", fail)


ENOUGH: Final = 50
"""So many failures are more than anybody may repeat; who repeats without end succeeds in the end, and is found."""


def new(number: int) -> tuple[Any, transactions.NewRecord]:
    return transactions.record, transactions.NewRecord(transaction=transaction(number), idempotency_key=f"key-{number}")


def refuse_odd(_connection: Connection, items: Sequence[int]) -> Sequence[int]:
    if any(item % 2 for item in items):
        raise ValueError("odd")
    return [item * 10 for item in items]


async def test_a_hundred_writers_share_one_commit(journal: Journal, engine: Engine) -> None:
    with commits_of(journal) as commits:
        outcomes = await outcomes_of_one_batch(journal, *map(new, range(100)))
    assert [outcome.transaction_id for outcome in outcomes] == [transaction(n).id for n in range(100)]
    assert len(commits) == 2  # the one that held the others up, and all of them together
    assert found(engine, queries.count_unfinished) == 100


async def test_a_hundred_writers_that_come_as_they_like_share_few(journal: Journal, engine: Engine) -> None:
    with commits_of(journal) as commits:
        await asyncio.gather(*(journal.write(*new(n)) for n in range(100)))
    assert len(commits) <= 20
    assert found(engine, queries.count_unfinished) == 100


async def test_a_batch_is_bounded_by_bytes_too(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is large is written in several batches; a write that is larger than a batch is one by itself."""
    monkeypatch.setattr("app.storage.group_commit.BATCH_BYTES_MAX", 10_000)
    batches: list[int] = []

    def record(connection: Connection, items: Sequence[transactions.NewRecord]) -> list[Any]:
        batches.append(len(items))
        return list(transactions.record(connection, items))

    def new(number: int, chars: int) -> transactions.NewRecord:
        payload = text_of("x" * chars)
        return transactions.NewRecord(transaction=transaction(number, replace(CAR, payload=payload)))

    sizes = (6_000, 6_000, 6_000, 50_000, 6_000, 10, 10)
    answers = await outcomes_of_one_batch(journal, *((record, new(n, size)) for n, size in enumerate(sizes)))
    assert all(answer.created for answer in answers)
    assert batches == [2, 2, 3]


async def test_a_save_counts_its_results(journal: Journal) -> None:
    held = replace(CAR, payload=text_of("p" * 100), result=text_of("r" * 40))
    after = transaction(1, held, replace(held, name="other"))
    assert transactions.Save(before=after, after=after).size_bytes == 2 * 42
    assert transactions.NewRecord(transaction=after).size_bytes == 2 * (42 + 102)


async def test_more_than_a_batch_is_written_in_several(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.storage.group_commit.BATCH_MAX", 10)
    with commits_of(journal) as commits:
        outcomes = await outcomes_of_one_batch(journal, *map(new, range(25)))
    assert (len(outcomes), len(commits)) == (25, 4)


async def test_what_returned_is_durable(journal: Journal, engine: Engine) -> None:
    for number in range(20):
        await journal.write(*new(number))
        assert found(engine, transactions.find, transaction(number).id) == transaction(number)
        assert await journal.read(transactions.find, transaction(number).id) == transaction(number)


async def test_a_write_that_fails_fails_its_own_caller_only(journal: Journal, engine: Engine) -> None:
    writes = [(refuse_odd, 2), new(1), (refuse_odd, 3), (refuse_odd, 4), new(2)]
    good, one, bad, other, two = await outcomes_of_one_batch(journal, *writes)
    assert (good, str(bad), other) == (20, "odd", 40)
    assert (one.created, two.created) == (True, True)
    assert found(engine, queries.count_unfinished) == 2


async def test_a_stale_save_fails_its_own_caller_only(journal: Journal, engine: Engine) -> None:
    recorded(engine, *map(transaction, range(5)))
    await journal.write(
        transactions.claim,
        transactions.Claim(due_by=999.0, lease_until=1000.0, transaction_id=transaction(2).id),
    )
    saves = [
        (transactions.save, transactions.Save(before=each, after=each, calls=(call(each, 1),)))
        for each in map(transaction, range(5))
    ]
    outcomes = await outcomes_of_one_batch(journal, *saves)
    assert isinstance(outcomes.pop(2), errors.StaleError)
    assert [outcome.version for outcome in outcomes] == [2, 2, 2, 2]
    assert [len(found(engine, calls.list_calls, transaction(n).id, 9, 0)) for n in range(5)] == [1, 1, 0, 1, 1]


async def test_what_is_stale_costs_the_others_no_commit_of_their_own(journal: Journal, engine: Engine) -> None:
    """Else a replica that loses many transactions at once is too slow to keep the others, and loses them too."""
    recorded(engine, *map(transaction, range(60)))
    for number in range(0, 60, 3):
        claim = transactions.Claim(due_by=999.0, lease_until=1000.0, transaction_id=transaction(number).id)
        await journal.write(transactions.claim, claim)
    saves = [
        (transactions.save, transactions.Save(before=each, after=each, calls=(call(each, 1),)))
        for each in map(transaction, range(60))
    ]
    with commits_of(journal) as commits:
        outcomes = await outcomes_of_one_batch(journal, new(100), *saves, new(101))
    assert len(commits) == 2  # the one that held the others up, and all of them together
    assert (outcomes[0].created, outcomes[-1].created) == (True, True)
    for number, outcome in enumerate(outcomes[1:-1]):
        is_stale = number % 3 == 0
        assert isinstance(outcome, errors.StaleError) if is_stale else outcome.version == 2
        assert len(found(engine, calls.list_calls, transaction(number).id, 9, 0)) == (0 if is_stale else 1)


async def test_nor_does_a_single_one(journal: Journal, engine: Engine) -> None:
    recorded(engine, transaction(1))
    claim = transactions.Claim(due_by=999.0, lease_until=1000.0, transaction_id=transaction(1).id)
    await journal.write(transactions.claim, claim)
    stale = (transactions.save, transactions.Save(before=transaction(1), after=transaction(1)))
    with commits_of(journal) as commits:
        *begun, outcome = await outcomes_of_one_batch(journal, *(new(n) for n in range(100, 200)), stale)
    assert len(commits) == 2  # the one that held the others up, and all of them together
    assert all(each.created for each in begun)
    assert isinstance(outcome, errors.StaleError)


@pytest.mark.parametrize("position", [0, 99, 199])
async def test_a_write_that_fails_costs_the_others_few_commits(journal: Journal, engine: Engine, position: int) -> None:
    writes: list[tuple[Any, Any]] = [new(number) for number in range(200)]
    writes[position] = (refuse_odd, 1)
    with commits_of(journal) as commits:
        outcomes = await outcomes_of_one_batch(journal, *writes)
    assert str(outcomes.pop(position)) == "odd"
    assert all(each.created for each in outcomes)
    assert len(commits) <= 9


async def test_of_two_saves_of_one_transaction_the_stale_one_is_stale(journal: Journal, engine: Engine) -> None:
    """A run that was overtaken, and the one that overtook it, may be in one process."""
    recorded(engine, transaction(1), transaction(2))
    claim = transactions.Claim(due_by=999.0, lease_until=1000.0, transaction_id=transaction(1).id)
    (taken,) = await journal.read(transactions.find_claimed, await journal.write(transactions.claim, claim))
    claimed = taken.transaction
    saves = [
        (transactions.save, transactions.Save(before=each, after=each))
        for each in (transaction(1), claimed, transaction(2))
    ]
    stale, fresh, other = await outcomes_of_one_batch(journal, *saves)
    assert isinstance(stale, errors.StaleError)
    assert (fresh.version, other.version) == (claimed.version + 1, 2)


async def test_of_two_saves_of_the_same_version_one_is_stale(journal: Journal, engine: Engine) -> None:
    recorded(engine, transaction(1), transaction(2))
    saves = [
        (transactions.save, transactions.Save(before=each, after=each))
        for each in (transaction(1), transaction(1), transaction(2))
    ]
    outcomes = await outcomes_of_one_batch(journal, *saves)
    assert [isinstance(outcome, errors.StaleError) for outcome in outcomes] == [False, True, False]


async def test_an_answer_too_few_is_an_error_and_writes_nothing(journal: Journal, engine: Engine) -> None:
    def forgetful(connection: Connection, items: Sequence[transactions.NewRecord]) -> Sequence[object]:
        return transactions.record(connection, items)[1:]

    with pytest.raises(AssertionError, match="answer each item"):
        await journal.write(forgetful, new(1)[1])
    assert found(engine, queries.count_unfinished) == 0


async def test_a_commit_that_fails_is_told_to_all_and_never_a_success(journal: Journal, engine: Engine) -> None:
    held = Held()
    first = asyncio.create_task(journal.write(held.write, None))
    await asyncio.to_thread(held.begun.wait, 30)
    writes = asyncio.gather(*(journal.write(*new(n)) for n in range(3)), return_exceptions=True)
    await asyncio.sleep(0)
    with failing_commits(journal, ENOUGH, Exception("the disk is full")) as failed:
        held.let_go()
        outcomes = await asyncio.gather(first, writes, return_exceptions=True)
    assert len(failed) == 2, "the one that held the others up, and all of them together"
    assert isinstance(outcomes[0], DatabaseUnavailableError)
    assert not isinstance(outcomes[1], BaseException)
    assert [type(outcome) for outcome in outcomes[1]] == [DatabaseUnavailableError] * 3
    assert found(engine, queries.count_unfinished) == 0
    assert (await journal.write(*new(1))).created


@pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)  # MySQL's commits find out nothing
async def test_what_only_the_commit_finds_out_is_told_to_all(journal: Journal, engine: Engine) -> None:
    with engine.execution_options(holdfast_writes=True).begin() as connection:
        connection.execute(text("CREATE TABLE parent (id INTEGER PRIMARY KEY)"))
        references = "REFERENCES parent (id) DEFERRABLE INITIALLY DEFERRED"
        connection.execute(text(f"CREATE TABLE late (id INTEGER {references})"))

    def orphan(connection: Connection, items: Sequence[int]) -> Sequence[int]:
        connection.execute(text("INSERT INTO late VALUES (1)"))
        return items

    for number in range(3):
        outcomes = await outcomes_of_one_batch(journal, new(number), (orphan, 1), new(number + 10))
        assert [type(outcome) for outcome in outcomes] == [DuplicateKeyError] * 3
    assert found(engine, queries.count_unfinished) == 0
    assert (await journal.write(*new(1))).created


async def test_a_thread_without_a_loop_reads_too(database_url: str, engine: Engine) -> None:
    journal = Journal(database_url)
    await journal.write(*new(1))
    keys = ("key-1", "key-2")
    read = [await asyncio.to_thread(journal.read_in_this_thread, transactions.is_key_taken, key) for key in keys]
    await journal.close()
    assert read == [True, False]
    with pytest.raises(JournalClosedError):
        journal.read_in_this_thread(transactions.is_key_taken, "key-1")


async def test_close_finishes_what_waits_and_takes_no_more(engine: Engine, database_url: str) -> None:
    journal = Journal(database_url)
    held = Held()
    tasks = [asyncio.create_task(journal.write(held.write, None))]
    await asyncio.to_thread(held.begun.wait, 30)
    tasks += [asyncio.create_task(journal.write(*new(n))) for n in range(5)]
    await asyncio.sleep(0)
    closing = asyncio.create_task(journal.close())
    await asyncio.sleep(0)
    held.let_go()
    await closing
    assert [outcome.created for outcome in (await asyncio.gather(*tasks))[1:]] == [True] * 5
    assert found(engine, queries.count_unfinished) == 5
    with pytest.raises(JournalClosedError):
        await journal.write(*new(9))
    with pytest.raises(JournalClosedError):
        await journal.read(queries.count_hung)
    await journal.close()


async def test_a_caller_that_went_away_disturbs_nobody(journal: Journal, engine: Engine) -> None:
    held = Held()
    first = asyncio.create_task(journal.write(held.write, None))
    await asyncio.to_thread(held.begun.wait, 30)
    gone, stays = (asyncio.create_task(journal.write(*new(n))) for n in range(2))
    await asyncio.sleep(0)
    gone.cancel()
    held.let_go()
    await first
    assert (await stays).created
    assert gone.cancelled()
    assert found(engine, queries.count_unfinished) == 2


def test_sqlite_is_durable_and_has_one_writer(sqlite_url: str) -> None:
    engine = make_engine(sqlite_url)
    with engine.connect() as connection:
        pragmas = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")]
    with engine.execution_options(holdfast_writes=True).begin(), engine.connect() as other:
        assert other.exec_driver_sql("PRAGMA busy_timeout = 1").scalar() == 1
        with pytest.raises(OperationalError, match="locked"):
            other.exec_driver_sql("CREATE TABLE late (id INTEGER)")
    engine.dispose()
    assert pragmas == ["wal", 2]


# --- the database goes away -----------------------------------------------------------------------------------------


def with_tables(url: str) -> Engine:
    engine = make_engine(url)
    with engine.begin() as connection:
        metadata.create_all(connection)
    return engine


async def test_when_the_database_is_out_of_reach_no_other_write_is_tried(journal: Journal, engine: Engine) -> None:
    """Or each write of the batch would wait for its own connection attempt."""
    tried: list[Sequence[int]] = []

    def unreachable(_connection: Connection, items: Sequence[int]) -> Sequence[int]:
        tried.append(items)
        raise OperationalError("INSERT", None, Exception("no route to host"))

    outcomes = await outcomes_of_one_batch(journal, new(1), *((unreachable, n) for n in (1, 2)), new(2))
    assert outcomes[0].created
    assert [type(outcome) for outcome in outcomes[1:]] == [DatabaseUnavailableError] * 3
    assert tried == [[1, 2], [1]], "all together, and then the first by itself"
    assert found(engine, queries.count_unfinished) == 1
    assert (await journal.write(*new(3))).created


@on_servers
async def test_after_a_crash_of_the_database_writes_fail_and_then_work_again(
    database_url: str, database_server: DatabaseServer
) -> None:
    engine = with_tables(database_url)
    journal = Journal(database_url)
    try:
        await journal.write(*new(0))
        await asyncio.to_thread(database_server.crash)
        outcomes = await asyncio.gather(*(journal.write(*new(n)) for n in range(1, 30)), return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {DatabaseUnavailableError}
        with pytest.raises(DatabaseUnavailableError):
            await journal.read(queries.count_unfinished)
        database_server.start()  # not in a thread: the server ends with the thread that started it
        outcomes = await asyncio.gather(*(journal.write(*new(n)) for n in range(1, 30)))
        assert all(outcome.created for outcome in outcomes)
        assert await journal.read(queries.count_unfinished) == 30
    finally:
        await journal.close()
        engine.dispose()


@on_servers
async def test_a_crash_of_the_database_between_write_and_commit_is_told_to_all(
    database_url: str, database_server: DatabaseServer
) -> None:
    engine = with_tables(database_url)
    journal = Journal(database_url)

    def crash(_connection: Connection, items: Sequence[Any]) -> Sequence[Any]:
        database_server.crash()
        return items

    try:
        outcomes = await outcomes_of_one_batch(journal, new(1), new(2), (crash, None))
        assert all(isinstance(outcome, DatabaseUnavailableError) for outcome in outcomes)
        database_server.start()  # not in a thread: the server ends with the thread that started it
        assert await journal.read(queries.count_unfinished) == 0
        assert (await journal.write(*new(1))).created
    finally:
        await journal.close()
        engine.dispose()


class Panic(BaseException):
    """What an extension raises when it breaks: no Exception."""


def panic(_connection: Connection, items: Sequence[Any]) -> Sequence[Any]:
    raise Panic(str(items))


async def test_a_panic_fails_its_batch_and_the_writer_lives_on(journal: Journal, engine: Engine) -> None:
    outcomes = await outcomes_of_one_batch(journal, (panic, 1), new(1))
    assert [type(outcome) for outcome in outcomes] == [RuntimeError, RuntimeError]
    function, item = new(2)
    assert (await journal.write(function, item)).created
    assert found(engine, transactions.find, transaction(2).id) is not None


@on_servers
async def test_a_row_that_somebody_else_holds_does_not_hold_up_the_others(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.storage.engines.LOCK_WAIT_MAX_S", 1)
    engine = with_tables(database_url)
    frozen = transactions.NewRecord(transaction=transaction(1), idempotency_key="k", request_hash="h")
    same_key = transactions.NewRecord(transaction=transaction(2), idempotency_key="k", request_hash="h")
    journal = Journal(database_url)
    try:
        with engine.connect() as stranger:  # stopped after its INSERT, before its COMMIT
            transactions.record(stranger, [frozen])
            blocked, other = await outcomes_of_one_batch(journal, (transactions.record, same_key), new(3))
            stranger.rollback()
        assert isinstance(blocked, DatabaseUnavailableError)
        assert other.created
        again = await journal.write(transactions.record, same_key)
        assert isinstance(again, transactions.Recorded)
        assert again.created
    finally:
        await journal.close()
        engine.dispose()


LOCKED: Final = {
    "postgresql": "LOCK TABLE transactions IN SHARE MODE",
    "mysql": "LOCK TABLES transactions READ",
}


@on_servers
async def test_a_table_that_somebody_locks_fails_a_batch_after_a_few_waits(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any migration does that. Or each write would wait by itself, and 256 of them for a quarter of an hour."""
    monkeypatch.setattr("app.storage.engines.LOCK_WAIT_MAX_S", 1)
    engine = with_tables(database_url)
    journal = Journal(database_url)
    tried: list[int] = []

    def record(connection: Connection, items: Sequence[Any]) -> Sequence[Any]:
        tried.append(len(items))
        return transactions.record(connection, items)

    try:
        with engine.connect() as stranger:
            stranger.execute(text(LOCKED[stranger.dialect.name]))
            writes = [(record, new(number)[1]) for number in range(9)]
            outcomes = await outcomes_of_one_batch(journal, *writes, (refuse_odd, 2))
            stranger.invalidate()
        assert [type(outcome) for outcome in outcomes] == [DatabaseUnavailableError] * 10
        assert tried == [9, 1, 1]
        assert (await journal.write(*new(1))).created
    finally:
        await journal.close()
        engine.dispose()


# --- what the database undid in favour of others ------------------------------------------------------------------


@on_servers
async def test_a_deadlock_is_nobodys_error(database_url: str) -> None:
    """Each of two journals holds a row and wants the other's: the one that the database undoes does it again."""
    engine = with_tables(database_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE counters (id INTEGER PRIMARY KEY, value INTEGER)"))
        connection.execute(text("INSERT INTO counters VALUES (1, 0), (2, 0)"))
    both_hold_one = threading.Barrier(2)

    def count(first: int) -> Any:
        tries: list[int] = []

        def write(connection: Connection, items: Sequence[None]) -> Sequence[int]:
            tries.append(1)
            for id_ in (first, 3 - first):
                connection.execute(text(f"UPDATE counters SET value = value + 1 WHERE id = {id_}"))
                if len(tries) == 1 and id_ == first:
                    both_hold_one.wait(timeout=30)
            return [len(tries)] * len(items)

        return write

    journals = [Journal(database_url) for _ in range(2)]
    try:
        tries = await asyncio.gather(*(each.write(count(1 + n), None) for n, each in enumerate(journals)))
        assert max(tries) > 1  # both, when both noticed it at the same moment
        with engine.connect() as connection:
            assert connection.execute(text("SELECT value FROM counters")).scalars().all() == [2, 2]
    finally:
        for journal in journals:
            await journal.close()
        engine.dispose()


@on_servers
async def test_claims_are_disjoint_where_nothing_is_locked(database_url: str) -> None:
    """As on TiDB, which reads FOR UPDATE SKIP LOCKED and locks nothing: the version alone stops the second."""
    engine = with_tables(database_url)
    recorded(engine, *map(transaction, range(8)))
    both_have_read = threading.Barrier(2)
    tried = threading.local()

    def without_locks(_c: Connection, _cursor: Any, statement: str, parameters: Any, *_: Any) -> tuple[str, Any]:
        return statement.replace("FOR UPDATE SKIP LOCKED", ""), parameters

    def wait_for_the_other(_c: Connection, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("SELECT octet_length(") and not hasattr(tried, "before"):
            tried.before = True
            both_have_read.wait(timeout=30)

    journals = [Journal(database_url) for _ in range(2)]
    try:
        for journal in journals:
            event.listen(journal.engine, "before_cursor_execute", without_locks, retval=True)
            event.listen(journal.engine, "after_cursor_execute", wait_for_the_other)
        wanted = transactions.Claim(due_by=999.0, lease_until=2000.0, limit=5)
        claimed = await asyncio.gather(*(each.write(transactions.claim, wanted) for each in journals))
        assert sorted(map(len, claimed)) == [3, 5]
        assert {taken.id for each in claimed for taken in each} == {transaction(n).id for n in range(8)}
    finally:
        for journal in journals:
            await journal.close()
        engine.dispose()


class Undone(Exception):
    def __init__(self, sqlstate: str = "40001") -> None:
        super().__init__(sqlstate)
        self.sqlstate = sqlstate


@pytest.mark.parametrize("sqlstate", ["40001", "40P01"], ids=["serialization failure", "deadlock"])
async def test_a_commit_that_was_undone_for_certain_is_done_again(
    journal: Journal, engine: Engine, sqlstate: str
) -> None:
    with failing_commits(journal, 3, Undone(sqlstate)) as failed:
        outcomes = await asyncio.gather(*(journal.write(*new(n)) for n in range(5)))
    assert all(outcome.created for outcome in outcomes)
    assert len(failed) == 3
    assert found(engine, queries.count_unfinished) == 5


async def test_what_is_always_undone_is_an_error_in_the_end(journal: Journal, engine: Engine) -> None:
    with failing_commits(journal, ENOUGH, Undone()) as failed, pytest.raises(DatabaseUnavailableError):
        await journal.write(*new(1))
    assert len(failed) == RETRIES_MAX + 1
    assert found(engine, queries.count_unfinished) == 0


# --- what may have been committed or not ---------------------------------------------------------------------------


class LostReplies:
    """Commits are durable, but the journal is told that they failed; those up to number `after`, it is told of.

    With `cut_off` the connection is gone as well, as the driver finds.
    """

    def __init__(self, journal: Journal, *, after: int, cut_off: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        self.commits = 0
        self._after = after
        self._cut_off = cut_off
        self._dialect = journal.engine.dialect
        self._commit = self._dialect.do_commit
        monkeypatch.setattr(self._dialect, "do_commit", self._do_commit)

    def _do_commit(self, connection: Any) -> None:
        self._commit(connection)
        self.commits += 1
        if self._after < self.commits <= self._after + ENOUGH:
            if self._cut_off:
                connection.dbapi_connection.close()
            assert self._dialect.dbapi is not None
            raise self._dialect.dbapi.OperationalError(2013 if self._cut_off else 1180, "MySQL's numbers for it")


@pytest.mark.parametrize("cut_off", [False, True])
async def test_a_commit_of_which_nobody_knows_is_not_done_again(
    journal: Journal, engine: Engine, cut_off: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever repeats it writes everything twice."""
    make_counted(engine)
    replies = LostReplies(journal, after=1, cut_off=cut_off, monkeypatch=monkeypatch)
    outcomes = await outcomes_of_one_batch(journal, (count, 1), new(1), (count, 2), (count, 3))
    assert [type(outcome) for outcome in outcomes] == [DatabaseUnavailableError] * 4
    assert replies.commits == 2, "the one that held the others up, and all of them together"
    assert counted(engine) == [1, 2, 3]
    monkeypatch.undo()
    assert await journal.write(count, 4) == 4


@pytest.mark.parametrize("cut_off", [False, True])
async def test_nor_is_one_apart_from_the_others(
    journal: Journal, engine: Engine, cut_off: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_counted(engine)
    replies = LostReplies(journal, after=0, cut_off=cut_off, monkeypatch=monkeypatch)
    with pytest.raises(DatabaseUnavailableError):
        await journal.write_apart(count, 1)
    assert (replies.commits, counted(engine)) == (1, [1])


async def test_one_apart_is_done_again_when_a_concurrent_write_won(journal: Journal, engine: Engine) -> None:
    make_counted(engine)
    attempts: list[int] = []

    def conflicted(connection: Connection, items: Sequence[int]) -> Sequence[int]:
        attempts.append(len(attempts))
        count(connection, items)
        if len(attempts) <= RETRIES_MAX:
            raise ConcurrentWriteError
        return items

    assert await journal.write_apart(conflicted, 7) == 7
    assert (len(attempts), counted(engine)) == (RETRIES_MAX + 1, [7])


def make_counted(engine: Engine) -> None:
    with engine.execution_options(holdfast_writes=True).begin() as connection:
        connection.execute(text("CREATE TABLE counted (value INTEGER)"))


def count(connection: Connection, items: Sequence[int]) -> Sequence[int]:
    """A write that leaves a row each time that it is carried out."""
    connection.execute(text("INSERT INTO counted VALUES (:value)"), [{"value": item} for item in items])
    return items


def counted(engine: Engine) -> list[int]:
    with engine.connect() as connection:
        return list(connection.execute(text("SELECT value FROM counted ORDER BY value")).scalars())


def test_mysql_is_told_the_limits_and_the_isolation_that_it_has(mariadb_url: str) -> None:
    said = {}
    for patient in (False, True):
        engine = make_engine(mariadb_url, patient=patient)
        with engine.connect() as connection:
            connection.exec_driver_sql("SELECT 1")
            rows = connection.exec_driver_sql("SHOW SESSION VARIABLES")
            said[patient] = {name: value for name, value in rows if name in MYSQL_SAID}
        engine.dispose()
    assert said[False] == MYSQL_SAID
    assert said[True] == MYSQL_SAID | {
        "innodb_lock_wait_timeout": "50",
        "lock_wait_timeout": "86400",
        "max_statement_time": "0.000000",
        "idle_transaction_timeout": "0",
        "wsrep_sync_wait": "0",
    }


MYSQL_SAID = {
    "tx_isolation": "READ-COMMITTED",
    "sql_mode": "STRICT_ALL_TABLES",
    "character_set_connection": "utf8mb4",
    "innodb_lock_wait_timeout": "3",
    "lock_wait_timeout": "3",
    "max_statement_time": "10.000000",
    "idle_transaction_timeout": "10",
    "wsrep_sync_wait": "7",
}


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("postgres://h/d", "postgresql+psycopg://h/d"),
        ("postgresql+asyncpg://u:p@h:1/d?sslmode=require", "postgresql+psycopg://u:p@h:1/d?sslmode=require"),
        ("mysql://u:p%40@h/d", "mysql+pymysql://u:p%40@h/d"),
        ("mysql+mysqldb://h/d?charset=latin1", "mysql+pymysql://h/d?charset=latin1"),
        ("mariadb://h/d", "mysql+pymysql://h/d"),
        ("mariadb+asyncmy://h/d", "mysql+pymysql://h/d"),
        ("sqlite+aiosqlite:///file.db", "sqlite:///file.db"),
    ],
)
def test_urls_that_people_have_work_with_the_driver_that_is_there(given: str, used: str) -> None:
    assert normal_url(given).render_as_string(hide_password=False) == used


@pytest.mark.parametrize("url", ["oracle://h/d", "mongodb://h/d"])
def test_other_databases_are_refused_by_name(url: str) -> None:
    with pytest.raises(ValueError, match=r"is not supported; use sqlite:///…, postgresql://… or mysql://…"):
        normal_url(url)


def test_mysql_s_character_set_is_ours_whatever_the_url_says(mariadb_url: str) -> None:
    engine = make_engine(f"{mariadb_url}&charset=latin1")
    with engine.connect() as connection:
        assert connection.execute(text("SELECT '\U0001f4ba', @@character_set_client")).one() == (
            "\U0001f4ba",
            "utf8mb4",
        )
    engine.dispose()
