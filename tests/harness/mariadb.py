"""A real MariaDB server for tests, started from the binaries that the machine has.

Needs Debian's packages, or others that bring `mariadbd` and `mariadb-install-db`, and no root. It listens on a free
loopback port, keeps its data in a temporary directory of its own and dies with the process that started it; the
system's own server is left alone. Whoever asks for a database gets an empty one.

    with MariadbServer() as server:
        url = server.create_database()   # mysql+pymysql://...
        server.crash_and_start()         # kill -9, and recovery from the log; the URL stays valid
"""

import functools
import os
import shutil
import signal
import subprocess
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Final

import pymysql

from tests.harness.database_server import DatabaseServer
from tests.harness.server_process import ServerError, temporary_home

_USER: Final = "root"
_PATH: Final = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"

PACKAGES: Final = "mariadb-server galera-4 rsync"


class MariadbError(ServerError):
    """The server could not be started or did not stop; the message ends with the last lines of its log."""


def why_no_mariadb() -> str | None:
    """What to install, when this machine can't run a MariaDB server."""
    missing = [name for name in ("mariadbd", "mariadb-install-db") if program(name) is None]
    return f"no {' and no '.join(missing)} on this machine: apt-get install {PACKAGES}" if missing else None


@functools.cache
def server_version() -> str:
    """What `mariadbd --version` says, such as "10.11.19-MariaDB"."""
    command = [str(program("mariadbd")), "--no-defaults", "--version"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("Ver ")[1].split()[0]


def program(name: str) -> Path | None:
    """Where a program is, if it is."""
    found = shutil.which(name, path=_PATH)
    return None if found is None else Path(found)


class MariadbServer(DatabaseServer):
    """One server, as DatabaseServer says."""

    name = "MariaDB"
    ready_line = "mariadbd: ready for connections"
    port_taken = "Address already in use"
    error = MariadbError
    stop_signal = signal.SIGTERM
    crash_signal = signal.SIGKILL

    def __init__(self, *, connections_max: int = 500) -> None:
        super().__init__()
        self._connections_max = connections_max

    def prepare(self) -> None:
        if missing := why_no_mariadb():
            raise MariadbError(missing)
        self.home = temporary_home("holdfast-mariadb-")
        os.chown(self.home, *self._identity)
        options = ["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db", "--debug-no-sync"]
        directories = [f"--datadir={self.data}", f"--tmpdir={self.home}"]
        install = [str(program("mariadb-install-db")), *options, *directories]
        self._run_to_its_end(["/bin/sh", *install], failed="mariadb-install-db")

    def url(self, database: str) -> str:
        """The SQLAlchemy URL of a database on this server. Without TLS: half of the time of a connection goes there."""
        return f"mysql+pymysql://{_USER}@127.0.0.1:{self.port}/{database}?ssl_disabled=true"

    def create_database(self) -> str:
        """Create an empty database with a name of its own; returns its URL.

        Its defaults are what no Holdfast table may take over: text that compares without regard to case or accents,
        in a character set that is too small.
        """
        name = f"test_{uuid.uuid4().hex}"
        self.execute(f"CREATE DATABASE {name} CHARACTER SET latin1 COLLATE latin1_swedish_ci")
        return self.url(name)

    def drop_database(self, url: str) -> None:
        name = url.partition("?")[0].rpartition("/")[2]
        for (connection_id,) in self.execute(f"SELECT id FROM information_schema.processlist WHERE db = '{name}'"):
            with suppress(pymysql.err.OperationalError):  # it has gone by itself
                self.execute(f"KILL {connection_id}")
        self.execute(f"DROP DATABASE {name}")

    def ordinary_url(self, url: str) -> str:
        """Administrators may write whatever `read_only` says."""
        name = url.partition("?")[0].rpartition("/")[2]
        self.execute(f"GRANT ALL ON {name}.* TO ordinary@'%' IDENTIFIED BY 'ordinary'")
        return url.replace(f"//{_USER}@", "//ordinary:ordinary@")

    def only_reads(self, on: bool) -> None:
        self.execute(f"SET GLOBAL read_only = {int(on)}")

    def execute(self, statement: str) -> tuple[tuple[object, ...], ...]:
        """Run one statement outside any database, as the administrator; returns its rows."""
        with self.connect() as connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return tuple(cursor.fetchall())

    def connect(self) -> pymysql.Connection:
        """A connection of the administrator's, outside any database; each statement is a transaction of its own."""
        return pymysql.connect(
            host="127.0.0.1", port=self.port, user=_USER, autocommit=True, connect_timeout=10, ssl_disabled=True
        )

    def _server_command(self) -> list[str | Path]:
        settings = {
            "datadir": self.data,
            "tmpdir": self.home,  # a server that starts removes what others have left in its own
            "bind-address": "127.0.0.1",
            "port": self.port,
            "socket": self.data / "socket",
            "pid-file": self.data / "pid",
            "max-connections": self._connections_max,
            "performance-schema": "OFF",
            "innodb-buffer-pool-size": "64M",
            "innodb-log-file-size": "32M",
            "innodb-flush-log-at-trx-commit": 2,  # what was committed outlives the process, if not a power cut
        }
        server = program("mariadbd")
        assert server is not None
        return [
            server,
            "--no-defaults",
            "--skip-name-resolve",
            "--skip-log-bin",
            "--debug-no-sync",
            *(f"--{name}={value}" for name, value in settings.items()),
        ]
