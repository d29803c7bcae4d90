"""Does what a reader of a page does, in an empty home: saves the files, pastes the commands, starts the services.

Commands run literally. A command that serves keeps its terminal; the reader goes on in another one, which begins in the
home folder. Directives in comments say what prose says to readers: "stop wallet", "leave running", "wait for it".
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.harness.markdown import Code, Directive, Page

STARTED: Final = re.compile(r"Uvicorn running on|Holdfast is running on|Try, in another terminal")
SERVES: Final = re.compile(r"(^|&& |/)(make run|uvicorn |python -m app serve)")
INSTALLS: Final = re.compile(r"git clone |-m venv |pip (install|wheel) |make (demo|install)\b")
"""Commands that need the network; all others run where nothing but loopback exists."""
READY_MAX_S: Final = 300.0
COMMAND_MAX_S: Final = 600.0
STOP_MAX_S: Final = 30.0


class ReaderFailed(AssertionError):
    """A command of the page did not do what the page says."""


@dataclass(frozen=True, slots=True)
class Pasted:
    """What a block of commands printed."""

    command: str
    output: str


class Terminal:
    """A process that runs one block of commands; its output is gathered by a thread."""

    def __init__(self, script: str, command: str, *, within: list[str], environment: Mapping[str, str]) -> None:
        self.command: Final = command
        self._lines: list[str] = []
        self._said_something = threading.Condition()
        self._ended = False
        self._process = subprocess.Popen(
            [*within, "bash", "-c", script],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._thread = threading.Thread(target=self._gather, daemon=True)
        self._thread.start()

    @property
    def output(self) -> str:
        return "".join(self._lines)

    def wait_until_started(self) -> None:
        """Return once a service has said that it listens."""
        with self._said_something:
            started = self._said_something.wait_for(
                lambda: self._ended or any(STARTED.search(line) for line in self._lines), READY_MAX_S
            )
        if not started or self._ended:
            raise ReaderFailed(f"did not start: {self.command}\n{self.output}")

    def wait(self) -> str:
        """Wait for the end; the output. Fails when the last command failed."""
        try:
            status = self._process.wait(COMMAND_MAX_S)
        except subprocess.TimeoutExpired:
            self.stop()
            raise ReaderFailed(f"did not end: {self.command}\n{self.output}") from None
        self._thread.join(STOP_MAX_S)
        if status != 0:
            raise ReaderFailed(f"exit status {status}: {self.command}\n{self.output}")
        return self.output

    def stop(self) -> None:
        """Ctrl-C, and SIGKILL to what is left."""
        for number in (signal.SIGINT, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, number)
                self._process.wait(STOP_MAX_S)
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue

    def _gather(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                with self._said_something:
                    self._lines.append(line)
                    self._said_something.notify_all()
        with self._said_something:
            self._ended = True
            self._said_something.notify_all()


class Reader:
    """One reader with an empty home folder. `loopback` is the command prefix that runs what needs no network."""

    def __init__(self, home: Path, *, begins_in: Path, loopback: list[str]) -> None:
        self.home: Final = home
        self._loopback = loopback
        self._state = home / ".terminal"
        self._serving: list[Terminal] = []
        self._left_running: Terminal | None = None
        self._leave_next_running = False
        self._environment = _environment(home)
        self._open_terminal(begins_in)

    def read(self, page: Page) -> list[Pasted]:
        """Do everything that the page says; what each block of commands printed."""
        pasted: list[Pasted] = []
        for step in page.steps:
            match step:
                case Directive(text):
                    pasted += self._obey(text)
                case Code(file=str() as name, text=text):
                    (self._folder() / name).write_text(text)
                case Code(language="sh", text=text):
                    pasted += self.paste(text)
        return pasted

    def leave(self) -> None:
        """Stop everything that was started."""
        for terminal in (*self._serving, *filter(None, [self._left_running])):
            terminal.stop()

    def paste(self, command: str) -> list[Pasted]:
        """Run one block; what it printed, if it ended."""
        if SERVES.search(command):
            if "make run" in command:  # what it installs needs the network
                self._run(command.replace("make run", "make .venv/.run"), within=[]).wait()
            terminal = self._run(command)
            self._serving.append(terminal)
            terminal.wait_until_started()
            self._open_terminal(self.home)
            return []
        terminal = self._run(command)
        if self._leave_next_running:
            self._left_running, self._leave_next_running = terminal, False
            return []
        return [Pasted(command, terminal.wait())]

    def _obey(self, directive: str) -> list[Pasted]:
        match directive.split():
            case ["stop", name]:
                (terminal,) = [each for each in self._serving if name in each.command]
                terminal.stop()
                self._serving.remove(terminal)
            case ["leave", "running"]:
                self._leave_next_running = True
            case ["wait", "for", "it"]:
                assert self._left_running is not None
                left, self._left_running = self._left_running, None
                return [Pasted(left.command, left.wait())]
            case _:
                raise ReaderFailed(f"what is {directive!r}?")
        return []

    def _run(self, command: str, *, within: list[str] | None = None) -> Terminal:
        state = shlex.quote(str(self._state))
        script = f'set -e; source {state}\n{command}\n{{ echo cd "$(printf %q "$PWD")"; export -p; }} > {state}'
        if within is None:
            within = [] if INSTALLS.search(command) else self._loopback
        return Terminal(script, command, within=within, environment=self._environment)

    def _open_terminal(self, folder: Path) -> None:
        self._state.write_text(f"cd {shlex.quote(str(folder))}\n")

    def _folder(self) -> Path:
        """Where the reader is now."""
        where = f"source {shlex.quote(str(self._state))}; pwd"
        return Path(subprocess.run(["bash", "-c", where], capture_output=True, text=True, check=True).stdout.strip())


def _environment(home: Path) -> dict[str, str]:
    """This process's environment with another home, but with pip's cache and configuration of the real one."""
    real = Path.home()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HOLDFAST_", "VIRTUAL_ENV"))}
    (home / ".gitconfig").write_text("[safe]\n\tdirectory = *\n[advice]\n\tdetachedHead = false\n")
    return {
        "PIP_CACHE_DIR": str(real / ".cache" / "pip"),
        "XDG_CONFIG_HOME": str(real / ".config"),
        **kept,
        "HOME": str(home),
        "NO_PROXY": "127.0.0.1",
        "PYTHONUNBUFFERED": "1",
    }


@contextmanager
def loopback_of_its_own() -> Iterator[list[str]]:
    """The prefix of commands that run where every port is free: a network namespace. Empty where there can be none."""
    bring_up = (
        "import fcntl, socket, struct, sys; s = socket.socket(); "
        "fcntl.ioctl(s, 0x8914, struct.pack('16sh', b'lo', 0x41)); print('up', flush=True); sys.stdin.read()"
    )
    command = ["unshare", "--map-root-user", "--net", sys.executable, "-c", bring_up]
    try:
        holder = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
    except FileNotFoundError:
        yield []
        return
    assert holder.stdout is not None
    try:
        if holder.stdout.readline().strip() == "up":
            yield ["nsenter", "--preserve-credentials", "--user", "--net", "--target", str(holder.pid)]
        else:
            yield []
    finally:
        holder.communicate("")
