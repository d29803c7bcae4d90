"""What version 0.1 wrote: all rows of a coordinator that was killed with transactions in every phase."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, MetaData

from tests.harness.repository import ROOT

Rows = dict[str, list[dict[str, Any]]]
"""Rows by table."""

WRITTEN: Final[dict[str, Any]] = json.loads((Path(__file__).parent / "written_by_0_1_0.json").read_text())
"""The rows, and the time at which the coordinator was killed. Its schema is that of revision 0002."""


def config() -> Config:
    """Alembic's settings for the coordinator's migrations."""
    made = Config()
    made.set_main_option("script_location", str(ROOT / "alembic"))
    return made


def moved(engine: Engine, to: str) -> None:
    """Bring the schema to this revision, up or down."""
    with engine.execution_options(holdfast_writes=True).connect() as connection:
        made = config()
        made.attributes["connection"] = connection
        (command.downgrade if to.startswith(("base", "-")) else command.upgrade)(made, to)
        connection.commit()


def fill(engine: Engine, rows: Rows) -> None:
    """Insert these rows into the schema that is there; calls are numbered by the database."""
    reflected = MetaData()
    reflected.reflect(engine, only=list(rows))
    with engine.execution_options(holdfast_writes=True).begin() as connection:
        for name, some in rows.items():
            numbered = [{key: value for key, value in row.items() if (name, key) != ("calls", "id")} for row in some]
            connection.execute(reflected.tables[name].insert(), numbered)


def copies(numbers: Iterable[int]) -> Rows:
    """Copies of all transactions: one, with ids of its own, for each of these numbers."""
    of_transactions = ("transactions", "transaction_participants", "hung_branches")

    def renamed(row: dict[str, Any], number: int) -> dict[str, Any]:
        key = "id" if "id" in row else "transaction_id"
        changed = {**row, key: f"{number:08x}{row[key][8:]}"}
        return changed | ({"idempotency_key": None} if "idempotency_key" in row else {})

    return {
        name: [renamed(row, number) for number in numbers for row in WRITTEN["tables"][name]]
        for name in of_transactions
    }
