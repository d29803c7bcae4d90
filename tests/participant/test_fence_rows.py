"""The table and its statements: what each database is told, and that every write is conditional."""

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Dialect, Engine, MetaData, create_engine
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.orm import Session
from sqlalchemy.schema import CreateTable

from holdfast.fence import rows
from holdfast.fence.rows import Key, Row, Superseded
from holdfast.fence.steps import State

TABLE = rows.branches_table(MetaData())
KEY = Key("seats", "t-1", "left")


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = create_engine(database_url)
    TABLE.create(engine)
    yield engine
    engine.dispose()


def a_row(**values: Any) -> Row:
    return Row(
        **{**KEY._asdict(), "state": State.HELD, "expires_at": 60.0, "created_at": 0.0, "check_at": 60.0} | values
    )


@pytest.mark.parametrize(
    ("dialect", "says"),
    [
        (
            postgresql.dialect(),  # type: ignore[no-untyped-call]
            "ON CONFLICT DO NOTHING",
        ),
        (sqlite.dialect(), "ON CONFLICT DO NOTHING"),
        (mysql.dialect(), "INSERT IGNORE INTO"),
    ],
)
def test_insert_if_absent_is_spelled_for_each_database(dialect: Dialect, says: str) -> None:
    statement = rows.inserting_if_absent(dialect.name, TABLE)
    assert says in str(statement.compile(dialect=dialect))
    with pytest.raises(ValueError, match="oracle"):
        rows.inserting_if_absent("oracle", TABLE)


def test_mysql_compares_names_byte_by_byte_and_has_room_for_payloads() -> None:
    ddl = str(CreateTable(TABLE).compile(dialect=mysql.dialect()))
    assert ddl.count("VARCHAR(200) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin") == 2
    assert ddl.count("LONGTEXT") == 3
    assert (200 + 64 + 200) * 4 <= 3072, "the key fits InnoDB's limit"


def test_a_write_is_conditional_on_what_was_seen(engine: Engine) -> None:
    with Session(engine) as session:
        assert rows.insert_if_absent(session, TABLE, a_row())
        assert not rows.insert_if_absent(session, TABLE, a_row())
        seen = rows.lock(session, TABLE, KEY)
        assert seen == a_row()
        written = rows.write(session, TABLE, seen, state=State.CONFIRMED, finished_at=1.0)
        assert written == rows.read(session, TABLE, KEY)
        assert written.version == 2
        with pytest.raises(Superseded):
            rows.write(session, TABLE, seen, state=State.CANCELLED)
        with pytest.raises(Superseded):
            rows.remove(session, TABLE, seen)
        rows.remove(session, TABLE, written)
        assert rows.lock(session, TABLE, KEY) is None


def test_names_that_differ_in_case_or_accents_are_different_rows(engine: Engine) -> None:
    with Session(engine) as session:
        for branch in ("seat", "Seat", "s\u00e9at", "\U0001f4ba"):
            payload = f'"{branch}{"x" * 70_000}"'
            assert rows.insert_if_absent(session, TABLE, a_row(branch=branch, payload=payload))
            found = rows.lock(session, TABLE, KEY._replace(branch=branch))
            assert found is not None
            assert found.payload == payload


def test_claims_do_not_disturb_a_run(engine: Engine) -> None:
    with Session(engine) as session:
        rows.insert_if_absent(session, TABLE, a_row())
        (row,) = rows.due(session, TABLE, "seats", now=60.0, limit=10)
        assert rows.claim(session, TABLE, row, now=60.0, until=90.0)
        assert not rows.claim(session, TABLE, row, now=60.0, until=90.0)
        assert rows.due(session, TABLE, "seats", now=89.0, limit=10) == []
        assert rows.look_again(session, TABLE, row, at=None, checks=0)
        assert rows.due(session, TABLE, "seats", now=1e9, limit=10) == []
        rows.write(session, TABLE, row, state=State.CONFIRMED)


def test_purging_rechecks_that_a_row_is_old_and_finished(engine: Engine) -> None:
    with Session(engine) as session:
        done = {"state": State.CANCELLED, "finished_at": 1.0, "check_at": None}
        rows.insert_if_absent(session, TABLE, a_row(**done))
        rows.insert_if_absent(session, TABLE, a_row(**done | {"branch": "swept later", "check_at": 99.0}))
        rows.insert_if_absent(session, TABLE, a_row(**done | {"branch": "young", "finished_at": 3.0}))
        rows.insert_if_absent(session, TABLE, a_row(branch="held"))
        assert list(rows.finished(session, TABLE, "seats", finished_before=2.0, limit=10)) == [KEY]
        everything = [KEY._replace(branch=name) for name in ("left", "swept later", "young", "held")]
        assert rows.purge(session, TABLE, everything, finished_before=2.0) == 1
        assert rows.read(session, TABLE, KEY) is None
