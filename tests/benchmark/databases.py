"""The databases of the contenders, and whether what was acknowledged is really in them.

Reads only the tables and columns that the API's promises rest on: a transaction's phase, and the calls made for it.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sqlalchemy import Engine, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from app.storage.engines import make_engine
from tests.benchmark.checkout import THIS, Checkout
from tests.benchmark.processes import children_of, cpu_s, run_module, wait_until
from tests.harness.postgres import PostgresServer

_PHASES: Final = "SELECT phase, count(*) AS found FROM transactions WHERE id > :floor_id GROUP BY phase"
_CALLS: Final = "SELECT count(*) FROM calls WHERE transaction_id > :floor_id"


class CheckFailed(Exception):
    """What was measured is not what happened: the figures are worth nothing."""


@dataclass
class Database:
    """One contender's database. `expected` counts its transactions by phase, over all its rounds."""

    url: str
    server: PostgresServer | None = None
    expected: dict[str, int] = field(default_factory=dict)
    calls_expected: int | None = 0
    """None when it can't be known: a dead participant is called more or less often."""
    floor_id: str = ""
    """Transactions up to this one were made for the occasion, and are not looked at."""
    settle_timeout_s: float = 10.0
    """What an acknowledged transaction may still need to be written as finished, with its history."""

    @property
    def engine(self) -> Engine:
        """For looking and for making rows; a new one each time, of which nothing stays open."""
        return create_engine(self.url, poolclass=NullPool)

    def migrate(self, checkout: Checkout = THIS) -> None:
        """As users do: `python -m app migrate`."""
        run_module("app", "migrate", environment={"HOLDFAST_DATABASE_URL": self.url}, root=checkout.root)

    def server_cpu_s(self) -> float:
        """CPU seconds of the database server so far; 0 where it is a part of the coordinator."""
        return cpu_s(children_of(self.server.process_id)) if self.server else 0.0

    def only_after(self, transaction_id: str) -> None:
        """Check from now on only what is younger than this transaction: ids are ordered by time."""
        self.floor_id, self.expected, self.calls_expected = transaction_id, {}, 0

    def expect(self, *, calls_each: int, **by_phase: int) -> None:
        """So many more transactions of a phase, each with so many calls in the history, are to be there."""
        for phase, count in by_phase.items():
            self.expected[phase] = self.expected.get(phase, 0) + count
            if self.calls_expected is not None:
                self.calls_expected += calls_each * count

    def check(self) -> None:
        """Raise CheckFailed unless exactly what is expected is there."""
        engine = self.engine
        try:
            if not wait_until(lambda: self._fault(engine) is None, timeout_s=self.settle_timeout_s, pause_s=0.2):
                raise CheckFailed(self._fault(engine))
        finally:
            engine.dispose()

    def _fault(self, engine: Engine) -> str | None:
        try:
            with engine.connect() as connection:
                rows = connection.execute(text(_PHASES), {"floor_id": self.floor_id})
                found = {row.phase: row.found for row in rows}
                calls = connection.execute(text(_CALLS), {"floor_id": self.floor_id}).scalar_one()
        except DBAPIError as error:
            raise CheckFailed(
                f"the check of what was kept can't read the database ({error.orig}). It needs another schema: "
                "columns `id` and `phase` in `transactions`, and `transaction_id` in `calls`. Adapt the check, or "
                "measure that code with the benchmark of a commit that knows its schema"
            ) from error
        expected = {phase: count for phase, count in self.expected.items() if count}
        if found != expected:
            return f"{expected} were acknowledged, but {found} are in the database"
        if self.calls_expected is not None and calls != self.calls_expected:
            return f"{self.calls_expected} calls must be in the history, but {calls} are"
        return None


class Databases:
    """Makes databases: files in one folder, and databases on one durable PostgreSQL."""

    def __init__(self, folder: Path, server: PostgresServer) -> None:
        self._folder = folder
        self.server = server
        self._files = 0

    def sqlite(self) -> Database:
        self._files += 1
        return Database(f"sqlite:///{self._folder}/{self._files}.db")

    def postgres(self) -> Database:
        return Database(self.server.create_database(), self.server)

    def drop(self, database: Database) -> None:
        """Give its disk space back; nobody may be at work on it."""
        if database.server:
            if database.server.running:  # else it takes its databases with it
                database.server.drop_database(database.url)
        else:
            file = Path(make_url(database.url).database or "")
            for path in file.parent.glob(f"{file.name}*"):  # its log and its lock lie beside it
                path.unlink()

    def postgres_version(self) -> str:
        engine = make_engine(self.server.url())
        with engine.connect() as connection:
            version: str = connection.execute(text("SHOW server_version")).scalar_one()
        engine.dispose()
        return version.split(maxsplit=1)[0]


@contextmanager
def databases() -> Iterator[Databases]:
    """A folder and a durable PostgreSQL (fsync on), gone at the end."""
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as folder, PostgresServer(durable=True) as server:
        yield Databases(Path(folder), server)
