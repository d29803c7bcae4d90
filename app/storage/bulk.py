"""Many rows in one statement: what a batch of writes costs is the number of its statements, most of all on PostgreSQL.

There all rows go over as one JSON array, which costs a seventh of what as many statements do. Elsewhere the driver
repeats the statement for each row. Knows no table and no intent (the modules named after tables have them).
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Final

from pydantic_core import to_json
from sqlalchemy import Connection, Insert, Table, TextClause, Update, bindparam, insert, text, update
from sqlalchemy.dialects import postgresql

EXPECTED: Final = "expected_"
"""What the columns by which `update_all` finds its rows are called in them: `expected_id`, `expected_version`."""


def insert_all(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows that all have the same columns; none is as good as any."""
    if not rows:
        return
    if connection.dialect.name == "postgresql":
        connection.execute(_insert(table, tuple(rows[0])), {"rows": _as_json(rows)})
    else:
        connection.execute(_inserting(table), rows)


def update_all(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> int:
    """Update for each row the one that its columns named `expected_…` find; returns how many were found."""
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
    changed: dict[str, Any] = {name: bindparam(name) for name in names if name not in expected}
    return update(table).where(*found).values(changed)


def _as_json(rows: Sequence[Mapping[str, Any]]) -> str:
    return to_json(rows, inf_nan_mode="constants").decode()  # which PostgreSQL refuses, rather than a null


@cache
def _insert(table: Table, names: tuple[str, ...]) -> TextClause:
    columns = ", ".join(names)
    return text(f"INSERT INTO {table.name} ({columns}) SELECT {columns} FROM {_recordset(table, names)}")


@cache
def _update(table: Table, names: tuple[str, ...]) -> TextClause:
    changed = ", ".join(f"{name} = r.{name}" for name in names if not name.startswith(EXPECTED))
    expected = [name for name in names if name.startswith(EXPECTED)]
    found = " AND ".join(f"{table.name}.{name.removeprefix(EXPECTED)} = r.{name}" for name in expected)
    return text(f"UPDATE {table.name} SET {changed} FROM {_recordset(table, names)} WHERE {found}")


def _recordset(table: Table, names: tuple[str, ...]) -> str:
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    types = {name: table.c[name.removeprefix(EXPECTED)].type.compile(dialect) for name in names}
    members = ", ".join(f"{name} {type_}" for name, type_ in types.items())
    return f"json_to_recordset(CAST(:rows AS json)) AS r({members})"
