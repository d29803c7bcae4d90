"""The migrations lead to the tables that the code works with, and back; and the code knows when they have not run."""

from collections.abc import Iterator
from typing import Final

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, inspect, text

from app.__main__ import main
from app.main import SchemaOutdatedError
from app.storage import transactions
from app.storage.engines import make_engine
from app.storage.migrations import NotMigratedError, finish, migrate, schema_fault
from app.storage.tables import metadata
from tests.harness.coordinator_app import running
from tests.harness.coordinator_process import CoordinatorProcess
from tests.harness.databases import on_servers
from tests.harness.rows_of_0_1_0 import config, moved
from tests.harness.transactions import found, recorded, transaction

FIRST_TABLES: Final = {"calls", "hung_branches", "participants", "transaction_participants", "transactions"}


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    made = make_engine(database_url)
    yield made
    made.dispose()


def revisions() -> list[str]:
    """All revisions, the oldest first."""
    return [script.revision for script in ScriptDirectory.from_config(config()).walk_revisions()][::-1]


def tables(engine: Engine) -> set[str]:
    return set(inspect(engine).get_table_names()) - {"alembic_version"}


def test_from_nothing_to_the_newest_schema_and_again(database_url: str, engine: Engine) -> None:
    assert found(engine, schema_fault)
    migrate(database_url)
    assert found(engine, schema_fault) is None
    recorded(engine, transaction(1))
    migrate(database_url)
    assert found(engine, transactions.find, transaction(1).id) == transaction(1)


