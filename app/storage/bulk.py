"""Many rows in one statement: the cost of a batch is the number of its statements, above all on PostgreSQL.

There all rows are sent as one JSON array, at a seventh of the cost of one statement per row. On other databases the
driver repeats the statement for each row. Independent of tables; the modules named after tables use this.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Final

from pydantic_core import to_json
from sqlalchemy import (
    BindParameter,
    Connection,
    Double,
    Insert,
    Table,
    TextClause,
    Update,
    bindparam,
    insert,
    or_,
    text,
    update,
)
from sqlalchemy.dialects import postgresql

from app.storage.database_clock import POSTGRESQL_NOW, database_now

EXPECTED: Final = "expected_"
"""Prefix of the columns by which `update_all` finds its rows: `expected_id`, `expected_version`."""
UNTIL: Final = "until"
"""Not a column: a row that has it isn't updated once the database's clock says this; None is no limit."""


def insert_all(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows, which must all have the same columns; there may be none."""
    if not rows:
        return
    if connection.dialect.name == "postgresql":
        connection.execute(_insert(table, tuple(rows[0])), {"rows": _as_json(rows)})
    else:
        connection.execute(_inserting(table), rows)


def update_all(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> int:
    """For each given row, update the row that its `expected_…` columns match; returns how many matched."""
    names = tuple(rows[0])
    if connection.dialect.name == "postgresql":
        return connection.execute(_update(table, names), {"rows": _as_json(rows)}).rowcount
    return connection.execute(_updating(table, names), rows).rowcount


@cache
def _inserting(table: Table) -> Insert:
    return insert(table)


@cache
def _updating(table: Table, names: tuple[str, ...]) -> Update:
    expected = [name for name in names if name.startswith(EXPECTED)]
    found = [table.c[name.removeprefix(EXPECTED)] == bindparam(name) for name in expected]
    if UNTIL in names:
        until: BindParameter[float | None] = bindparam(UNTIL, type_=Double())
        found.append(or_(until.is_(None), until > database_now()))
    changed: dict[str, Any] = {name: bindparam(name) for name in names if name not in (*expected, UNTIL)}
    return update(table).where(*found).values(changed)


def _as_json(rows: Sequence[Mapping[str, Any]]) -> str:
    return to_json(
        rows, inf_nan_mode="constants"
    ).decode()  # PostgreSQL refuses NaN and Infinity, rather than storing null


@cache
def _insert(table: Table, names: tuple[str, ...]) -> TextClause:
    columns = ", ".join(names)
    return text(f"INSERT INTO {table.name} ({columns}) SELECT {columns} FROM {_recordset(table, names)}")  # noqa: S608 - names of our own columns


@cache
def _update(table: Table, names: tuple[str, ...]) -> TextClause:
    expected = [name for name in names if name.startswith(EXPECTED)]
    changed = ", ".join(f"{name} = r.{name}" for name in names if name not in (*expected, UNTIL))
    found = " AND ".join(f"{table.name}.{name.removeprefix(EXPECTED)} = r.{name}" for name in expected)
    if UNTIL in names:
        found += f" AND (r.{UNTIL} IS NULL OR r.{UNTIL} > {POSTGRESQL_NOW})"
    return text(f"UPDATE {table.name} SET {changed} FROM {_recordset(table, names)} WHERE {found}")  # noqa: S608 - names of our own columns


def _recordset(table: Table, names: tuple[str, ...]) -> str:
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    columns = {name: Double() if name == UNTIL else table.c[name.removeprefix(EXPECTED)].type for name in names}
    members = ", ".join(f"{name} {type_.compile(dialect)}" for name, type_ in columns.items())
    return f"json_to_recordset(CAST(:rows AS json)) AS r({members})"
