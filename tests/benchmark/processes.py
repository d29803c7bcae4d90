"""Processes that are measured: started, waited for, looked at through the kernel, and stopped whatever happens.

Linux only, because of /proc and of the CPU clocks of other processes. Knows nothing about what the processes do.
"""

import ctypes
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Self

from tests.harness.repository import ROOT

START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 20.0
LISTENS: Final = re.compile(r"running on (http://[^\s/]+)")
"""What uvicorn and the coordinator log once they accept connections."""

_CPU_CLOCK_SCHEDULED: Final = 2
"""CPUCLOCK_SCHED: of a process's CPU clocks, the one that counts user and kernel mode, all threads, in nanoseconds."""
_LIBC: Final = ctypes.CDLL(None)


class ServerProcess:
    """A server in a process of its own: up on return from entry, stopped on exit, gone when this process is.

    `root` is the folder it runs in, and whose code it runs.
    """

    def __init__(
        self,
        *command: str,
        environment: Mapping[str, str] = {},
        listens: re.Pattern[str] = LISTENS,
        root: Path = ROOT,
    ) -> None:
        self._environment = _environment(root, environment)
        self._root = root
        self._command = command
        self._listens = listens
        self._settled = threading.Event()
        self._lines: deque[str] = deque(maxlen=200)
        self.url = ""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command,
            env=self._environment,
            cwd=self._root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            preexec_fn=_die_with_parent,  # noqa: PLW1509 - one call into libc, which is loaded
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._settled.wait(START_TIMEOUT_S)
        if not self.url:
            self.__exit__()
            raise RuntimeError(f"{' '.join(self._command)} did not start:\n{self.log}")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(STOP_TIMEOUT_S)

    def kill(self) -> None:
        """SIGKILL: no chance to do anything any more."""
        self._process.kill()
        self._process.wait()

    @property
    def id(self) -> int:
        return self._process.pid

    @property
    def log(self) -> str:
        """The last lines that it wrote."""
        return "".join(self._lines)

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            for line in output:
                self._lines.append(line)
                if not self.url and (found := self._listens.search(line)):
                    self.url = found[1]
                    self._settled.set()
        self._settled.set()


def run_module(module: str, *arguments: str, environment: Mapping[str, str] = {}, root: Path = ROOT) -> None:
    """Run `python -m module` to its end; what it printed is the message of its failure."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(
        command, cwd=root, env=_environment(root, environment), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")


def cpu_s(process_ids: Sequence[int]) -> float:
    """The CPU seconds that these processes have used, all their threads, in user and in kernel mode."""
    return sum(_cpu_clock_s(process_id) for process_id in process_ids)


def rss_peak_mb(process_id: int) -> float:
    """The most memory that a process has had resident so far, in MB (10⁶ bytes)."""
    for line in Path(f"/proc/{process_id}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError(f"process {process_id} has ended")


def children_of(process_id: int) -> list[int]:
    """A process and all its children: PostgreSQL has one for each connection."""
    listed = Path(f"/proc/{process_id}/task/{process_id}/children").read_text().split()
    return [process_id, *(int(child) for child in listed)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(condition: Callable[[], bool], *, timeout_s: float, pause_s: float = 0.05) -> bool:
    """Whether the condition came true within the time."""
    until = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(pause_s)
    return True


def raise_file_limit() -> None:
    """A thousand clients need more open files than many a shell allows; children inherit it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _environment(root: Path, more: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without settings of Holdfast's; `app` and `holdfast` are those of the folder."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}
    return inherited | {"PYTHONPATH": os.pathsep.join([str(root), str(root / "participants")])} | dict(more)


def _cpu_clock_s(process_id: int) -> float:
    """To the nanosecond, where /proc has hundredths of a second; 0 when the process has ended."""
    try:
        return time.clock_gettime(~process_id << 3 | _CPU_CLOCK_SCHEDULED)  # what clock_getcpuclockid(3) makes
    except OSError:
        return 0.0


def _die_with_parent() -> None:
    _LIBC.prctl(1, int(signal.SIGKILL), 0, 0, 0)
