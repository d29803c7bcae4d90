"""The MariaDB server that tests stand on does what they take for granted."""

import pytest
from sqlalchemy import create_engine, make_url, text

from tests.harness import mariadb
from tests.harness.databases import rows
from tests.harness.mariadb import MariadbError, MariadbServer, why_no_mariadb


def test_a_new_database_has_the_defaults_that_no_table_may_take_over(mariadb_url: str) -> None:
    assert rows(mariadb_url, "SELECT @@collation_database, @@tx_isolation") == [
        ("latin1_swedish_ci", "REPEATABLE-READ"),
    ]


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


def test_without_the_programs_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mariadb, "_PATH", "/nowhere")
    assert str(why_no_mariadb()).endswith("apt-get install mariadb-server galera-4 rsync")
    with pytest.raises(MariadbError, match="no mariadbd and no mariadb-install-db"):
        MariadbServer().__enter__()
