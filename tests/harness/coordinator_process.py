"""The coordinator as users run it: `python -m app serve` in a process of its own, on a free port.

    with CoordinatorProcess({"HOLDFAST_DATABASE_URL": url}) as coordinator:
        httpx.get(f"{coordinator.url}/readyz")
        coordinator.kill()                       # SIGKILL
        coordinator.start()                      # again, with the same settings

What it logs is read all the time; the line that names the address says that it is ready.
"""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self

from tests.harness.repository import ROOT

_TIMEOUT_S: Final = 20.0
_RUNNING: Final = re.compile(r"running on (http://\S+)")


class CoordinatorProcess:
    """Started on entry, killed on exit if it is still there. Restarts keep the settings; the port may change."""

    def __init__(self, settings: Mapping[str, str], *, command: str = "serve", root: Path = ROOT) -> None:
        """`root`: where the code is, if it is that of another version."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}
        path = os.pathsep.join((str(root), str(root / "participants")))
        self._environment = inherited | {"PYTHONPATH": path, "HOLDFAST_PORT": "0"} | dict(settings)
        self._root = root
        self._command = command
        self._process: subprocess.Popen[str] | None = None
        self._reader = threading.Thread()
        self._settled = threading.Event()
        self.url = ""
        self.lines: list[str] = []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()

    @property
    def log(self) -> str:
        return "".join(self.lines)

    @property
    def process_id(self) -> int:
        assert self._process is not None, "it was never started"
        return self._process.pid

    def start(self) -> None:
        """Start, and return when it accepts connections. Fails with its log when it ends instead."""
        self.launch()
        self._settled.wait(_TIMEOUT_S)
        if not self.url:
            self.__exit__()
            raise AssertionError(f"the coordinator did not start:\n{self.log}")

    def launch(self) -> None:
        """Start without waiting."""
        self.url, self.lines = "", []
        self._settled.clear()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "app", *self._command.split()],
            cwd=self._root,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, name="coordinator-log", daemon=True)
        self._reader.start()

    def kill(self) -> None:
        """SIGKILL: no chance to do anything any more."""
        self._send(signal.SIGKILL)
        assert self.wait_end() == -signal.SIGKILL

    def terminate(self) -> None:
        """SIGTERM; returns at once."""
        self._send(signal.SIGTERM)

    def wait_end(self) -> int:
        """The exit status, once the process has ended and its log is read."""
        assert self._process is not None
        status = self._process.wait(_TIMEOUT_S)
        self._reader.join(_TIMEOUT_S)
        return status

    def _send(self, what: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(what)

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        with self._process.stdout as output:
            for line in output:
                self.lines.append(line)
                if found := _RUNNING.search(line):
                    self.url = found[1]
                    self._settled.set()
        self._settled.set()
