"""Alembic's autogenerate beside the SDK: it drops nothing, and what it writes runs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import alembic
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import Script
from sqlalchemy import Column, Connection, Engine, Integer, MetaData, Table, create_engine, inspect, text

from holdfast import Participant
from holdfast.autogenerate import include_object, render_item
from holdfast.fence.rows import ADDED, TABLE_NAME
from holdfast.testing import FakeCoordinator
from tests.harness.databases import on_servers

TEMPLATES = Path(alembic.__file__).parent / "templates" / "generic"
HOOKS: dict[str, Any] = {"include_object": include_object, "render_item": render_item, "compare_type": True}


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = create_engine(database_url)
    yield engine
    engine.dispose()


def shop() -> MetaData:
    metadata = MetaData()
    Table("shows", metadata, Column("id", Integer, primary_key=True))
    return metadata


ENV = """
from alembic import context
from holdfast.autogenerate import include_object, render_item

given = context.config.attributes
context.configure(
    connection=given["connection"],
    target_metadata=given["metadata"],
    include_object=include_object,
    render_item=render_item,
)
with context.begin_transaction():
    context.run_migrations()
"""


def configured(connection: Connection, **options: Any) -> MigrationContext:
    return MigrationContext.configure(connection, opts=options)


def upgrade(connection: Connection, metadata: MetaData, tmp_path: Path) -> str:
    """Autogenerate a migration with Alembic's own commands, and run it; its source."""
    config = Config()
    config.set_main_option("script_location", str(tmp_path))
    config.attributes.update(connection=connection, metadata=metadata)
    (tmp_path / "versions").mkdir(exist_ok=True)
    (tmp_path / "env.py").write_text(ENV)
    (tmp_path / "script.py.mako").write_bytes((TEMPLATES / "script.py.mako").read_bytes())
    script = command.revision(config, message="made", autogenerate=True)
    assert isinstance(script, Script)
    command.upgrade(config, "head")
    return Path(script.path).read_text()


async def test_a_table_that_the_sdk_made_is_not_dropped(engine: Engine) -> None:
    metadata = shop()
    participant = Participant("seats", engine, coordinator_url="http://coordinator")
    await participant.create_table()
    with engine.begin() as connection:
        metadata.create_all(connection)
        without = compare_metadata(configured(connection), metadata)
        assert TABLE_NAME in str(without), "or this test shows nothing"
        assert compare_metadata(configured(connection, **HOOKS), metadata) == []


async def test_a_table_of_the_service_is_made_by_its_migration_once(engine: Engine, tmp_path: Path) -> None:
    metadata = shop()
    participant = Participant("seats", engine, coordinator_url="http://coordinator", metadata=metadata)
    with engine.begin() as connection:
        source = upgrade(connection, metadata, tmp_path)
        assert "import holdfast.columns" in source
    with engine.begin() as connection:
        assert {"shows", TABLE_NAME} <= set(inspect(connection).get_table_names())
        assert compare_metadata(configured(connection, **HOOKS), metadata) == []
    assert await participant._database.missing_columns(participant.table) == ()


async def test_the_new_columns_are_added_by_a_migration(engine: Engine, tmp_path: Path) -> None:
    metadata = shop()
    participant = Participant("seats", engine, coordinator_url="http://coordinator", metadata=metadata)
    with engine.begin() as connection:
        metadata.create_all(connection)
        for name in ADDED:
            connection.execute(text(f"ALTER TABLE {TABLE_NAME} DROP COLUMN {name}"))
    assert await participant._database.missing_columns(participant.table) == ADDED
    with engine.begin() as connection:
        upgrade(connection, metadata, tmp_path)
    assert await participant._database.missing_columns(participant.table) == ()


def test_participants_share_a_metadata_that_has_a_schema(sqlite_url: str) -> None:
    engine, metadata = create_engine(sqlite_url), MetaData(schema="shop")
    seats, meals = (
        Participant(name, engine, coordinator_url="http://coordinator", metadata=metadata)
        for name in ("seats", "meals")
    )
    assert seats.table is meals.table
    assert seats.table.fullname == "shop.holdfast_branches"
    engine.dispose()


@on_servers
async def test_participants_that_share_a_schema_hold_and_confirm(engine: Engine) -> None:
    schema = engine.url.database
    if engine.dialect.name == "postgresql":
        schema = "shop"
        with engine.begin() as connection:
            connection.execute(text("CREATE SCHEMA shop"))
    metadata = MetaData(schema=schema)
    for name in ("seats", "meals"):
        participant = Participant(name, engine, coordinator_url="http://coordinator", metadata=metadata)
        participant.on_try(lambda hold, session: None)
        await participant.create_table()
        async with participant.lifespan(), FakeCoordinator(participant) as coordinator:
            branch = coordinator.branch()
            assert (await branch.try_()).ok
            assert (await branch.confirm()).ok
    assert inspect(engine).has_table(TABLE_NAME, schema=schema)


def test_the_users_own_tables_are_left_to_alembic() -> None:
    table = Table("shows", MetaData())
    assert include_object(table, "shows", "table", True, None)
    assert include_object(table, TABLE_NAME, "table", True, table), "it is in the service's metadata"
    assert include_object(None, TABLE_NAME, "index", True, None)
    assert render_item("type", Integer(), None) is False
