"""The system under test as processes: PostgreSQL, replicas of the coordinator, participants, and the clients.

Starts, signals and watches them; decides nothing about when. Settings go through the environment, as users set them.
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Final, Self

import httpx

from tests.chaos import ledger
from tests.chaos.participant import Config
from tests.support.postgres import PostgresError, PostgresServer
from tests.support.repository import ROOT

LEASE_S: Final = 2.5
PARTICIPANTS: Final = ("north", "south", "west")
START_MAX_S: Final = 180.0
"""How long processes may take to start on a machine that is busy with other things."""
STOP_MAX_S: Final = 30.0
"""A process that was asked to stop and is there after so long is stuck."""

SETTINGS: Final = {
    "LEASE_S": str(LEASE_S),
    "CALL_TIMEOUT_S": "1.5",
    "RETRY_BASE_S": "0.1",
    "RETRY_CAP_S": "1",
    "HOLD_MARGIN_S": "3",
    "HUNG_AFTER_S": "10",
    "SHUTDOWN_TIMEOUT_S": "3",
}
_PORTS: Final = range(20_000, 32_000)  # below those that the kernel gives to outgoing connections
READY: Final = b"running on http"
"""What each process writes when it is at work."""
# No process may outlive a run that was killed: on Linux the kernel kills it when its parent ends.
_LAUNCHER: Final = """
import ctypes, os, signal, sys
parent_id, *command = sys.argv[1:]
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != int(parent_id):
        sys.exit("the process that wanted this one has ended")
