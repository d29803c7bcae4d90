"""Runs one search: spin writes the verifier in C, gcc compiles it, and it looks at every state.

Knows spin, its options and what it prints; what to search for is in searches.py.
"""

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.model import tables
from tests.model.searches import Search

MODEL: Final = Path(__file__).parent / "tcc.pml"
TIME_MAX_S: Final = 300.0
MEMORY_MAX_MB: Final = 4000
DEPTH_MAX: Final = 100_000


class SpinError(Exception):
    """The search could not be made, or did not come to its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What came of a search. `told` is the violation, line by line; empty when there is none."""

    search: Search
    states: int
    seconds: float
    memory_mb: float
    violation: str | None
    told: tuple[str, ...]

    @property
    def steps(self) -> int:
        """How many steps the violation takes; what is indented belongs to the step before it."""
        return sum(not line.startswith(" ") for line in self.told)

    @property
    def is_as_expected(self) -> bool:
        return (self.violation is not None) == self.search.must_fail


def why_no_spin() -> str | None:
    """What to install, when this machine can't search the model."""
    missing = [name for name in ("spin", "gcc") if shutil.which(name) is None]
    return f"no {' and no '.join(missing)} on this machine: apt-get install spin gcc libc6-dev" if missing else None


def run(search: Search) -> Found:
    """Search all states, or until the first violation. Raises SpinError."""
    with tempfile.TemporaryDirectory(prefix="holdfast-model-") as folder:
        for path in (MODEL, tables.FILE):
            shutil.copy(path, folder)
        _command(folder, "spin", "-a", *(f"-D{define}" for define in search.defines), MODEL.name)
        _command(folder, "gcc", *_compiler_options(search), "-o", "pan", "pan.c")
        said = _command(folder, "./pan", *(["-a"] if search.endless else []), "-n", f"-m{DEPTH_MAX}")
        violation = re.search(r"^pan:1: (.*) \(at depth \d+\)$", said, re.MULTILINE)
        if violation is None and "errors: 0" not in said:
            raise SpinError(f"{search.name}: {said}")
        if "Search not completed" in said and violation is None:
            raise SpinError(f"{search.name}: the search was not completed\n{said}")
        return Found(
            search=search,
            states=int(_number(r"(\d+) states, stored", said)),
            seconds=_number(r"elapsed time ([\d.]+) seconds", said),
            memory_mb=_number(r"([\d.]+)\s+total actual memory usage", said),
            violation=violation[1] if violation else None,
            told=_told(folder) if violation else (),
        )


def _compiler_options(search: Search) -> list[str]:
    """A mistake is searched for breadth first, so that its counterexample is one of the shortest.

    gcc takes longer than most searches: it optimises as little as pays.
    """
    options = ["-w", "-DNOREDUCE", f"-DMEMLIM={MEMORY_MAX_MB}"]
    if search.endless:
        return [*options, "-O1"]
    if search.must_fail:
        return [*options, "-O0", "-DSAFETY", "-DNOCLAIM", "-DBFS"]
    return [*options, "-O1", "-DSAFETY", "-DNOCLAIM"]


def _command(folder: str, *command: str) -> str:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIME_MAX_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise SpinError(f"{command[0]} took more than {TIME_MAX_S:g} s") from error
    if done.returncode != 0 and command[0] != "./pan":
        raise SpinError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return done.stdout


def _number(pattern: str, said: str) -> float:
    found = re.search(pattern, said)
    if found is None:
        raise SpinError(f"nothing like {pattern!r} in:\n{said}")
    return float(found[1])


def _told(folder: str) -> tuple[str, ...]:
    """The violation told in the words of the code, from what the model prints when it is replayed."""
    lines = _command(folder, "./pan", "-r", "-n").splitlines()
    return tuple(_in_words(line) for line in lines if _OF_THE_MODEL.match(line))


def _in_words(line: str) -> str:
    return re.sub(r"(\w+) (\d+)", lambda found: _WORDS.get(found[0], found[0]), line.rstrip())


_OF_THE_MODEL: Final = re.compile(
    r"(replica|participant) \d|  saved: |  not saved: |purged$|the deadline has passed$|no more faults$"
)

_WORDS: Final = {
    f"{kind} {number}": str(value)
    for kind, values in tables.words().items()
    for number, value in enumerate(values, start=1)
}
