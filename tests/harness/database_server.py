"""What all database servers of the tests have in common: a home, a port, an end, and databases to be had.

Which programs make one, and with which settings, is said by each kind (postgres.py, mariadb.py).
"""

import shutil
import signal
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Final, Self

from tests.harness.server_process import ServerError, ServerProcess, free_port, unprivileged_user

START_TIMEOUT_S: Final = 60.0
START_ATTEMPTS_MAX: Final = 5


class DatabaseServer(ABC):
    """One server: started on entry, stopped and removed on exit, whatever happens in between."""

    name: ClassVar[str]
    ready_line: ClassVar[str]
    """What the server writes when it accepts connections, …"""
    port_taken: ClassVar[str]
    """… and when another process has its port."""
    error: ClassVar[type[ServerError]]
    stop_signal: ClassVar[signal.Signals]
    """Disconnects clients, and shuts down cleanly."""
    crash_signal: ClassVar[signal.Signals]
    """What a power cut looks like; the next start recovers from the log."""

    def __init__(self) -> None:
        self._identity = unprivileged_user()
        self.home: Path | None = None
        self._process: ServerProcess | None = None
        self.port = 0

    def __enter__(self) -> Self:
        try:
            self.prepare()
            self._start_somewhere()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.crash()
        finally:
            if self.home is not None:
                shutil.rmtree(self.home, ignore_errors=True)
                self.home = None

    @abstractmethod
    def prepare(self) -> None:
        """Make the home and the system's tables; whoever calls this starts the server, and exits."""

    @abstractmethod
    def create_database(self) -> str:
        """Create an empty database with a name of its own; returns its URL."""

    @abstractmethod
    def drop_database(self, url: str) -> None:
        """Drop a database of `create_database`, cutting off whoever is still connected to it."""

    @abstractmethod
    def ordinary_url(self, url: str) -> str:
        """A URL of the same database for a user whom `only_reading` concerns, too."""

    @abstractmethod
    def only_reads(self, on: bool) -> None:
        """Have the server refuse writes, as one that was demoted; connections stay."""

    @contextmanager
    def only_reading(self) -> Iterator[None]:
        """Refuses writes until the end. PostgreSQL tells its connections a moment later."""
        self.only_reads(True)
        try:
            yield
        finally:
            self.only_reads(False)

    @abstractmethod
    def _server_command(self) -> list[str | Path]: ...

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

    @property
    def data(self) -> Path:
        """The server's data directory."""
        assert self.home is not None, "use the server as a context manager"
        return self.home / "data"

    def start(self) -> None:
        """Start again, on the same port, after `stop`. Returns when connections are accepted."""
        self.launch()
        self.wait_ready()

    def launch(self, options: Sequence[str] = (), *, also_ready: str | None = None) -> None:
        """Start without waiting, with further options; it is ready when it has also written the line `also_ready`."""
        assert not self.running, "the server is running already"
        ready = (self.ready_line, also_ready or self.ready_line)
        self._process = self._run([*self._server_command(), *options], ready=ready)

    def wait_ready(self) -> None:
        """Return when the server that was launched is ready. Fails with its log when it isn't."""
        assert self._process is not None, "the server was never started"
        if not self._process.wait_ready(START_TIMEOUT_S):
            self._process.stop(signal.SIGKILL)
            raise self.error(f"{self.name} did not start on port {self.port}:\n{self.log}")

    def stop(self) -> None:
        """Stop the server; nothing happens when it is stopped already. Returns when it is gone."""
        if self._process is not None:
            self._process.stop(self.stop_signal)

    def crash(self) -> None:
        """Stop as in a power cut; what was committed is there after the next start."""
        if self._process is not None:
            self._process.stop(self.crash_signal)

    def crash_and_start(self) -> None:
        """What a crash of the database looks like from outside; the port stays."""
        self.crash()
        self.start()

    def _start_somewhere(self) -> None:
        """Start on a free port. Another process may take it between the choice and the bind: choose again."""
        for attempt in range(1, START_ATTEMPTS_MAX + 1):
            self.port = free_port()
            try:
                return self.start()
            except ServerError:
                if attempt == START_ATTEMPTS_MAX or self.port_taken not in self.log:
                    raise
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _run_to_its_end(self, command: list[str | Path], *, failed: str) -> None:
        """A program that makes the data directory."""
        process = self._run(command)
        if process.wait_end(START_TIMEOUT_S) != 0:
            process.stop(signal.SIGKILL)
            raise self.error(f"{failed} failed:\n{process.log}")

    def _run(self, command: list[str | Path], *, ready: tuple[str, ...] = ()) -> ServerProcess:
        return ServerProcess(
            command, self._identity, ready_lines=ready, at_parents_end=self.crash_signal, error=self.error
        )
