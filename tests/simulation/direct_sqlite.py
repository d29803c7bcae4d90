"""SQLAlchemy's statements, sent to SQLite without SQLAlchemy's connections and sessions.

Statements are compiled by SQLAlchemy and remembered by its own cache keys, so what reaches the database is word for
word what an Engine would send. What is left out is what lies between, which costs many times what SQLite does. Raises
what SQLAlchemy raises.
"""

import sqlite3
from collections import namedtuple
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self
from weakref import WeakKeyDictionary

from sqlalchemy import Engine
from sqlalchemy.dialects import sqlite as sqlite_dialect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from tests.simulation.databases import raw

_DIALECT: Any = sqlite_dialect.dialect(paramstyle="qmark")
_COMPILED: dict[Any, Any] = {}
"""By SQLAlchemy's cache key; as many as there are different statements in the code."""
_MADE: dict[int, "_Statement"] = {}
_KNOWN: WeakKeyDictionary[Any, tuple[Any, "_Statement", Any]] = WeakKeyDictionary()
"""Statements that were built once are found without their cache key."""


class _Statement:
    """One compiled statement: its text, and how its parameters and rows are made."""

    def __init__(self, compiled: Any) -> None:
        self.compiled = compiled
        self.text: str = compiled.string
        self.expands = bool(compiled.post_compile_params)
        self.names: Sequence[str] = compiled.positiontup or ()
        self.processors = compiled._bind_processors
        self.has_rows = bool(compiled._result_columns) and not compiled.isinsert
        columns = compiled._result_columns if self.has_rows else ()
        self.columns = [column[0] for column in columns]
        row = namedtuple("Row", self.columns, rename=True)  # type: ignore[misc]
        self.row: Any = row
        self.converters = [
            (place, converter)
            for place, column in enumerate(columns)
            if (converter := column[3]._cached_result_processor(_DIALECT, None)) is not None
        ]


class Rows:
    """What a statement came to: as much of a Result as is asked for."""

    def __init__(self, sent: _Statement, found: Sequence[Any], rowcount: int) -> None:
        self._sent = sent
        self._found = found
        self.rowcount = rowcount

    def __iter__(self) -> Iterator[Any]:
        make = self._sent.row._make
        return (make(row) for row in self._found)

    def all(self) -> list[Any]:
        return list(self)

    def first(self) -> Any:
        return self._sent.row._make(self._found[0]) if self._found else None

    def scalar_one(self) -> Any:
        ((value,),) = self._found
        return value

    def scalars(self) -> "Scalars":
        return Scalars(row[0] for row in self._found)

    def mappings(self) -> "Mappings":
        return Mappings(dict(zip(self._sent.columns, row, strict=True)) for row in self._found)


class Scalars(list[Any]):
    def all(self) -> Self:
        return self


class Mappings(list[dict[str, Any]]):
    def all(self) -> Self:
        return self

    def first(self) -> Any:
        return self[0] if self else None

    def one_or_none(self) -> Any:
        assert len(self) <= 1
        return self.first()


class _Direct:
    """What connections and sessions have in common: one SQLite connection, and whether it is in a transaction."""

    def __init__(self, connection: sqlite3.Connection, begins: str) -> None:
        self._connection = connection
        self._begins = begins

    def run(self, statement: Any, parameters: Any = None) -> Rows:
        """Send one statement, in a transaction that begins with it."""
        many = isinstance(parameters, Sequence)
        rows: Sequence[Any] = parameters if many else (parameters or {},)
        sent, fixed = _sent(statement, rows)
        if not self._connection.in_transaction:
            self._connection.execute(self._begins)
        try:
            if len(rows) > 1:
                cursor = self._connection.executemany(sent.text, [_values(sent, row, fixed) for row in rows])
            elif sent.expands:
                state = sent.compiled._process_parameters_for_postcompile(fixed | rows[0])
                everything = {**fixed, **rows[0], **state.additional_parameters}
                values = [everything[name] for name in state.positiontup]
                cursor = self._connection.execute(state.statement, values)
            else:
                cursor = self._connection.execute(sent.text, _values(sent, rows[0], fixed))
        except sqlite3.Error as error:
            raise DBAPIError.instance(sent.text, None, error, sqlite3.Error, dialect=_DIALECT) from error
        found = _converted(sent, cursor.fetchall()) if sent.has_rows else ()
        return Rows(sent, found, cursor.rowcount)


