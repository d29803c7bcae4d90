"""The MariaDB server that tests stand on does what they take for granted."""

import os
import select
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import OperationalError

from tests.harness import mariadb
from tests.harness.mariadb import MariadbError, MariadbServer, why_no_mariadb
from tests.harness.test_postgres import rows


def test_a_new_database_has_the_defaults_that_no_table_may_take_over(mariadb_url: str) -> None:
    assert rows(mariadb_url, "SELECT @@collation_database, @@tx_isolation") == [
        ("latin1_swedish_ci", "REPEATABLE-READ"),
    ]


def test_committed_rows_survive_a_crash_and_the_url_stays_valid(
    mariadb_server: MariadbServer, mariadb_url: str
) -> None:
    rows(mariadb_url, "CREATE TABLE kept (id integer)")
    rows(mariadb_url, "INSERT INTO kept VALUES (1)")
    mariadb_server.restart("crash")
    assert rows(mariadb_url, "SELECT id FROM kept") == [(1,)]


def test_stopped_means_refused(mariadb_server: MariadbServer, mariadb_url: str) -> None:
    mariadb_server.stop()
    assert not mariadb_server.running
    with pytest.raises(OperationalError, match="refused"):
        rows(mariadb_url, "SELECT 1")


def test_a_database_goes_although_someone_is_in_the_middle_of_something(mariadb_server: MariadbServer) -> None:
    url = mariadb_server.create_database()
    rows(url, "CREATE TABLE t (id integer)")
    engine = create_engine(url)
    with engine.connect() as connection:
        connection.execute(text("INSERT INTO t VALUES (1)"))
        mariadb_server.drop_database(url)
        connection.invalidate()
    engine.dispose()
    assert (make_url(url).database,) not in mariadb_server.execute("SHOW DATABASES")


def test_servers_do_not_collide_and_leave_nothing(mariadb_server: MariadbServer) -> None:
    with MariadbServer() as other:
        home = other.home
        assert home is not None
        assert other.port != mariadb_server.port
        assert home.is_dir()
        other.stop()
        other.port = mariadb_server.port
        with pytest.raises(MariadbError, match="Address already in use"):
            other.start()
    assert not home.exists()
    assert not other.running


def test_without_the_programs_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mariadb, "_PATH", "/nowhere")
    assert str(why_no_mariadb()).endswith("apt-get install mariadb-server galera-4 rsync")
    with pytest.raises(MariadbError, match="no mariadbd and no mariadb-install-db"):
        MariadbServer().__enter__()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal on a parent's death is Linux's")
def test_the_server_ends_with_a_test_run_that_was_killed(mariadb_server: MariadbServer) -> None:
    assert mariadb_server.running, "there is a server to be had on this machine"
    script = (
        "import sys\n"
        "from tests.harness.mariadb import MariadbServer\n"
        "with MariadbServer() as server:\n"
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
