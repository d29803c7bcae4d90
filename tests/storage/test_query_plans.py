"""The plan of every statement that is made often uses the index that it is to use, and reads no table from end to end.

Some thousand rows, nearly all of them finished, as in a database that has been in use for long.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

import pytest
from sqlalchemy import Connection, Engine, event, insert, text

from app.protocol.messages import Asker
from app.protocol.values import Branch, BranchPhase, HungReason, Resolution, Settled, Transaction
from app.storage import (
    api_keys,
    audit,
    calls,
    hung_branches,
    leases,
    participants,
    purge,
    queries,
    tables,
    transactions,
)
from app.storage.participants import RegisteredParticipant, Registration
from app.storage.transactions import Claim
from holdfast.wire import Decision
from tests.harness.transactions import call, transaction, written

ROWS: Final = 12_000
ONE: Final = transaction(ROWS // 2 + 1)
BRANCHES: Final = (Branch(name="car", participant="car"), Branch(name="hotel", participant="hotel"))
AGAINST: Final = replace(
    BRANCHES[0],
    phase=BranchPhase.RESOLVED,
    resolution=Resolution(settled=Settled.CONFIRMED, by="ops", at=1.0, reason="shipped"),
)
HANGS: Final = replace(BRANCHES[0], hung_reason=HungReason.CONFIRM_UNANSWERED)


def some(number: int) -> Transaction:
    """One in a hundred hangs, one in fifty is under way, one in twenty was cancelled, and of these one in ten is mixed.

    The others are confirmed.
    """
    made = transaction(
        number,
        *BRANCHES,
        name="refund" if number % 10 == 1 else "order",
        reference=f"r-{number}",
        owner="shop" if number % 40 == 1 else "orders",
    )
    if number % 100 == 7:
        return replace(made, branches=(HANGS, BRANCHES[1]), decision=Decision.CONFIRM, hung_since=float(number))
    if number % 50 == 3:
        return replace(made, decision=Decision.CONFIRM)
    if number % 200 == 25:
        return replace(made, branches=(AGAINST, BRANCHES[1]), decision=Decision.CANCEL, finished_at=1.0, wake_at=None)
    decision = Decision.CANCEL if number % 20 == 5 else Decision.CONFIRM
    return replace(made, decision=decision, finished_at=number + 1.0, wake_at=None)


def entry(number: int) -> audit.AuditEntry:
    """Each column has few values, and one that is rare."""
    said = "rare" if number % 1_000 == 1 else f"v-{number % 5}"
    return audit.AuditEntry(at=float(number), asker=Asker(actor=said), action=said, target=said, outcome=said)


def rare(column: str) -> audit.AuditFilter:
    wanted: dict[str, Any] = {column: "rare"}
    return audit.AuditFilter(**wanted)


def key(number: int) -> dict[str, Any]:
    return {
        "id": f"{number:012}",
        "name": f"key {number}",
        "secret_hash": "x" * 64,
        "roles": "[]",
        "owner": "o",
        "endpoints": False,
        "created_at": 1.0,
    }


@pytest.fixture
def full(engine: Engine) -> Engine:
    """The database with its rows."""
    many = [some(number) for number in range(ROWS)]
    for first in range(0, ROWS, 1000):
        items = [
            transactions.NewRecord(transaction=each, idempotency_key=f"key-{each.id}", request_hash="x" * 64)
            for each in many[first : first + 1000]
        ]
        written(engine, transactions.record, *items)
        written(
            engine,
            calls.add_calls,
            *(tuple(call(each, n) for n in range(3)) for each in many[first : first + 1000]),
        )
    hung = [row for each in many for row in hung_branches._rows(each)]
    with engine.execution_options(holdfast_writes=True).begin() as connection:
        connection.execute(insert(tables.hung_branches), hung)
        connection.execute(insert(tables.leftover_calls), [{"transaction_id": ONE.id}])
        leases.take_lease(connection, [LEASE])
        connection.execute(insert(tables.api_keys), [key(number) for number in range(1_000)])
        audit.insert_entries(connection, [entry(number) for number in range(ROWS)])
        participants.put_participants(
            connection,
            [
                Registration(
                    participant=RegisteredParticipant(
                        name="car", base_url="http://car", call_timeout_s=None, concurrency_max=1
                    )
                )
            ],
        )
    if engine.dialect.name == "postgresql":  # it does this by itself, and SQLite never does
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))
    return engine


Statement = tuple[Callable[..., Any], tuple[Any, ...], set[str]]


def reading(function: Callable[..., Any], *args: Any, uses: str) -> Statement:
    return function, args, set(uses.split())


def writing(function: Callable[..., Any], item: Any, uses: str) -> Statement:
    return function, ([item],), set(uses.split())


def newest(uses: str, before_id: str | None = ONE.id, **wanted: Any) -> Statement:
    return reading(queries.list_newest, queries.Filter(**wanted), 10, before_id, uses=uses)


def claim(uses: str, **fields: Any) -> Statement:
    return writing(
        transactions.claim, Claim(due_by=ROWS + 100.0, lease_until=ROWS + 200.0, limit=50, **fields), uses=uses
    )


ID, BRANCH_ROWS, CALLS = "pk_transactions", "pk_branches", "ix_calls_transaction_id_id"
MEMBERS = "ix_branches_participant_transaction_id"
OLD: Final = [some(number).id for number in range(908, 920)]
LEASE: Final = leases.Lease(name="purge", holder="me", now=0.0, expires_at=60.0)
SAVED = replace(some(53), version=1)
STATEMENTS: Final[dict[str, Statement]] = {
    "find": reading(transactions.find, ONE.id, uses=f"{ID} {BRANCH_ROWS}"),
    "decision": reading(queries.find_decision, ONE.id, uses=ID),
    "decision of a branch": reading(queries.find_decision, ONE.id, "none", uses=f"{ID} {BRANCH_ROWS}"),
    "decision for sure": writing(queries.find_decisions_for_sure, (ONE.id, "none"), uses=f"{ID} {BRANCH_ROWS}"),
    "key": reading(transactions.is_key_taken, "key-1", uses="uq_transactions_idempotency_key"),
    "calls": reading(calls.list_calls, ONE.id, 100, 0, uses=CALLS),
    "record": writing(
        transactions.record,
        transactions.NewRecord(transaction=transaction(ROWS + 1), idempotency_key="new"),
        uses="uq_transactions_idempotency_key",
    ),
    "save": writing(transactions.save, transactions.Save(before=SAVED, after=SAVED), uses=ID),
    "claim": claim("ix_transactions_wake_at pk_transactions", hung=False),
    "claim what hangs": claim("ix_transactions_hung_wake_at pk_transactions", hung=True),
    "claim one": claim(ID, transaction_id=some(53).id),
    "release": writing(transactions.release_leases, 1e9, uses="ix_transactions_wake_at ix_transactions_hung_wake_at"),
    "next": reading(transactions.next_wake_at, uses="ix_transactions_wake_at ix_transactions_hung_wake_at"),
    "count": reading(queries.count_unfinished, uses="ix_transactions_wake_at"),
    "list": newest(ID),
    "list, first page": newest(ID, None),
    "list, phase": newest("", phase="confirmed"),
    "list, rare phase": newest("ix_transactions_phase_id", phase="cancelled"),
    "list, outcome": newest("", outcome="confirmed"),
    "list, rare outcome": newest("ix_transactions_phase_id", outcome="cancelled"),
    "list, mixed": newest("ix_transactions_is_mixed_id", outcome="mixed"),
    "list, mixed and name": newest("ix_transactions_is_mixed_id", outcome="mixed", name="order"),
    "list, name": newest("ix_transactions_name_id", name="refund"),
    "list, reference": newest("ix_transactions_reference_id", reference="r-17"),
    "list, participant": newest(MEMBERS, participant="car"),
    "list, owner": newest("ix_transactions_owner_id", owner="shop"),
    "list, hung": newest("", hung=True),
    "list, not hung": newest(ID, hung=False),
    "list, phase and name": newest("ix_transactions_phase_id", phase="cancelled", name="order"),
    "list, participant and name": newest(MEMBERS, participant="car", name="refund"),
    "list, everything": newest(
        "ix_transactions_reference_id", reference="r-17", phase="confirmed", participant="car", name="a", hung=False
    ),
    "hung": reading(queries.list_hung, queries.HungFilter(), 10, None, uses="ix_transactions_hung_since_id"),
    "hung, further": reading(
        queries.list_hung, queries.HungFilter(), 10, (ROWS / 2, ONE.id), uses="ix_transactions_hung_since_id"
    ),
    "hung, participant": reading(
        queries.list_hung, queries.HungFilter(participant="car"), 10, None, uses="ix_transactions_hung_since_id"
    ),
    "purge, ids": reading(purge.list_ids, some(900).id, ONE.id, 200, uses=ID),
    "purge, batch": reading(purge.find_batch, OLD, 1e9, uses=f"{ID} {CALLS}"),
    "purge, calls": reading(purge.find_few_calls, OLD, uses=CALLS),
    "purge, page of calls": reading(purge.page_calls, ONE.id, 0, uses=CALLS),
    "purge": writing(
        purge.delete_finished,
        purge.Deletion(ids=OLD, finished_by=1e9, lease=LEASE),
        uses=f"{ID} {CALLS} {BRANCH_ROWS}",
    ),
    "purge, leftovers": writing(purge.delete_leftover_calls, LEASE, uses=CALLS),
    "key of the API": reading(api_keys.find_key, "k", uses="pk_api_keys"),
    **{
        f"record, {column}": reading(audit.list_entries, rare(column), 10, None, uses=f"ix_audit_{column}_id")
        for column in ("actor", "action", "target", "outcome")
    },
    "record, newest": reading(audit.list_entries, audit.AuditFilter(since=1.0), 10, ONE.id, uses="pk_audit"),
    "record, old": writing(audit.delete_older, 1.0, uses="pk_audit"),
    "unregister": writing(
        participants.delete_participants, participants.Removal(name="car"), uses="ix_transactions_wake_at"
    ),
}
READS_ALL: Final = re.compile(r"(Seq Scan on|^SCAN) (transactions|branches|calls|audit|api_keys)\b(?! USING)")
"""What is registered, and what hangs, may be read whole; and of SQLite an index from one end on."""
SORTS: Final = re.compile(r"Sort|TEMP B-TREE")
IN_ORDER: Final = {"claim", "claim what hangs", "hung", "hung, further"}
"""What takes its first rows from an index in its order, however many there are."""


@contextmanager
def made(engine: Engine) -> Iterator[list[tuple[str, Any]]]:
    """The statements that are made meanwhile, each with its parameters."""
    seen: list[tuple[str, Any]] = []

    def note(_c: Connection, _cursor: Any, statement: str, parameters: Any, _context: Any, many: bool) -> None:
        if not statement.startswith(("INSERT", "EXPLAIN")):
            seen.append((statement, parameters[0] if many else parameters))

    event.listen(engine, "before_cursor_execute", note)
    yield seen
    event.remove(engine, "before_cursor_execute", note)


def plan(connection: Connection, statement: str, parameters: Any) -> list[str]:
    """The lines of the database's plan, with SQLite's names of primary keys as they are elsewhere."""
    explain = "EXPLAIN " if connection.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN "
    rows = connection.exec_driver_sql(explain + statement, parameters)
    return [re.sub(r"sqlite_autoindex_(\w+)_1\b", r"pk_\1", str(row[-1])) for row in rows]


def faults(engine: Engine, connection: Connection) -> dict[str, list[str]]:
    """The statements whose plan is not as wanted: an index that is not used, a table that is read from end to end."""
    found: dict[str, list[str]] = {}
    for name, (function, args, uses) in STATEMENTS.items():
        with connection.begin_nested() as savepoint, made(engine) as statements:
            function(connection, *args)
            lines = [line for statement in statements for line in plan(connection, *statement)]
            savepoint.rollback()
        whole = [line for line in lines if READS_ALL.search(line)]
        missing = [index for index in uses if not any(re.search(rf"\b{index}\b", line) for line in lines)]
        sorts = [line for line in lines if SORTS.search(line)] if name in IN_ORDER else []
        if whole or missing or sorts:
            found[name] = [*missing, *whole, *sorts]
    return found


INDEXES: Final = {
    "ix_transactions_wake_at": {"claim", "next", "count", "release", "unregister"},
    "ix_transactions_hung_wake_at": {"claim what hangs"},
    "ix_transactions_hung_since_id": {"hung", "hung, further"},
    "ix_transactions_phase_id": {"list, rare phase", "list, phase and name"},
    "ix_transactions_is_mixed_id": {"list, mixed", "list, mixed and name"},
    "ix_transactions_name_id": {"list, name"},
    "ix_transactions_reference_id": {"list, reference"},
    "ix_transactions_owner_id": {"list, owner"},
    **{f"ix_audit_{column}_id": {f"record, {column}"} for column in ("actor", "action", "target", "outcome")},
    "uq_transactions_idempotency_key": {"key", "record"},
    CALLS: {"calls", "purge", "purge, batch", "purge, calls", "purge, page of calls", "purge, leftovers"},
}
"""Indexes, and what needs each."""


@pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)
def test_every_statement_uses_its_index_and_misses_one_that_is_gone(full: Engine) -> None:
    with full.execution_options(holdfast_writes=True).connect() as connection, connection.begin() as whole:
        assert faults(full, connection) == {}
        for index, needed_by in INDEXES.items():
            with connection.begin_nested() as savepoint:
                connection.execute(text(f"DROP INDEX {index}"))
                assert needed_by <= faults(full, connection).keys(), index
                savepoint.rollback()
        whole.rollback()


@pytest.mark.parametrize("database_url", ["mariadb"], indirect=True)
def test_on_mariadb_no_statement_reads_a_large_table_whole(full: Engine) -> None:
    """Indexes there hold all rows, and which one is used is left to the optimizer's statistics."""
    whole: dict[str, list[str]] = {}
    with full.begin() as connection:
        for name in ("transactions", "branches", "calls"):
            connection.execute(text(f"ANALYZE TABLE {name}"))
    with full.connect() as connection:
        for name, (function, args, _) in STATEMENTS.items():
            with connection.begin_nested() as savepoint, made(full) as statements:
                function(connection, *args)
                plans = [
                    row
                    for statement in statements
                    for row in connection.exec_driver_sql(f"EXPLAIN {statement[0]}", statement[1])
                ]
                savepoint.rollback()
            read_whole = [row for row in plans if row.type == "ALL" and int(row.rows) > ROWS / 10]
            whole[name] = [row.table for row in read_whole if not row.table.startswith("<")]  # what a subquery found
    assert {name: read for name, read in whole.items() if read} == {}
