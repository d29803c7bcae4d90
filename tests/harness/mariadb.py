"""A real MariaDB server for tests, started from the binaries that the machine has.

Needs Debian's packages, or others that bring `mariadbd` and `mariadb-install-db`, and no root. It listens on a free
loopback port, keeps its data in a temporary directory of its own and dies with the process that started it; the
system's own server is left alone. Whoever asks for a database gets an empty one.

    with MariadbServer() as server:
        url = server.create_database()   # mysql+pymysql://...
        server.restart("crash")          # kill -9, and recovery from the log; the URL stays valid
"""

import functools
import os
import shutil
import signal
import subprocess
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal, Self

import pymysql

from tests.harness.server_process import (
    ServerError,
    ServerProcess,
    free_port,
    temporary_home,
    unprivileged_user,
)

StopMode = Literal["clean", "crash"]

_STOP_SIGNAL: Final[dict[StopMode, signal.Signals]] = {"clean": signal.SIGTERM, "crash": signal.SIGKILL}
_START_TIMEOUT_S: Final = 60.0
_START_ATTEMPTS_MAX: Final = 5
_READY: Final = "mariadbd: ready for connections"
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


class MariadbServer:
    """One server: started on entry, stopped and removed on exit, whatever happens in between."""

    def __init__(self, *, connections_max: int = 500) -> None:
        self._connections_max = connections_max
        self._identity = unprivileged_user()
        self.home: Path | None = None
        self._process: ServerProcess | None = None
        self.port = 0

    def __enter__(self) -> Self:
        self.prepare()
        try:
            self._start_somewhere()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop("crash")
        finally:
            if self.home is not None:
                shutil.rmtree(self.home, ignore_errors=True)
                self.home = None

    def prepare(self) -> None:
        """Make the home and the system's tables, and choose a port; whoever calls this starts the server, and exits."""
        if missing := why_no_mariadb():
            raise MariadbError(missing)
        self.home = temporary_home("holdfast-mariadb-")
        try:
            os.chown(self.home, *self._identity)
            self._initialise()
            self.port = free_port()
        except BaseException:
            self.__exit__()
            raise

    @property
    def running(self) -> bool:
        """Whether the server process is there."""
        return self._process is not None and self._process.alive

    @property
    def process_id(self) -> int:
        """The id of the server process that was started last."""
        assert self._process is not None, "the server was never started"
        return self._process.id

    @property
    def log(self) -> str:
        """The last lines that the server wrote."""
        return "" if self._process is None else self._process.log

    def start(self) -> None:
        """Start again, on the same port, after `stop`. Returns when connections are accepted."""
        self.launch()
        self.wait_ready()

    def launch(self, options: Sequence[str] = (), *, also_ready: str = _READY) -> None:
        """Start without waiting, with further options; it is ready when it has also written the line `also_ready`."""
        assert not self.running, "the server is running already"
        command = [*self._server_command(), *options]
        self._process = ServerProcess(command, self._identity, ready_lines=(_READY, also_ready), error=MariadbError)

    def wait_ready(self) -> None:
        """Return when the server that was launched is ready. Fails with its log when it isn't."""
        assert self._process is not None, "the server was never started"
        if not self._process.wait_ready(_START_TIMEOUT_S):
            self._process.stop(signal.SIGKILL)
            raise MariadbError(f"MariaDB did not start on port {self.port}:\n{self.log}")

    def stop(self, mode: StopMode = "clean") -> None:
        """Stop the server; nothing happens when it is stopped already. Returns when it is gone."""
        if self._process is not None:
            self._process.stop(_STOP_SIGNAL[mode])

    def crash(self) -> None:
        """Kill the server; what was committed is there after the next start."""
        self.stop("crash")

    def restart(self, mode: StopMode = "clean") -> None:
        """Stop and start on the same port; "crash" is kill -9, and recovery from the log."""
        self.stop(mode)
        self.start()

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
        """Drop a database of `create_database`, cutting off whoever is still connected to it."""
        name = url.partition("?")[0].rpartition("/")[2]
        for (connection_id,) in self.execute(f"SELECT id FROM information_schema.processlist WHERE db = '{name}'"):
            with suppress(pymysql.err.OperationalError):  # it has gone by itself
                self.execute(f"KILL {connection_id}")
        self.execute(f"DROP DATABASE {name}")

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

    def _initialise(self) -> None:
        options = ["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db", "--debug-no-sync"]
        directories = [f"--datadir={self.data}", f"--tmpdir={self.home}"]
        install = [str(program("mariadb-install-db")), *options, *directories]
        process = ServerProcess(["/bin/sh", *install], self._identity, error=MariadbError)
        if process.wait_end(_START_TIMEOUT_S) != 0:
            process.stop(signal.SIGKILL)
            raise MariadbError(f"mariadb-install-db failed:\n{process.log}")

    def _start_somewhere(self) -> None:
        """Start on a free port. Another process may take it between the choice and the bind: choose again."""
        for attempt in range(1, _START_ATTEMPTS_MAX + 1):
            try:
                return self.start()
            except MariadbError:
                if attempt == _START_ATTEMPTS_MAX or "Address already in use" not in self.log:
                    raise
                self.port = free_port()
        raise AssertionError("unreachable: the last attempt returns or raises")

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

    @property
    def data(self) -> Path:
        """The server's data directory."""
        assert self.home is not None, "use the server as a context manager"
        return self.home / "data"
