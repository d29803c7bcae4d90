"""What the forkserver starts are processes like any other: they run a module, write a log, end and are killed."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.chaos.forkserver import ForkServer
from tests.harness.repository import ROOT

END_MAX_S = 20.0
PROGRAM = """
import os, signal, sys
if __name__ == "__main__":
    print(os.environ["WHAT"], sys.argv[1:], os.getpid(), flush=True)
    if sys.argv[1] == "wait":
        signal.pause()
    sys.exit(int(sys.argv[2]))
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="forkserver-") as name:  # short: the path of a socket has a limit
        yield Path(name)


@pytest.fixture
def forkserver(folder: Path) -> Iterator[ForkServer]:
    (folder / "tests").symlink_to(ROOT / "tests")
    (folder / "program.py").write_text(PROGRAM)
    with ForkServer(folder / "socket", ["json"], root=folder) as made:
        yield made


def test_a_child_is_the_module_with_its_arguments_its_environment_its_log_and_its_status(
    forkserver: ForkServer, folder: Path
) -> None:
    first = forkserver.start("program", ["end", "3"], environment={"WHAT": "one"}, log=folder / "log")
    assert first.wait(END_MAX_S) == 3
    second = forkserver.start("program", ["end", "0"], environment={"WHAT": "two"}, log=folder / "log")
    assert second.wait(END_MAX_S) == 0
    lines = [f"one ['end', '3'] {first.id}", f"two ['end', '0'] {second.id}"]
    assert (folder / "log").read_text().splitlines() == lines


def test_children_are_killed_each_by_itself(forkserver: ForkServer, folder: Path) -> None:
    both = [forkserver.start("program", ["wait"], environment={"WHAT": ""}, log=folder / "log") for _ in range(2)]
    assert [child.poll() for child in both] == [None, None]
    both[0].send(signal.SIGKILL)
    assert both[0].wait(END_MAX_S) == -signal.SIGKILL
    assert both[1].poll() is None
    both[0].send(signal.SIGKILL)  # it has gone: nobody is hit
    both[1].send(signal.SIGTERM)
    assert both[1].wait(END_MAX_S) == -signal.SIGTERM


def test_several_threads_may_wait_for_the_same_child(forkserver: ForkServer, folder: Path) -> None:
    for _ in range(10):
        child = forkserver.start("program", ["wait"], environment={"WHAT": ""}, log=folder / "log")
        with ThreadPoolExecutor(8) as threads:
            waiting = [threads.submit(child.wait, END_MAX_S) for _ in range(8)]
            os.kill(child.id, signal.SIGKILL)
            assert [each.result() for each in waiting] == [-signal.SIGKILL] * 8


def test_another_program_is_executed_with_an_environment_of_its_own(forkserver: ForkServer, folder: Path) -> None:
    command = [sys.executable, "-c", "import os; print(os.getcwd(), sorted(os.environ)[0])"]
    child = forkserver.execute(command, folder=folder, environment={"A": "1"}, log=folder / "log")
    assert child.wait(END_MAX_S) == 0
    assert (folder / "log").read_text() == f"{folder} A\n"


def test_nobody_outlives_the_forkserver(forkserver: ForkServer, folder: Path) -> None:
    child = forkserver.start("program", ["wait"], environment={"WHAT": ""}, log=folder / "log")
    watched = os.pidfd_open(child.id)
    forkserver.__exit__()
    with open(watched, "rb") as descriptor:
        waited = subprocess.run(
            [sys.executable, "-c", "import select, sys; sys.exit(not select.select([0], [], [], 20)[0])"],
            stdin=descriptor,
            check=False,
        )
    assert waited.returncode == 0
    child.close()