def test_the_newest_schema_is_what_the_models_say(database_url: str, engine: Engine) -> None:
    migrate(database_url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []
    assert tables(engine) == set(metadata.tables)


def test_indexes_and_constraints_are_those_that_the_models_give(database_url: str, engine: Engine) -> None:
    moved(engine, "head")
    migrated = indexes(engine)
    moved(engine, "base")
    with engine.execution_options(holdfast_writes=True).begin() as connection:
        metadata.create_all(connection)
    assert migrated == indexes(engine)
    for name, table in metadata.tables.items():
        assert {index.name for index in table.indexes} <= migrated.keys()
        has_name = inspect(engine).get_pk_constraint(name)["name"]
        assert has_name in (table.primary_key.name, None)  # on MySQL it has no name


def indexes(engine: Engine) -> dict[str, str]:
    """What the database says of each index: its columns, and of which rows it is."""
    query = "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"
    if engine.dialect.name == "postgresql":
        query = (
            "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename <> 'alembic_version'"
        )
    if engine.dialect.name == "mysql":
        query = (
            "SELECT index_name, group_concat(column_name, non_unique ORDER BY seq_in_index) "
            "FROM information_schema.statistics WHERE table_schema = database() "
            "AND table_name <> 'alembic_version' AND index_name <> 'PRIMARY' GROUP BY index_name, table_name"
        )
    with engine.connect() as connection:
        return {name: " ".join(sql.split()) for name, sql in connection.execute(text(query))}


def test_on_postgresql_the_indexes_are_vacuumed_often(postgres_url: str) -> None:
    migrate(postgres_url)
    engine = make_engine(postgres_url)
    with engine.connect() as connection:
        query = text("SELECT reloptions FROM pg_class WHERE relname = 'transactions'")
        options = connection.execute(query).scalar_one()
    engine.dispose()
    assert options == ["autovacuum_vacuum_scale_factor=0.05", "vacuum_index_cleanup=on"]


def test_records_that_a_person_resolved_are_known_after_the_migration(database_url: str, engine: Engine) -> None:
    moved(engine, "0001")
    columns = "id, version, phase, decision, try_order, created_at, deadline, decided_at, definition, state"
    with engine.execution_options(holdfast_writes=True).begin() as connection:
        for id_, state in (("kept", '{"branches":[{"resolution":{"at":7}}]}'), ("plain", '{"branches":[]}')):
            values = {"id": id_, "state": state}
            row = ":id, 1, 'confirmed', 'confirm', 'parallel', 1, 2, 3, '{}', :state"
            connection.execute(text(f"INSERT INTO transactions ({columns}) VALUES ({row})"), values)
    migrate(database_url)
    with engine.connect() as connection:
        kept = connection.execute(text("SELECT id FROM transactions WHERE resolved_at IS NOT NULL")).scalars().all()
    assert kept == ["kept"]


def test_records_that_ended_mixed_are_known_after_the_migration(database_url: str, engine: Engine) -> None:
    moved(engine, "0002")
    columns = "id, version, phase, decision, try_order, created_at, deadline, decided_at"
    both = '{"branches":[{"phase":"confirmed"},{"resolution":{"settled":"%s"}}]}'
    rows = [
        ("against", "confirmed", 4, 5, both % "cancelled"),
        ("as decided", "confirmed", 4, 5, both % "confirmed"),
        ("a result only", "confirmed", 4, 5, '{"branches":[{"result":{"resolution":{"settled":"cancelled"}}}]}'),
        ("not finished", "confirming", None, 5, both % "cancelled"),
        ("nobody resolved", "confirmed", 4, None, '{"branches":[{"phase":"confirmed"}]}'),
        ("unreadable", "cancelled", 4, 5, "{"),
        ("against, too", "cancelled", 4, 5, both % "confirmed"),
    ]
    with engine.execution_options(holdfast_writes=True).begin() as connection:
        for id_, phase, finished_at, resolved_at, state in rows:
            row = ":id, 1, :phase, 'confirm', 'parallel', 1, 2, 3, :finished_at, :resolved_at, '{}', :state"
            values = {"id": id_, "phase": phase, "state": state, "finished_at": finished_at, "resolved_at": resolved_at}
            into = f"INSERT INTO transactions ({columns}, finished_at, resolved_at, definition, state)"
            connection.execute(text(f"{into} VALUES ({row})"), values)
    migrate(database_url)
    with engine.connect() as connection:
        mixed = connection.execute(text("SELECT id FROM transactions WHERE is_mixed IS NOT NULL ORDER BY id"))
        assert mixed.scalars().all() == ["against", "against, too"]


@pytest.mark.parametrize("steps", range(1, len(revisions())))
def test_some_steps_down_and_up_again(database_url: str, engine: Engine, steps: int) -> None:
    migrate(database_url)
    migrated = indexes(engine)
    recorded(engine, transaction(1))
    moved(engine, f"-{steps}")
    migrate(database_url)
    assert indexes(engine) == migrated
    assert found(engine, transactions.find, transaction(1).id) == transaction(1)


def test_down_and_up_again(database_url: str, engine: Engine) -> None:
    migrate(database_url)
    moved(engine, "base")
    assert tables(engine) == set()
    assert found(engine, schema_fault)
    migrate(database_url)
    assert tables(engine) == set(metadata.tables)
    assert found(engine, schema_fault) is None


def test_an_older_schema_is_not_current(database_url: str, engine: Engine) -> None:
    for revision in revisions()[:-1]:
        moved(engine, revision)
        assert found(engine, schema_fault), revision
    migrate(database_url)
    changed(engine, "UPDATE alembic_version SET version_num = '0000'")
    assert "python -m app migrate" in found(engine, schema_fault)


def changed(engine: Engine, *statements: str) -> None:
    with engine.execution_options(holdfast_writes=True).begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


# --- upgrades without a gap -----------------------------------------------------------------------------------------

NEXT: Final = (
    "ALTER TABLE transactions ADD COLUMN of_the_next_version INTEGER",
    "UPDATE alembic_version SET version_num = '9999'",
)
"""What the migration of a version to come does."""
FINISHED: Final = "UPDATE compatibility SET compatible_from = '9999'"
"""What finishing that upgrade does."""


def test_a_new_database_is_finished_at_once(database_url: str, engine: Engine) -> None:
    assert migrate(database_url)
    assert compatible_from(engine) == revisions()[-1]


def compatible_from(engine: Engine) -> str:
    with engine.connect() as connection:
        return str(connection.execute(text("SELECT compatible_from FROM compatibility")).scalar_one())


async def test_this_version_goes_on_after_the_next_one_has_migrated(database_url: str, engine: Engine) -> None:
    """And can be restarted, until the upgrade is finished."""
    migrate(database_url)
    changed(engine, *NEXT)
    assert found(engine, schema_fault) is None
    assert migrate(database_url), "there is nothing to do"
    for number in range(2):
        async with running(database_url) as service:
            await service.register("inventory")
            begun = await service.begin({"reference": str(number), "branches": [{"participant": "inventory"}]})
            assert begun.status_code == 201
            assert await service.json("/readyz") == {"status": "ready"}
    changed(engine, FINISHED)
    assert "Run that version" in found(engine, schema_fault)
    for refused in (migrate, finish):
        with pytest.raises(NotMigratedError, match="Run that version"):
            refused(database_url)
    with pytest.raises((SchemaOutdatedError, NotMigratedError), match="Run that version"):
        async with running(database_url):
            pass


@on_servers
def test_an_upgrade_is_finished_on_command(
    database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOLDFAST_DATABASE_URL", database_url)
    moved(engine, revisions()[-2])
    assert main(["migrate", "--finish"]) == 1
    assert "needs a migration" in capsys.readouterr().err
    assert main(["migrate"]) == 0
    before = "UPDATE compatibility SET compatible_from = '0001'"  # as if the version before could run on this schema
    changed(engine, before)
    assert not migrate(database_url)
    assert compatible_from(engine) == "0001"
    assert main(["migrate", "--finish"]) == 0
    assert compatible_from(engine) == revisions()[-1]
    assert main(["migrate", "--finish"]) == 0, "once more does no harm"


def test_sqlite_finishes_by_itself(sqlite_url: str) -> None:
    migrate(sqlite_url)
    engine = make_engine(sqlite_url)
    changed(engine, "UPDATE compatibility SET compatible_from = '0001'")
    assert migrate(sqlite_url)
    assert compatible_from(engine) == revisions()[-1]
    engine.dispose()


def test_only_the_version_that_migrated_finishes(database_url: str, engine: Engine) -> None:
    migrate(database_url)
    changed(engine, *NEXT)
    with pytest.raises(NotMigratedError, match="finish the upgrade with that version"):
        finish(database_url)
    assert compatible_from(engine) == revisions()[-1]


def migrate_into_an_obstacle(database_url: str, engine: Engine) -> None:
    with engine.execution_options(holdfast_writes=True).begin() as connection:
        connection.exec_driver_sql(
            "CREATE TABLE transactions (id INTEGER)"
        )  # in the way of the first schema's last table
    with pytest.raises(Exception, match="already exists"):
        migrate(database_url)
    assert found(engine, schema_fault)


@pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)
def test_a_migration_that_fails_leaves_nothing_half_done(database_url: str, engine: Engine) -> None:
    migrate_into_an_obstacle(database_url, engine)
    assert tables(engine) == {"transactions"}


@pytest.mark.parametrize("database_url", ["mariadb"], indirect=True)
def test_where_each_statement_commits_what_was_half_done_is_dropped_by_hand(database_url: str, engine: Engine) -> None:
    migrate_into_an_obstacle(database_url, engine)
    assert tables(engine) == FIRST_TABLES
    with pytest.raises(Exception, match="already exists"):
        migrate(database_url)
    with engine.begin() as connection:
        for name in tables(engine):
            connection.exec_driver_sql(f"DROP TABLE {name}")
    migrate(database_url)
    assert found(engine, schema_fault) is None


@on_servers
def test_several_that_migrate_at_once_wait_for_each_other(database_url: str, engine: Engine) -> None:
    made = [CoordinatorProcess({"HOLDFAST_DATABASE_URL": database_url}, command="migrate") for _ in range(2)]
    for process in made:
        process.launch()
    assert [process.wait_end() for process in made] == [0, 0], [process.log for process in made]
    assert found(engine, schema_fault) is None


@pytest.mark.parametrize("database_url", ["mariadb"], indirect=True)
def test_on_mysql_every_text_is_exact_and_every_document_long(database_url: str, engine: Engine) -> None:
    migrate(database_url)
    columns = "column_name, collation_name, data_type FROM information_schema.columns"
    with engine.connect() as connection:
        found_ = connection.exec_driver_sql(
            f"SELECT table_name, {columns} WHERE table_schema = DATABASE() AND character_set_name IS NOT NULL"
        ).all()
    assert len(found_) > 20
    for table, column, collation, kind in found_:
        if table != "alembic_version":
            expected = ("varchar", "utf8mb4_nopad_bin") if kind == "varchar" else ("longtext", "utf8mb4_bin")
            assert (kind, collation) == expected, f"{table}.{column}"
