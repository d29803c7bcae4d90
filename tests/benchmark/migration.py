"""How long the migration of a large database takes, and how long it locks anybody out.

    python -m tests.benchmark.migration [transactions] [postgresql | sqlite | mariadb]

The database is as version 0.1 left it, with transactions of every phase: copies of those in
tests/harness/written_by_0_1_0.json. Beside the migration, another connection updates a row again and again; the
longest that it waited is the longest lock. On SQLite nobody else can write meanwhile.
"""

import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Final

from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from app.storage.engines import make_engine
from app.storage.migrations import migrate
from tests.harness.mariadb import MariadbServer
from tests.harness.postgres import PostgresServer
from tests.harness.rows_of_0_1_0 import WRITTEN, copies, fill, moved

TRANSACTIONS: Final = 100_000
AT_A_TIME: Final = 200
"""Copies of all transactions that are inserted together."""
PAUSE_S: Final = 0.002
LOCK_MAX_S: Final = 5.0


@contextmanager
def empty_database(kind: str) -> Iterator[str]:
    """The URL of a new, durable database of this kind."""
    if kind == "sqlite":
        with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as folder:
            yield f"sqlite:///{folder}/holdfast.db"
    elif kind == "postgresql":
        with PostgresServer(durable=True) as postgres:
            yield postgres.create_database()
    else:
        with MariadbServer() as mariadb:
            yield mariadb.create_database()


def filled(engine: Engine, transactions: int) -> int:
    """Fill it with at least so many transactions of 0.1; returns how many."""
    moved(engine, "0002")
    fill(engine, WRITTEN["tables"])
    each = len(WRITTEN["tables"]["transactions"])
    for first in range(0, -(-transactions // each), AT_A_TIME):
        fill(engine, copies(range(first, first + AT_A_TIME)))
    with engine.connect() as connection:
        return int(connection.execute(text("SELECT count(*) FROM transactions")).scalar_one())


class Bystander:
    """A connection that locks a row and lets it go, again and again; `longest_s` is the longest that this took."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.longest_s = 0.0

    def __enter__(self) -> "Bystander":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        first = WRITTEN["tables"]["transactions"][0]["id"]
        update = text("UPDATE transactions SET version = version WHERE id = :id")
        while not self._stopped.wait(PAUSE_S):
            began = time.perf_counter()
            try:
                with self._engine.begin() as connection:
                    connection.execute(update, {"id": first})
            except DBAPIError as error:
                print(f"  the other connection: {str(error.orig).splitlines()[0]}")
            self.longest_s = max(self.longest_s, time.perf_counter() - began)


def main() -> int:
    transactions = int(sys.argv[1]) if len(sys.argv) > 1 else TRANSACTIONS
    kind = sys.argv[2] if len(sys.argv) > 2 else "postgresql"
    with empty_database(kind) as url:
        engine = make_engine(url, patient=True)
        count = filled(engine, transactions)
        with nullcontext() if kind == "sqlite" else Bystander(engine) as bystander:
            began = time.perf_counter()
            migrate(url)
            took_s = time.perf_counter() - began
        engine.dispose()
    print(f"{kind}: {count:,} transactions in {took_s:.1f} s, {took_s / count * 1e6:,.0f} s per million")
    if bystander is None:
        return 0
    print(f"longest lock: {bystander.longest_s:.2f} s")
    return 0 if bystander.longest_s <= LOCK_MAX_S else 1


if __name__ == "__main__":
    sys.exit(main())