os.execv(command[0], command)
"""


class Process:
    """A program that is started again and again with one command; `lives` counts how often."""

    def __init__(self, name: str, log: Path, environment: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.log = log
        self.lives = 0
        self.frozen = False
        self.wanted = False
        """Whether it should be there: one that ends by itself is then started again."""
        self._log_seen = 0
        self._is_ready = False
        self._environment = environment or {}
        self._popen: subprocess.Popen[bytes] | None = None

    @property
    def alive(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    @property
    def running(self) -> bool:
        return self.alive and not self.frozen

    @property
    def ready(self) -> bool:
        """Whether it runs and has said in this life that it is at work."""
        if not self._is_ready:
            with self.log.open("rb") as log:
                log.seek(self._log_seen)
                self._is_ready = READY in log.read()
        return self._is_ready and self.running

    @property
    def status(self) -> int | None:
        return None if self._popen is None else self._popen.poll()

    def command(self) -> Sequence[str]:
        raise NotImplementedError

    def start(self) -> None:
        """Start it and don't wait: whoever talks to it finds out when it is ready."""
        assert not self.alive, f"{self.name} is there already"
        self.lives += 1
        self.frozen, self.wanted = False, True
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}
        with self.log.open("ab") as output:
            self._log_seen, self._is_ready = output.tell(), False
            self._popen = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), sys.executable, *self.command()],
                cwd=ROOT,
                env=inherited | {"PYTHONPATH": str(ROOT)} | dict(self._environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def send(self, what: signal.Signals) -> None:
        if self.alive:
            assert self._popen is not None
            self._popen.send_signal(what)

    def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        self.wanted = False
        self.send(signal.SIGKILL)
        self.wait_end(STOP_MAX_S)
        self.frozen = False

    def freeze(self) -> None:
        self.send(signal.SIGSTOP)
        self.frozen = True

    def thaw(self) -> None:
        self.send(signal.SIGCONT)
        self.frozen = False

    def wait_end(self, timeout_s: float) -> bool:
        """Whether it has ended within that time."""
        if self._popen is None:
            return True
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(timeout_s)
        return not self.alive


class Replica(Process):
    """One coordinator: `python -m app serve` on the database that all replicas share."""

    def __init__(self, number: int, port: int, folder: Path, settings: Mapping[str, str]) -> None:
        prefixed = {f"HOLDFAST_{name}": value for name, value in settings.items()} | {"HOLDFAST_PORT": str(port)}
        super().__init__(f"replica-{number}", folder / f"replica-{number}.log", prefixed)
        self.url = f"http://127.0.0.1:{port}"

    def command(self) -> Sequence[str]:
        return ["-m", "app", "serve"]


class ParticipantProcess(Process):
    """One participant with a database of its own."""

    def __init__(self, config: Config) -> None:
        super().__init__(config.name, Path(config.folder) / f"{config.name}.log")
        self.config = config
        self.base_url = f"http://127.0.0.1:{config.port}/tcc"

    def command(self) -> Sequence[str]:
        return ["-m", "tests.chaos.participant", json.dumps(asdict(self.config) | {"life": self.lives})]


class Clients(Process):
    """The load; SIGTERM lets it end what it has begun."""

    def __init__(self, folder: Path, arguments: Mapping[str, object]) -> None:
        super().__init__("clients", folder / "clients.log")
        self._arguments = arguments

    def command(self) -> Sequence[str]:
        return ["-m", "tests.chaos.load", json.dumps(self._arguments)]


class World:
    """Everything that runs; nothing is left of it on exit but the files in `folder`."""

    def __init__(self, folder: Path, *, replicas: int, clients: int, seed: str) -> None:
        self.folder = folder
        self._replica_count = replicas
        self._client_count = clients
        self._seed = seed
        self._stack = ExitStack()
        self.faults_file = folder / "faults-on"
        self.replicas: list[Replica] = []
        self.participants: list[ParticipantProcess] = []

    def __enter__(self) -> Self:
        try:
            self._enter()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def processes(self) -> list[Process]:
        return [*self.replicas, *self.participants]

    def _enter(self) -> None:
        # The server dies with the thread that started it, so that thread stays until the server is gone.
        self._starter = self._stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="postgres-start"))
        self.postgres = self._stack.enter_context(PostgresServer(durable=True))
        self._stack.callback(self._kill_all)
        database_url = self.postgres.create_database()
        ports = _free_ports(self._replica_count + len(PARTICIPANTS))
        replica_ports = ports[: self._replica_count]
        for name, port in zip(PARTICIPANTS, ports[self._replica_count :], strict=True):
            config = self._participant(name, port, replica_ports)
            engine = ledger.open_database(config.database_url)
            ledger.prepare(engine)
            engine.dispose()
            self.participants.append(ParticipantProcess(config))
        settings = SETTINGS | {
            "DATABASE_URL": database_url,
            "PARTICIPANTS": json.dumps({each.name: each.base_url for each in self.participants}),
        }
        self.replicas = [Replica(number, port, self.folder, settings) for number, port in enumerate(replica_ports)]
        _migrate(database_url)
        self.faults_file.touch()
        for process in self.processes:
            process.start()
        for replica in self.replicas:
            wait_ready(replica, START_MAX_S)
        self.clients = Clients(
            self.folder,
            {
                "folder": str(self.folder),
                "seed": self._seed,
                "clients": self._client_count,
                "urls": [replica.url for replica in self.replicas],
                "participants": PARTICIPANTS,
                "accounts": ledger.ACCOUNTS,
            },
        )

    def _participant(self, name: str, port: int, replica_ports: list[int]) -> Config:
        """The last one is on PostgreSQL, and crashes with it; the first holds for less than it is asked to."""
        on_postgres = name == PARTICIPANTS[-1]
        return Config(
            name=name,
            port=port,
            life=0,
            seed=self._seed,
            folder=str(self.folder),
            database_url=self.postgres.create_database() if on_postgres else f"sqlite:///{self.folder / name}.db",
            replica_ports=replica_ports,
            hold_ttl_max_s=6.0 if name == PARTICIPANTS[0] else None,
        )

    def crash_postgres(self) -> None:
        self.postgres.stop("immediate")

    def start_postgres(self) -> Future[None]:
        """Start it again; its recovery takes seconds, in which other things may happen."""
        return self._starter.submit(self._start_postgres)

    def _start_postgres(self) -> None:
        """Somebody's outgoing connection may have its port for a moment."""
        for attempt in range(5):
            try:
                return self.postgres.start()
            except PostgresError:
                if attempt == 4:
                    raise
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _kill_all(self) -> None:
        for process in [*self.processes, *([self.clients] if hasattr(self, "clients") else [])]:
            process.kill()


def wait_ready(replica: Replica, timeout_s: float) -> None:
    """Return when the replica says that it is ready. Fails with the end of its log."""
    until = time.monotonic() + timeout_s
    with httpx.Client() as client:
        while time.monotonic() < until:
            with suppress(httpx.TransportError):
                if client.get(f"{replica.url}/readyz", timeout=2.0).status_code == 200:
                    return
            with suppress(subprocess.TimeoutExpired):
                replica.wait_end(0.1)
    raise AssertionError(f"{replica.name} is not ready:\n{replica.log.read_text()[-3000:]}")


def _migrate(database_url: str) -> None:
    environment = os.environ | {"HOLDFAST_DATABASE_URL": database_url, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", "app", "migrate"], cwd=ROOT, env=environment, check=True, capture_output=True)


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now; asked for together, so that no two are the same."""
    with ExitStack() as stack:
        found: list[int] = []
        for port in random.sample(_PORTS, len(_PORTS)):
            probe = stack.enter_context(socket.socket())
            with suppress(OSError):
                probe.bind(("127.0.0.1", port))
                found.append(port)
            if len(found) == count:
                return found
    raise AssertionError("no free ports")
