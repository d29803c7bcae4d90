"""The programs that are started again and again: replicas, participants, and the clients.

Starts, signals and watches one process each; knows nothing of the others, and decides nothing about when.
"""

import json
import os
import signal
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Final

import httpx

from tests.chaos import machine_clock
from tests.chaos.forkserver import Child, ForkServer
from tests.chaos.machine_clock import MachineClock
from tests.chaos.participant import Config
from tests.chaos.proxy import LinkPorts
from tests.chaos.replica import FILE_VARIABLE
from tests.harness.old_code import old_path

STOP_MAX_S: Final = 30.0
"""A process that was asked to stop and is there after so long is stuck."""
NAMES_FILE: Final = "names"
"""Says what becomes of the replicas' look-ups of names."""
READY: Final = b"running on http"
"""What each process writes when it is at work."""
FORCED: Final = b"event=stop_forced"


class Process(ABC):
    """A program that is started again and again with one command; `lives` counts how often."""

    def __init__(
        self, forkserver: ForkServer, name: str, log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.log = log
        self.lives = 0
        self.frozen = False
        self.wanted = False
        """Whether it should be there: one that ends by itself is then started again."""
        self.cpu_s = 0.0
        """Time of a core that all its lives have taken, as far as it was looked at."""
        self._cpu_before_s = 0.0
        self._log_seen = 0
        self._is_ready = False
        self._environment = environment or {}
        self._forkserver = forkserver
        self._child: Child | None = None

    @property
    def alive(self) -> bool:
        return self._child is not None and self._child.poll() is None

    @property
    def running(self) -> bool:
        return self.alive and not self.frozen

    @property
    def ready(self) -> bool:
        """Whether it runs and has said in this life that it is at work."""
        if not self._is_ready:
            self._is_ready = READY in self._said()
        return self._is_ready and self.running

    @property
    def gave_up_stopping(self) -> bool:
        """Whether it has ended itself because something hung, such as the way to its database."""
        return FORCED in self._said()

    def _said(self) -> bytes:
        with self.log.open("rb") as log:
            log.seek(self._log_seen)
            return log.read()

    @property
    def status(self) -> int | None:
        return None if self._child is None else self._child.poll()

    @abstractmethod
    def launch(self, environment: Mapping[str, str]) -> Child:
        """Start the program, and don't wait."""

    def start(self) -> None:
        """Start it and don't wait: whoever talks to it finds out when it is ready."""
        assert not self.alive, f"{self.name} is there already"
        self.lives += 1
        self.frozen, self.wanted = False, True
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}
        with self.log.open("ab") as output:
            self._log_seen, self._is_ready = output.tell(), False
        self._cpu_before_s = self.cpu_s
        self._child = self.launch(inherited | dict(self._environment))

    def send(self, what: signal.Signals) -> None:
        if self._child is not None:
            self._child.send(what)

    def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        self.wanted = False
        self.look_at_cpu()
        self.send(signal.SIGKILL)
        self.wait_end(STOP_MAX_S)
        self.frozen = False

    def look_at_cpu(self) -> None:
        """To be done now and then: nobody can tell afterwards."""
        if self._child is not None and self.alive:
            with suppress(OSError):
                self.cpu_s = self._cpu_before_s + cpu_s_of(self._child.id)

    def freeze(self) -> None:
        self.send(signal.SIGSTOP)
        self.frozen = True

    def thaw(self) -> None:
        self.send(signal.SIGCONT)
        self.frozen = False

    def wait_end(self, timeout_s: float) -> bool:
        """Whether it has ended within that time."""
        if self._child is not None:
            self._child.wait(timeout_s)
        return not self.alive


class Replica(Process):
    """One coordinator on the database that all replicas share."""

    def __init__(
        self, forkserver: ForkServer, number: int, port: int, folder: Path, settings: Mapping[str, str]
    ) -> None:
        name = f"replica-{number}"
        clock_file = folder / f"{name}.clock"
        self.clock = MachineClock(clock_file)
        environment = prefixed({**settings, "PORT": str(port)}) | {
            FILE_VARIABLE: str(folder / NAMES_FILE),
            machine_clock.FILE_VARIABLE: str(clock_file),
        }
        super().__init__(forkserver, name, folder / f"{name}.log", environment)
        self.url = f"http://127.0.0.1:{port}"

    def launch(self, environment: Mapping[str, str]) -> Child:
        return self._forkserver.start("tests.chaos.replica", ["serve"], environment=environment, log=self.log)


class OldReplica(Replica):
    """A coordinator from before the newest migration. It is not started again: on the new schema it refuses to."""

    def __init__(
        self, forkserver: ForkServer, number: int, port: int, folder: Path, settings: Mapping[str, str]
    ) -> None:
        super().__init__(forkserver, number, port, folder, settings)
        self.code = folder / "old-code"

    def launch(self, environment: Mapping[str, str]) -> Child:
        """From its own checkout, with its own SDK, and with nothing that was imported for others."""
        environment = {**environment, "PYTHONPATH": old_path(self.code)}
        command = [sys.executable, "-m", "app", "serve"]
        return self._forkserver.execute(command, folder=self.code, environment=environment, log=self.log)


class ParticipantProcess(Process):
    """One participant with a database of its own."""

    def __init__(self, forkserver: ForkServer, config: Config) -> None:
        super().__init__(forkserver, config.name, Path(config.folder) / f"{config.name}.log")
        self.config = config

    def launch(self, environment: Mapping[str, str]) -> Child:
        arguments = [json.dumps(asdict(self.config) | {"life": self.lives})]
        return self._forkserver.start("tests.chaos.participant", arguments, environment=environment, log=self.log)


class Clients(Process):
    """The load; SIGTERM lets it end what it has begun."""

    def __init__(self, forkserver: ForkServer, folder: Path, arguments: Mapping[str, object]) -> None:
        super().__init__(forkserver, "clients", folder / "clients.log")
        self._arguments = arguments

    def launch(self, environment: Mapping[str, str]) -> Child:
        arguments = [json.dumps(self._arguments)]
        return self._forkserver.start("tests.chaos.load", arguments, environment=environment, log=self.log)


class Proxy(Process):
    """The network; nobody hits it itself."""

    def __init__(self, forkserver: ForkServer, folder: Path, links: Sequence[LinkPorts]) -> None:
        super().__init__(forkserver, "proxy", folder / "proxy.log")
        self.control = folder / "proxy.socket"
        self._links = links

    def launch(self, environment: Mapping[str, str]) -> Child:
        links = json.dumps([(link.name, link.port, link.port_behind) for link in self._links])
        arguments = [str(self.control), links]
        return self._forkserver.start("tests.chaos.proxy", arguments, environment=environment, log=self.log)


def prefixed(settings: Mapping[str, str]) -> dict[str, str]:
    """Settings of the coordinator as its environment has them."""
    return {f"HOLDFAST_{name}": value for name, value in settings.items()}


def cpu_s_of(process_id: int) -> float:
    """Time of a core that a process has taken until now, the dead among its children included."""
    fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def wait_ready(replica: Replica, timeout_s: float) -> None:
    """Return when the replica says that it is ready. Fails with the end of its log."""
    until = time.monotonic() + timeout_s
    with httpx.Client() as client:
        while time.monotonic() < until:
            with suppress(httpx.TransportError):
                if client.get(f"{replica.url}/readyz", timeout=2.0).status_code == 200:
                    return
            replica.wait_end(0.1)
    raise AssertionError(f"{replica.name} is not ready:\n{replica.log.read_text()[-3000:]}")
