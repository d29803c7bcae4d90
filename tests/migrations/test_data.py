"""What older versions wrote is there after the migration, in every phase, and this version goes on with it."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest
from sqlalchemy import Connection, Engine, event, func, select, text
from sqlalchemy.exc import DBAPIError

from app.storage import migrations, queries, tables, transactions
from app.storage.engines import make_engine
from app.storage.errors import UnreadableRowError
from app.storage.migrations import migrate
from holdfast.json_text import canonical
from holdfast.wire import Decision
from tests.harness.coordinator_app import Service, lost, reply, running
from tests.harness.databases import on_servers
from tests.harness.rows_of_0_1_0 import WRITTEN, copies, fill, moved
from tests.harness.transactions import found

NAMES: Final = {row["id"]: row["name"] for row in WRITTEN["tables"]["transactions"]}
NAMES_BY: Final = {name: id_ for id_, name in NAMES.items()}
OUTCOMES: Final = {
    "confirmed": "confirmed",
    "cancelled": "cancelled",
    "inline": "confirmed",
    "twice": "confirmed",
    "mixed": "mixed",
    "resolved": "confirmed",
    "hung confirming": "confirmed",
    "hung cancelling": "cancelled",
    "half resolved": "confirmed",
    "trying": "confirmed",
    "waiting its turn": "confirmed",
    "confirming": "confirmed",
    "cancelling": "cancelled",
}
"""How each ends once its participants answer; "hung refused" waits for people."""


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """A database as 0.1 left it."""
    made = make_engine(database_url)
    moved(made, "0002")
    fill(made, WRITTEN["tables"])
    yield made
    made.dispose()


def clock() -> float:
    """A minute after the coordinator of 0.1 was killed, when all its leases have ended."""
    return float(WRITTEN["at"]) + 60.0 + time.monotonic() - STARTED


STARTED: Final = time.monotonic()
IMPATIENT: Final = {"hung_attempts": 2, "hung_after_s": 0.01}


async def test_what_0_1_0_wrote_in_every_phase_is_finished_by_this_version(database_url: str, engine: Engine) -> None:
    migrate(database_url)
    async with running(database_url, clock=clock, follows_database=False, **IMPATIENT) as service:
        service.participants.script("/stubborn/confirm", [reply(409, {"type": "/problems/refused", "title": "no"})])
        for id_, name in NAMES.items():
            if name in OUTCOMES:
                assert (await service.until_finished(id_))["outcome"] == OUTCOMES[name], name
        await check_as_written(service)
        (hung,) = (await service.json("/v1/admin/hung"))["items"]
        assert NAMES[hung["id"]] == "hung refused"
        answer = await service.client.post(
            f"/v1/admin/transactions/{hung['id']}/branches/stubborn/resolve",
            json={"as": "confirmed", "reason": "by phone"},
            headers={"x-operator": "ops"},
        )
        assert answer.status_code == 200, answer.text
        assert (await service.until_finished(hung["id"]))["outcome"] == "confirmed"


async def check_as_written(service: Service) -> None:
    """Payloads, endpoints, trace, key and history are those that 0.1 wrote."""
    by_participant = (await service.json("/v1/transactions", participant="inventory", limit=100))["items"]
    members = {
        row["transaction_id"]
        for row in WRITTEN["tables"]["transaction_participants"]
        if row["participant"] == "inventory"
    }
    assert [each["id"] for each in by_participant] == sorted(members, reverse=True)
    for row in WRITTEN["tables"]["transactions"]:
        shown, definition = await service.get(row["id"]), json.loads(row["definition"])
        for branch, defined in zip(shown["branches"], definition["branches"], strict=True):
            assert branch["payload"] == defined["payload"]
            assert (branch["name"], branch["participant"]) == (defined["name"], defined["participant"])
            urls = branch["endpoints"] and [branch["endpoints"][each] for each in ("try", "confirm", "cancel")]
            assert urls == defined["endpoints"]
        calls = await service.json(f"/v1/transactions/{row['id']}/calls", limit=500)
        recorded = [call for call in WRITTEN["tables"]["calls"] if call["transaction_id"] == row["id"]]
        assert [call["branch"] for call in calls["items"]][: len(recorded)] == [call["branch"] for call in recorded]
    traced = await service.parts.journal.read(transactions.find, WRITTEN["tables"]["transactions"][0]["id"])
    assert traced is not None
    assert traced.traceparent == "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    (keyed,) = (row for row in WRITTEN["tables"]["transactions"] if row["idempotency_key"])
    again = await service.begin(
        {
            "name": keyed["name"],
            "reference": keyed["reference"],
            "timeout_s": 3600,
            "branches": [
                {"participant": each["participant"], "payload": each["payload"]}
                for each in json.loads(keyed["definition"])["branches"]
            ],
        },
        idempotency_key=f'"{keyed["idempotency_key"]}"',
    )
    assert (again.status_code, again.json()["id"]) == (201, keyed["id"]), "the same request, not another one"


async def test_what_hangs_still_hangs_while_its_participants_stay_away(database_url: str, engine: Engine) -> None:
    migrate(database_url)
    async with running(database_url, clock=clock, follows_database=False, **IMPATIENT) as service:
        for path in ("/broken/confirm", "/broken/cancel", "/stubborn/confirm"):
            service.participants.script(path, [lost()])
        for id_, name in NAMES.items():
            if name not in ("hung refused", "hung confirming", "hung cancelling", "half resolved"):
                await service.until_finished(id_)
        hung = (await service.json("/v1/admin/hung"))["items"]
        assert {NAMES[each["id"]] for each in hung} == {
            "hung refused",
            "hung confirming",
            "hung cancelling",
            "half resolved",
        }


def test_every_row_is_stored_as_this_version_stores_it(database_url: str, engine: Engine) -> None:
    migrate(database_url)
    for row in WRITTEN["tables"]["transactions"]:
        read = found(engine, transactions.find, row["id"])
        definition = json.loads(row["definition"])
        payloads = [json.dumps(branch["payload"]) for branch in definition["branches"]]
        assert [canonical(branch.payload) for branch in read.branches] == [canonical(each) for each in payloads]
        assert read.version == row["version"]
    with engine.connect() as connection:
        sizes = dict(connection.execute(select(tables.transactions.c.id, tables.transactions.c.definition_bytes)).all())
        written = connection.execute(select(tables.branches.c.transaction_id, tables.branches.c.definition)).all()
    assert sizes == {id_: sum(len(definition.encode()) for of, definition in written if of == id_) for id_ in NAMES}


# --- a migration that is stopped ------------------------------------------------------------------------------------


class StoppedError(Exception):
    """The process that migrates is killed."""


@contextmanager
def at_each_batch(note: Callable[[int], None]) -> Iterator[None]:
    """Call `note` with the number of transactions in a batch, before its branches are written."""
    sizes: list[int] = []

    def look(_c: Connection, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool) -> None:
        if statement.startswith("SELECT id, definition FROM transactions"):
            sizes.append(len(parameters))
        elif statement.startswith("INSERT INTO branches"):
            note(sizes[-1])

    event.listen(Engine, "before_cursor_execute", look)
    try:
        yield
    finally:
        event.remove(Engine, "before_cursor_execute", look)


@on_servers
def test_a_migration_that_is_stopped_goes_on_where_it_was(database_url: str, engine: Engine) -> None:
    more = copies(range(100))
    fill(engine, more)
    batches: list[int] = []

    def stop(size: int) -> None:
        batches.append(size)
        if len(batches) == 2:
            raise StoppedError

    with at_each_batch(stop), pytest.raises(StoppedError):
        migrate(database_url)
    first = batches[0]
    assert transactions_with_branches(engine) == first < len(more["transactions"])
    rest: list[int] = []
    with at_each_batch(rest.append):
        migrate(database_url)
    assert first + sum(rest) == transactions_with_branches(engine) == len(NAMES) + len(more["transactions"])
    for row in (*WRITTEN["tables"]["transactions"], *more["transactions"][::100]):
        read = found(engine, transactions.find, row["id"])
        assert [branch.name for branch in read.branches] == [
            branch["name"] for branch in json.loads(row["definition"])["branches"]
        ]


def transactions_with_branches(engine: Engine) -> int:
    with engine.connect() as connection:
        return connection.execute(select(func.count(tables.branches.c.transaction_id.distinct()))).scalar_one()


def test_what_nobody_can_read_is_kept_as_it_is(database_url: str, engine: Engine) -> None:
    damaged = {"{": NAMES_BY["confirmed"], '{"branches": 7}': NAMES_BY["trying"], "null": NAMES_BY["cancelled"]}
    with engine.execution_options(holdfast_writes=True).begin() as connection:
        for definition, id_ in damaged.items():
            values = {"definition": definition, "id": id_}
            connection.execute(text("UPDATE transactions SET definition = :definition WHERE id = :id"), values)
    migrate(database_url)
    for definition, id_ in damaged.items():
        with pytest.raises(UnreadableRowError):
            found(engine, transactions.find, id_)
        with engine.connect() as connection:
            kept = select(tables.branches.c.definition).where(tables.branches.c.transaction_id == id_)
            assert connection.execute(kept).scalars().all() == [definition]
    assert found(engine, transactions.find, NAMES_BY["mixed"]) is not None
    decision = found(engine, queries.find_decision, NAMES_BY["confirmed"], "inventory")
    assert decision.decision is Decision.CONFIRM, "what can't be read isn't cancelled for that"
    moved(engine, f"-{int(migrations._head()) - 7}")  # to where definitions were in the rows of transactions
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT id, definition FROM transactions")).all()
    assert {definition: id_ for id_, definition in rows if definition in damaged} == damaged


@on_servers
def test_versions_that_know_no_rows_of_branches_do_not_start_on_them(
    database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate(database_url)
    for head, starts in (("0005", False), ("0007", False), ("0008", True)):
        monkeypatch.setattr(migrations, "_head", lambda head=head: head)
        fault = found(engine, migrations.schema_fault)
        assert fault is None if starts else "Run that version" in fault, head


@on_servers
def test_a_process_of_0_1_0_that_still_runs_records_nothing(database_url: str, engine: Engine) -> None:
    """It fails at each write as soon as the migration has begun: what it would write, this version couldn't see."""
    row = WRITTEN["tables"]["transactions"][0]
    insert = f"INSERT INTO transactions ({', '.join(row)}) VALUES ({', '.join(f':{name}' for name in row)})"
    save = "UPDATE transactions SET phase = 'confirmed', state = '{}', version = version + 1 WHERE id = :id"
    moved(engine, "0006")
    for statement, values in ((insert, {**row, "id": "new", "idempotency_key": None}), (save, {"id": row["id"]})):
        with pytest.raises(DBAPIError), engine.begin() as connection:
            connection.execute(text(statement), values)
    migrate(database_url)
    assert found(engine, transactions.find, row["id"]).version == row["version"]