class DirectEngine:
    """Stands in for an Engine in the journal. `begins` is how its transactions begin."""

    dialect = _DIALECT

    def __init__(self, connection: sqlite3.Connection, begins: str = "BEGIN") -> None:
        self._connection = connection
        self._begins = begins

    def execution_options(self, *, holdfast_writes: bool) -> "DirectEngine":
        return DirectEngine(self._connection, "BEGIN IMMEDIATE" if holdfast_writes else "BEGIN")

    def connect(self) -> "DirectConnection":
        return DirectConnection(self._connection, self._begins)

    def dispose(self) -> None:
        pass


class DirectConnection(_Direct):
    """Stands in for a Connection."""

    dialect = _DIALECT

    def execute(self, statement: Any, parameters: Any = None) -> Rows:
        return self.run(statement, parameters)

    def begin(self) -> Self:
        self._connection.execute(self._begins)
        return self

    def commit(self) -> None:
        self._connection.commit()

    def rollback(self) -> None:
        self._connection.rollback()

    def invalidate(self) -> None:
        self._connection.rollback()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.rollback()


class DirectSession(Session):
    """Stands in for a Session of which only SQL is asked; one at a time on a connection."""

    def __init__(self, bind: Engine, **_: Any) -> None:
        super().__init__(bind)
        self._direct = _Direct(raw(bind), "BEGIN")
        self._turn: object | None = None

    def execute(self, statement: Any, params: Any = None, **_: Any) -> Any:
        if self._turn is None:
            self._turn = object()
        return self._direct.run(statement, params)

    def commit(self) -> None:
        self.dispatch.before_commit(self)
        self._direct._connection.commit()
        self._turn = None

    def rollback(self) -> None:
        self._direct._connection.rollback()
        self._turn = None

    def close(self) -> None:
        self.rollback()

    def get_transaction(self) -> Any:
        return self._turn

    def in_nested_transaction(self) -> bool:
        return False


def _sent(statement: Any, rows: Sequence[Any]) -> tuple[_Statement, dict[str, Any]]:
    """The compiled form of a statement, and the values that stand in it."""
    known = _KNOWN.get(statement)
    many = len(rows) > 1
    if known is not None and known[0] == rows[0].keys():
        return known[1], known[2]
    names = sorted(rows[0])
    compiled, extracted, *_ = statement._compile_w_cache(
        _DIALECT, compiled_cache=_COMPILED, column_keys=names, for_executemany=many
    )
    made = _MADE.get(id(compiled))
    if made is None:
        made = _MADE[id(compiled)] = _Statement(compiled)
    values = compiled.construct_params(rows[0], extracted_parameters=extracted)
    fixed = {name: value for name, value in values.items() if name not in rows[0]}
    _KNOWN[statement] = (rows[0].keys(), made, fixed)
    return made, fixed


def _values(sent: _Statement, row: Mapping[str, Any], fixed: Mapping[str, Any]) -> list[Any]:
    processors = sent.processors
    values = [row[name] if name in row else fixed[name] for name in sent.names]
    if processors:
        for place, name in enumerate(sent.names):
            if name in processors:
                values[place] = processors[name](values[place])
    return values


def _converted(sent: _Statement, found: Sequence[Any]) -> Sequence[Any]:
    if not sent.converters or not found:
        return found
    changed = []
    for row in found:
        values = list(row)
        for place, converter in sent.converters:
            values[place] = converter(values[place])
        changed.append(tuple(values))
    return changed
