"""The system under test as processes: PostgreSQL, replicas of the coordinator, participants, and the clients.

Starts, signals and watches them; decides nothing about when. Settings go through the environment, as users set them.
"""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Self

from app.auth.api_keys import ApiKey
from tests.chaos.disks import Disk
from tests.chaos.forkserver import ForkServer
from tests.chaos.keys import KeyRotation
from tests.chaos.participant import Config
from tests.chaos.processes import (
    NAMES_FILE,
    Clients,
    OldReplica,
    ParticipantProcess,
    Process,
    Proxy,
    Replica,
    prefixed,
    wait_ready,
)
from tests.chaos.proxy import LinkPorts, Network, Place
from tests.chaos.replica import NAME
from tests.harness import ledger, old_code
from tests.harness.postgres import PostgresError, PostgresServer
from tests.harness.repository import ROOT

LEASE_S: Final = 2.5
PARTICIPANTS: Final = ("north", "south", "west")
START_MAX_S: Final = 180.0
"""How long processes may take to start on a machine that is busy with other things."""

SETTINGS: Final = {
    "LEASE_S": str(LEASE_S),
    "CALL_TIMEOUT_S": "1.5",
    "RETRY_BASE_S": "0.1",
    "RETRY_CAP_S": "2",
    "HOLD_MARGIN_S": "3",
    "HUNG_AFTER_S": "10",
    "SHUTDOWN_TIMEOUT_S": "3",
}
CONCURRENCY_MAX: Final = 6
"""Calls under way at once from one replica to one participant: what it can answer on two cores before they time out."""
IMPORTED: Final = (
    "app.main",
    "app.__main__",
    "tests.chaos.replica",
    "tests.chaos.participant",
    "tests.chaos.load",
    "tests.chaos.proxy",
)
"""What the processes that are started over and over need; importing runs nothing of it."""
DISK_BYTES_MAX: Final = {"postgres": 8 << 30, PARTICIPANTS[0]: 1 << 30}
_PORTS: Final = range(20_000, 32_000)  # below those that the kernel gives to outgoing connections


