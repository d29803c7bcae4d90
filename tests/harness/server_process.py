"""A database server as a child of the tests: unprivileged, in a temporary home, and gone when they are.

What PostgreSQL and MariaDB have in common; which programs to run, and how, is said in postgres.py and mariadb.py.
"""

import errno
import os
import pwd
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Final

STOP_TIMEOUT_S: Final = 30.0

# A server process must not outlive a test run that was killed: on Linux the kernel sends it a signal when its
# parent ends. This runs between fork and exec, and gives up root first, because a change of user
# forgets the request.
_LAUNCHER: Final = """
import ctypes, os, sys
user_id, group_id, parent_id, signal_number, *command = sys.argv[1:]
if int(user_id) != os.getuid():
    os.setgroups([])
    os.setgid(int(group_id))
    os.setuid(int(user_id))
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, int(signal_number), 0, 0, 0)
    if os.getppid() != int(parent_id):
        sys.exit("the process that wanted this server has ended")
os.execv(command[0], command)
"""


class ServerError(Exception):
    """A server could not be started or did not stop; the message ends with the last lines of its log."""


class ServerProcess:
    """A child whose output is read all the time: to see the lines that say it is ready, and to keep the last ones."""

    def __init__(
        self,
        command: Sequence[str | Path],
        identity: tuple[int, int],
        *,
        ready_lines: tuple[str, ...] = (),
        at_parents_end: signal.Signals = signal.SIGKILL,
        error: type[ServerError] = ServerError,
    ) -> None:
        """Start `command` as the user and group of `identity`; all of `ready_lines` together say that it is ready."""
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-I", "-S", "-c", _LAUNCHER),
                *map(str, (*identity, os.getpid(), int(at_parents_end), *command)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd="/",
            env={"PATH": f"{os.defpath}:/usr/sbin", "LC_ALL": "C", "TZ": "UTC"},
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C in a terminal is for the tests; they stop the server themselves
        )
        self._error = error
        self._awaited = set(ready_lines)
        self._lines: deque[str] = deque(maxlen=200)
        self._settled = threading.Event()
        self._ready = False
        self._reader = threading.Thread(target=self._read, name="server-log", daemon=True)
        self._reader.start()

    @property
    def id(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def log(self) -> str:
        return "".join(self._lines)

    def wait_ready(self, timeout_s: float) -> bool:
        """True as soon as the ready lines were written, False when the process ended or the time passed before."""
        self._settled.wait(timeout_s)
        return self._ready

    def wait_end(self, timeout_s: float) -> int | None:
        """The exit status, or None when the process is still there after `timeout_s`."""
        try:
            status = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        self._reader.join(timeout_s)
        return status

    def stop(self, how: signal.Signals) -> None:
        """Ask with `how`, insist with SIGKILL; returns when the process is gone."""
        if self.alive:
            self._process.send_signal(how)
            if self.wait_end(STOP_TIMEOUT_S) is None:
                self._process.kill()
                raise self._error(f"the server did not stop on {how.name}:\n{self.log}")
        self._process.wait()
        self._reader.join(STOP_TIMEOUT_S)

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            for line in output:
                self._lines.append(line)
                if self._awaited:
                    self._awaited = {awaited for awaited in self._awaited if awaited not in line}
                    if not self._awaited:
                        self._ready = True
                        self._settled.set()
        self._settled.set()


def unprivileged_user() -> tuple[int, int]:
    """Who runs a server: this user, but `nobody` instead of root, which PostgreSQL and MariaDB refuse."""
    if os.getuid() != 0:
        return os.getuid(), os.getgid()
    nobody = pwd.getpwnam("nobody")
    return nobody.pw_uid, nobody.pw_gid


def temporary_home(prefix: str, *, parent: Path | None = None) -> Path:
    """A new directory that another user can reach, if possible: TMPDIR may lie in somebody's closed home."""
    if parent is not None:
        return Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    parent = Path(tempfile.gettempdir()).resolve()
    if os.getuid() == 0 and not reachable_by_anyone(parent):
        parent = Path("/tmp")
    return Path(tempfile.mkdtemp(prefix=prefix, dir=parent))


def reachable_by_anyone(path: Path) -> bool:
    """Whether any user can enter all folders down to this one."""
    return all(folder.stat().st_mode & 0o001 for folder in (path, *path.parents))


def free_port() -> int:
    """A port of loopback's that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def free_ports(count: int) -> list[int]:
    """Different ports that will be needed later: none of those that the kernel gives to connections meanwhile."""
    found: list[int] = []
    for port in random.SystemRandom().sample(range(10_000, 32_000), 1000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED:
                found.append(port)
        if len(found) == count:
            return found
    raise ServerError(f"no {count} free ports")
