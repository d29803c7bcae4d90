"""Real processes on loopback: start, wait until healthy, kill, start again on the same port, and always stop.

Processes end with the program that starts them: when it leaves `async with`, or if it is killed, by the kernel (Linux).
Each process leads its own group, so that Ctrl-C reaches only the program, which then stops them in order. Doesn't know
what the processes do.
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

import httpx

T = TypeVar("T")

ROOT: Final = Path(__file__).resolve().parents[2]
"""Where `python -m app` works."""
HOST: Final = "127.0.0.1"
POLL_S: Final = 0.03
HEALTHY_WITHIN_S: Final = 30.0
STOPPED_WITHIN_S: Final = 10.0

_DIE_WITH_PARENT: Final = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG; it outlives execv
if os.getppid() != int(sys.argv[1]):
    sys.exit("whoever started this has died")
os.execv(sys.argv[2], sys.argv[2:])
"""


class ProcessFailed(Exception):
    """A process ended, or did not become healthy; the message says where its log is."""


async def until(what: str, look: Callable[[], Awaitable[T | None]], *, within_s: float) -> T:
    """What `look` finds, as soon as it finds something; TimeoutError naming `what` after `within_s` seconds."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    while True:
        found = await look()
        if found is not None:
            return found
        if loop.time() >= deadline:
            raise TimeoutError(f"not within {within_s:g} s: {what}")
        await asyncio.sleep(POLL_S)


class Port:
    """A free port of this machine, kept from others until `release`, while processes come and go on it."""

    def __init__(self) -> None:
        self._reserved = _bound(0)
        self.number: Final[int] = self._reserved.getsockname()[1]
        if sys.platform != "linux":  # elsewhere a bound socket keeps even those out that ask to share
            self._reserved.close()

    def release(self) -> None:
        self._reserved.close()


def is_free(port: int) -> bool:
    """Whether a process could listen on `port` now."""
    try:
        _bound(port).close()
    except OSError:
        return False
    return True


class Process:
    """One process that serves HTTP on `port`; it may be started again after it has ended."""

    def __init__(
        self, name: str, command: Sequence[str], *, port: int, log: Path, environment: Mapping[str, str], health: str
    ) -> None:
        self.name: Final = name
        self.port: Final = port
        self.log: Final = log
        self.url: Final = f"http://{HOST}:{port}"
        self.environment = dict(environment)
        self._command = list(command)
        self._health = health
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it, without waiting."""
        assert not self.running, f"{self.name} runs already"
        guarded = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), *self._command]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                guarded,
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    async def healthy(self, within_s: float = HEALTHY_WITHIN_S) -> None:
        """Wait until it answers its health check. Raises ProcessFailed when it ends or takes too long."""
        async with httpx.AsyncClient(base_url=self.url, timeout=2.0, trust_env=False) as client:

            async def look() -> bool | None:
                if not self.running:
                    raise ProcessFailed(f"{self.name} ended with status {self._status()}; see {self.log}")
                try:
                    return True if (await client.get(self._health)).status_code == 200 else None
                except httpx.HTTPError:
                    return None

            try:
                await until(f"{self.name} is healthy", look, within_s=within_s)
            except TimeoutError as error:
                raise ProcessFailed(f"{error}; see {self.log}") from None

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone: nothing is finished, nothing is said."""
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def terminate(self) -> None:
        """SIGTERM, without waiting."""
        self._signal(signal.SIGTERM)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self.running:
            os.killpg(self._process.pid, number)

    def _status(self) -> int | None:
        return None if self._process is None else self._process.returncode


class Processes:
    """Processes that end together, in `async with`; logs go to `logs`."""

    def __init__(self, logs: Path) -> None:
        self.logs: Final = logs
        self.all: Final[list[Process]] = []

    def coordinator(
        self, port: int, *, database_url: str, participants: Mapping[str, str], **settings: object
    ) -> Process:
        """The coordinator, not started; `settings` such as `retry_cap_s=1` become HOLDFAST_RETRY_CAP_S."""
        own = {"host": HOST, "port": port, "database_url": database_url, "participants": json.dumps(dict(participants))}
        environment = {f"HOLDFAST_{name.upper()}": str(value) for name, value in {**settings, **own}.items()}
        command = [sys.executable, "-m", "app", "serve"]
        return self.add("coordinator", command, port=port, health="/readyz", environment=environment)

    def service(self, name: str, port: int, **environment: str) -> Process:
        """The example service `name`, not started; it is configured by `environment` alone."""
        command = [sys.executable, "-m", "uvicorn", f"examples.{name}:app", "--host", HOST, "--port", str(port)]
        return self.add(name, command, port=port, health="/healthz", environment=environment)

    def add(
        self, name: str, command: Sequence[str], *, port: int, health: str, environment: Mapping[str, str]
    ) -> Process:
        """Any process that serves HTTP, not started."""
        log = self.logs / f"{name}.log"
        process = Process(name, command, port=port, log=log, environment={**_inherited(), **environment}, health=health)
        self.all.append(process)
        return process

    async def start(self, *processes: Process) -> None:
        """Start these at once, and wait until all of them are healthy."""
        for process in processes:
            process.start()
        await asyncio.gather(*(process.healthy() for process in processes))

    async def stop(self) -> None:
        """SIGTERM to all; SIGKILL to those that don't end in time."""
        for process in self.all:
            process.terminate()

        async def gone() -> bool | None:
            return None if any(process.running for process in self.all) else True

        try:
            await until("all processes have ended", gone, within_s=STOPPED_WITHIN_S)
        except TimeoutError:
            pass
        finally:
            self.kill()

    def kill(self) -> None:
        """SIGKILL to all."""
        for process in self.all:
            process.kill()

    async def __aenter__(self) -> Self:
        self.logs.mkdir(parents=True, exist_ok=True)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()


def run_until_stopped(main: Callable[[], Awaitable[int]], *, status_when_stopped: int = 130) -> int:
    """Run `main` to its end; Ctrl-C and SIGTERM cancel it, so that it tidies up. Its value is the exit status."""

    async def cancelled_by_signals() -> int:
        task = asyncio.current_task()
        assert task is not None
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        return await main()

    try:
        return asyncio.run(cancelled_by_signals())
    except asyncio.CancelledError:
        return status_when_stopped


def _inherited() -> dict[str, str]:
    """The environment without what would configure coordinator or services: that is given explicitly."""
    ours = ("HOLDFAST_", "DATABASE_URL", "DATA_DIR", "GATEWAY_URL", "HOLD_", "REAP_", "DECISION_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**kept, "PYTHONUNBUFFERED": "1", "NO_PROXY": HOST}


def _bound(port: int) -> socket.socket:
    """A socket that is bound and does not listen: on Linux another process may still listen on its port."""
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((HOST, port))
    except OSError:
        bound.close()
        raise
    return bound
