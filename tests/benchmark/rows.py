"""Very many rows in a short time: copies of transactions that a coordinator has really written, made by set-based SQL.

Copies whatever columns there are, on PostgreSQL, so that a new migration changes nothing here. The copies are older
than everything real: their ids are ordered by time, as those of the coordinator are.
"""

import json
import time
import urllib.request
from collections.abc import Mapping

from sqlalchemy import Connection, Engine, text

from tests.benchmark.contenders import Holdfast
from tests.benchmark.databases import Database
from tests.benchmark.holdfast_client import body
from tests.benchmark.noop import Noop
from tests.benchmark.processes import wait_until

CHUNK_ROWS = 100_000
AGE_S = 86_400
"""How much older than now the youngest copy is."""
UNFINISHED_TIMEOUT_S = 86_400.0
_TIMEOUT_S = 20.0


def begin_one(database: Database, participant: Noop, *participants: str, phase: str) -> str:
    """Have a coordinator run one transaction until it is stored in this phase, and kill it; returns the id."""
    with Holdfast(database).start(participant, {"refusing": f"{participant.url}/refusing"}) as running:
        request = urllib.request.Request(
            f"{running.urls[0]}/v1/transactions",
            data=body("template", *participants, timeout_s=UNFINISHED_TIMEOUT_S),
            headers={"Content-Type": "application/json", "Prefer": "respond-async"},
        )
        begun = json.loads(urllib.request.urlopen(request).read())
        engine = database.engine
        query = text("SELECT phase, hung_since IS NOT NULL OR :phase <> 'confirming' FROM transactions WHERE id = :id")
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            wanted = {"id": begun["id"], "phase": phase}
            if not wait_until(lambda: connection.execute(query, wanted).first() == (phase, True), timeout_s=_TIMEOUT_S):
                raise RuntimeError(f"the transaction did not become {phase}")
        engine.dispose()
        for process in running.processes:
            process.kill()
    transaction_id: str = begun["id"]
    return transaction_id


def copy(engine: Engine, template_id: str, count: int, changed: Mapping[str, str] = {}) -> None:
    """So many copies. `changed`: columns of `transactions` → SQL of `n`, the copy's number, and `t`, the template."""
    first_ms = int((time.time() - AGE_S) * 1000) - count
    created_at = f"(({first_ms} + n) / 1000.0)"
    hex_ms = f"lpad(to_hex({first_ms} + n), 12, '0')"
    new_id = f"substr({hex_ms}, 1, 8) || '-' || substr({hex_ms}, 9) || '-7000-8000-' || lpad(to_hex(n), 12, '0')"
    of_transactions = {
        "id": new_id,
        "reference": "'row-' || n",
        "created_at": created_at,
        "decided_at": f"t.decided_at - t.created_at + {created_at}",
        "finished_at": f"t.finished_at - t.created_at + {created_at}",
    }
    for first in range(1, count + 1, CHUNK_ROWS):
        last = min(count, first + CHUNK_ROWS - 1)
        with engine.begin() as connection:
            connection.execute(text("SET LOCAL synchronous_commit = off"))
            connection.execute(text("SET LOCAL work_mem = '256MB'"))  # the rows of a chunk are sorted in memory
            _copy_rows(connection, "transactions", "id", template_id, first, last, of_transactions | dict(changed))
            for table in _tables_of_transactions(connection):
                _copy_rows(connection, table, "transaction_id", template_id, first, last, {"transaction_id": new_id})


def settle(engine: Engine) -> None:
    """What autovacuum would do in the middle of a measurement, and a checkpoint."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM (ANALYZE)"))
        connection.execute(text("CHECKPOINT"))


def _tables_of_transactions(connection: Connection) -> list[str]:
    query = "SELECT table_name FROM information_schema.columns WHERE column_name = 'transaction_id' ORDER BY 1"
    return list(connection.execute(text(query)).scalars())


def _copy_rows(
    connection: Connection, table: str, key: str, template_id: str, first: int, last: int, changed: Mapping[str, str]
) -> None:
    """Columns that the database fills in itself, such as an identity, are left to it."""
    query = """
        SELECT column_name, data_type FROM information_schema.columns
        WHERE table_name = :table AND coalesce(column_default, '') NOT LIKE 'nextval%' AND is_identity = 'NO'"""
    columns = {row.column_name: row.data_type for row in connection.execute(text(query), {"table": table})}
    values = [f"CAST({changed.get(name, f't.{name}')} AS {kind})" for name, kind in columns.items()]
    connection.execute(
        text(
            f"INSERT INTO {table} ({', '.join(columns)}) SELECT {', '.join(values)} "
            f"FROM {table} t, generate_series(CAST(:first AS bigint), :last) n WHERE t.{key} = :template_id ORDER BY n"
        ),
        {"first": first, "last": last, "template_id": template_id},
    )
