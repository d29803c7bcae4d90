"""Starts processes quickly: one process that has imported what they need, and forks each of them.

A program takes two seconds of a core to import its libraries, and in
chaos it starts hundreds of times. What is forked is a process like any other: it has an id, an environment, a log and
an end of its own, runs a module as `python -m` does, and is killed like any other. It shares no state: nothing has
run here but imports.

One connection is one process: the request comes in, its id goes out, and at its end its status. Whoever asks for a
process talks to `ForkServer`.
"""

import ctypes
import gc
import importlib
import json
import os
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self

START_MAX_S: Final = 60.0
REQUEST_BYTES_MAX: Final = 100_000
READY: Final = b"ready\n"


class Child:
    """A process that the forkserver has started."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lines = connection.makefile("r")
        self.id = int(self._lines.readline())
        self._status: int | None = None
        self._asking = threading.Lock()

    def poll(self) -> int | None:
        """Its exit status, negative for a signal; None while it is there."""
        return self.wait(0)

    def wait(self, timeout_s: float) -> int | None:
        """As `poll`, when it has ended or the time is over. Several threads may wait; one after the other asks."""
        with self._asking:
            if self._status is None and select.select([self._connection], [], [], timeout_s)[0]:
                line = self._lines.readline()
                assert line, "the forkserver has ended, and all its children with it"
                self._status = int(line)
                self.close()
            return self._status

    def close(self) -> None:
        """Ask no more; to it nothing happens."""
        self._lines.close()
        self._connection.close()

    def send(self, what: signal.Signals) -> None:
        """Whoever has ended meanwhile gets none; its id is nobody else's before its end was reported."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.id, what)


class ForkServer:
    """Asks for processes. The forkserver itself, and with it every child, dies with the process that made it."""

    def __init__(self, socket_path: Path, modules: Sequence[str], *, root: Path) -> None:
        """`root` is where programs run, and import from."""
        self._path = str(socket_path)
        self._root = root
        command = [sys.executable, "-m", "tests.chaos.forkserver", str(os.getpid()), self._path, *modules]
        self._process = subprocess.Popen(
            command,
            cwd=root,
            env=os.environ | {"PYTHONPATH": str(root)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        with self._process.stdout as output:
            assert output.readline() == READY, "the forkserver did not start"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def start(self, module: str, arguments: Sequence[str], *, environment: Mapping[str, str], log: Path) -> Child:
        """`python -m module arguments` in a fork of the forkserver, with all output at the end of `log`."""
        return self._ask({**environment, "PYTHONPATH": str(self._root)}, log, module=module, arguments=[*arguments])

    def execute(self, command: Sequence[str], *, folder: Path, environment: Mapping[str, str], log: Path) -> Child:
        """A program that has nothing in common with the forkserver, with all output at the end of `log`."""
        return self._ask(environment, log, command=[*command], folder=str(folder))

    def _ask(self, environment: Mapping[str, str], log: Path, **what: Any) -> Child:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(START_MAX_S)
        connection.connect(self._path)
        request = what | {"environment": dict(environment), "log": str(log)}
        connection.sendall(json.dumps(request).encode() + b"\n")
        return Child(connection)


def main() -> None:
    parent_id, path, *modules = sys.argv[1:]
    _die_with(int(parent_id))
    for module in modules:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # what is shared stays shared
    request = _serve(path)
    # From here on this is a child: it ends as any program does, its threads and its exit handlers included.
    _die_with(request.pop("parent_id"))
    output = os.open(request.pop("log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    environment = request.pop("environment")
    os.environ.clear()
    os.environ.update(environment)
    if "command" in request:
        os.chdir(request["folder"])
        os.execve(request["command"][0], request["command"], environment)
    sys.argv = [request["module"], *request["arguments"]]
    name = request["module"]
    for imported in (name, f"{name}.__main__"):
        sys.modules.pop(imported, None)  # it runs as __main__, and is not to be there twice
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


def _serve(path: str) -> dict[str, Any]:
    """Fork for everyone who asks; returns in the children alone, with what each was asked to be."""
    forkserver_id = os.getpid()
    children: dict[int, socket.socket] = {}
    woken, wake = socket.socketpair()
    with socket.socket(socket.AF_UNIX) as listener, woken, wake, selectors.DefaultSelector() as selector:
        listener.bind(path)
        listener.listen(16)
        for end in (woken, wake):
            end.setblocking(False)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        os.write(1, READY)
        for awaited in (listener, woken):
            selector.register(awaited, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is woken:
                    with suppress(BlockingIOError):
                        woken.recv(4096)
                    _reap(children)
                    continue
                connection, _ = listener.accept()
                with connection.makefile("rb") as lines:
                    request: dict[str, Any] = json.loads(lines.readline(REQUEST_BYTES_MAX))
                process_id = os.fork()
                if process_id == 0:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    for inherited in (connection, *children.values()):
                        inherited.close()
                    return request | {"parent_id": forkserver_id}
                children[process_id] = connection
                connection.sendall(b"%d\n" % process_id)


def _reap(children: dict[int, socket.socket]) -> None:
    while children:
        process_id, status = os.waitpid(-1, os.WNOHANG)
        if process_id == 0:
            return
        with children.pop(process_id) as connection, suppress(BrokenPipeError):
            connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))


def _die_with(parent_id: int) -> None:
    """No process may outlive a run that was killed: on Linux the kernel kills it when its parent ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent_id:
            sys.exit("the process that wanted this one has ended")


if __name__ == "__main__":
    main()