class SystemUnderTest:
    """Everything that runs; nothing is left of it on exit but the files in `folder`."""

    def __init__(self, folder: Path, *, replicas: int, clients: int, seed: str, disks_may_fill: bool) -> None:
        self.folder = folder
        self._replica_count = replicas
        self._client_count = clients
        self._seed = seed
        self._disks_may_fill = disks_may_fill
        self._stack = ExitStack()
        self._ports = _free_ports()
        self.faults_file = folder / "faults-on"
        self.names_file = folder / NAMES_FILE
        self.replicas: list[Replica] = []
        self.participants: list[ParticipantProcess] = []
        self.old_replica: OldReplica | None = None
        self.old_commit: str | None = None
        self.disks: dict[str, Disk] = {}
        self.links: list[LinkPorts] = []
        self.left_out: list[str] = []
        """What can't be done here, and why."""

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
        """Those that are to be there; the old replica is none of them, because it goes for good."""
        return [*self.replicas, *self.participants]

    @property
    def everybody(self) -> list[Process]:
        """Whatever was ever started."""
        others = [self.old_replica, getattr(self, "clients", None), getattr(self, "proxy", None)]
        return [*self.processes, *(each for each in others if each is not None)]

    def _enter(self) -> None:
        # The server dies with the thread that started it, so that thread stays until the server is gone.
        self._starter = self._stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="postgres-start"))
        self._forkserver = self._stack.enter_context(ForkServer(self.folder / "forkserver.socket", IMPORTED, root=ROOT))
        for name in DISK_BYTES_MAX if self._disks_may_fill else ():
            self.disks[name] = Disk(name, self.folder / f"disk-{name}", bytes_max=DISK_BYTES_MAX[name])
            self._stack.callback(self._take_away, self.disks[name])
        disk = self.disks.get("postgres")
        self.postgres = self._stack.enter_context(PostgresServer(durable=True, parent=disk.path if disk else None))
        self._stack.callback(self._kill_all)
        database_url = self.postgres.create_database()
        self._make_old_code(database_url)
        numbers = range(self._replica_count + (self.old_commit is not None))
        ports = {number: next(self._ports) for number in numbers}
        fronts = [self._link(f"clients-replica-{number}", Place.CLIENTS, ports[number]) for number in numbers]
        bases = {name: self._make_participant(name, fronts) for name in PARTICIPANTS}
        registry = {name: {"base_url": base, "concurrency_max": CONCURRENCY_MAX} for name, base in bases.items()}
        first = ApiKey.new()
        guards = {"AUTH": "require", "BOOTSTRAP_KEY": first.text, "RATE_PER_KEY": "0"}
        settings = SETTINGS | guards | {"PARTICIPANTS": json.dumps(registry)}
        for number in numbers:
            kind = Replica if number < self._replica_count else OldReplica
            replica = kind(
                self._forkserver, number, ports[number], self.folder, settings | self._own(number, database_url)
            )
            if isinstance(replica, OldReplica):
                self.old_replica = replica
            else:
                self.replicas.append(replica)
        self.proxy = Proxy(self._forkserver, self.folder, self.links)
        self.proxy.start()
        while not self.proxy.ready:
            assert not self.proxy.wait_end(0.05), f"the proxy did not start:\n{self.proxy.log.read_text()}"
        self.network = Network(str(self.proxy.control))
        self._start(database_url)
        self.keys = KeyRotation(self.folder, first, [replica.url for replica in self.replicas], self._seed)
        self._stack.callback(self.keys.stop)
        self.keys.create()
        self.clients = Clients(
            self._forkserver,
            self.folder,
            {
                "folder": str(self.folder),
                "seed": self._seed,
                "clients": self._client_count,
                "urls": [f"http://127.0.0.1:{port}" for port in fronts],
                "participants": PARTICIPANTS,
                "accounts": ledger.ACCOUNTS,
            },
        )

    def _make_old_code(self, database_url: str) -> None:
        """Where there is history, the database begins at the schema before the newest."""
        folder = self.folder / "old-code"
        try:
            self.old_commit = old_code.extract(folder)
        except old_code.NoHistoryError as error:
            self.left_out.append(f"code from before the newest migration: {error}")
        else:
            old_code.migrate(folder, prefixed({"DATABASE_URL": database_url}))

    def _start(self, database_url: str) -> None:
        """The old code is at work when the schema changes under it; the current code starts beside it."""
        self.faults_file.touch()
        for participant in self.participants:
            participant.start()
        if self.old_replica is not None:
            self.old_replica.start()
            wait_ready(self.old_replica, START_MAX_S)
        _migrate(database_url)
        for replica in self.replicas:
            replica.start()
        for replica in self.replicas:
            wait_ready(replica, START_MAX_S)

    def _link(self, name: str, place: Place, port_behind: int) -> int:
        """The port of a new link to `port_behind`."""
        link = LinkPorts(name=name, place=place, port=next(self._ports), port_behind=port_behind)
        self.links.append(link)
        return link.port

    def _own(self, number: int, database_url: str) -> dict[str, str]:
        """Each replica has a link of its own to the database."""
        port = self._link(f"replica-{number}-postgres", Place.DATABASE, self.postgres.port)
        return {"DATABASE_URL": database_url.replace(f":{self.postgres.port}/", f":{port}/")}

    def _make_participant(self, name: str, replica_ports: list[int]) -> str:
        """The last one is on PostgreSQL, and crashes with it; the first holds for less than it is asked to.

        Returns its base URL.
        """
        disk = self.disks.get(name)
        file = (disk.path if disk else self.folder) / f"{name}.db"
        config = Config(
            name=name,
            port=next(self._ports),
            life=0,
            seed=self._seed,
            folder=str(self.folder),
            database_url=self.postgres.create_database() if name == PARTICIPANTS[-1] else f"sqlite:///{file}",
            replica_ports=replica_ports,
            hold_ttl_max_s=6.0 if name == PARTICIPANTS[0] else None,
        )
        engine = ledger.open_database(config.database_url)
        ledger.prepare(engine)
        engine.dispose()
        self.participants.append(ParticipantProcess(self._forkserver, config))
        return f"http://{NAME}:{self._link(f'replicas-{name}', Place.PARTICIPANT, config.port)}/tcc"

    def crash_postgres(self) -> None:
        self.postgres.crash()

    def freeze_backend(self, number: int) -> int:
        """Stop one of the processes that serve connections; `number` counts round. Returns its id."""
        ids = self.postgres.backend_ids()
        victim = ids[number % len(ids)]
        os.kill(victim, signal.SIGSTOP)
        return victim

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

    def _take_away(self, disk: Disk) -> None:
        """A participant's ledger is evidence, and stays."""
        for file in disk.path.glob("*.db*"):
            shutil.copy(file, self.folder)
        disk.unmount()

    def _kill_all(self) -> None:
        for process in self.everybody:
            process.kill()


def _migrate(database_url: str) -> None:
    environment = os.environ | {"HOLDFAST_DATABASE_URL": database_url, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", "app", "migrate"], cwd=ROOT, env=environment, check=True, capture_output=True)


def _free_ports() -> Iterator[int]:
    """Ports that nobody listens on now, no two the same."""
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        yield port
    raise AssertionError("no free ports")
