"""Tests against mutants, each in a fork of a process that has imported all libraries and nothing of ours.

Responsible for what becomes of each mutant; which there are and what survivors mean is decided elsewhere.
"""

import contextlib
import functools
import gc
import importlib
import os
import resource
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Final, NoReturn, TypeVar

import grimp
import hypothesis
import pytest

from tests.mutation.verdict import Mutant

LIBRARIES: Final = (
    *("aiosqlite", "fastapi", "httpx", "pydantic", "pydantic_settings", "respx", "sqlmodel", "sqlalchemy.ext.asyncio"),
    *(
        "alembic.command",
        "prometheus_client",
        "psycopg",
        "pymysql",
        "httptools",
        "uvicorn",
        "uvloop",
        "asyncmy",
        "asyncpg",
    ),
    *("_pytest.unittest", "pdb"),
)
PYTEST: Final = shlex.split(
    "-x -q --assert=plain --tb=no --no-header -p no:cacheprovider -p pytest_asyncio.plugin -p pytest_timeout"
    " --timeout=0"  # its timer would replace the alarm that ends a stage
)
SERVERS: Final = ("postgres", "mariadb", "mysql", "asyncmy", "asyncpg")
"""A test whose name or fixtures have one of these words needs a database server, whose start outlasts all others."""
MEMORY_MAX: Final = 4 << 30
INVALID: Final = 70  # exit code of a child whose mutant can't be imported

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Stage:
    """Tests that run together: arguments of pytest. Of those with a database, only SQLite's run."""

    arguments: str
    processor_max_s: int = 600
    wall_max_s: int = 900


@dataclass(frozen=True, slots=True)
class Ended:
    """How the tests of a stage ended on one source."""

    code: int
    processor_s: float
    wall_s: float

    @property
    def invalid(self) -> bool:
        return self.code == INVALID

    @property
    def endless(self) -> bool:
        """Ended by a signal: out of time."""
        return self.code < 0

    @property
    def survived(self) -> bool:
        return self.code == 0


class BaselineError(Exception):
    """The tests fail without a mutant, so that they can say nothing about one."""


def warm_up() -> None:
    """Import once what every child needs; examples are drawn the same way in every run, and not shrunk."""
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    for name in LIBRARIES:
        importlib.import_module(name)
    generate = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    hypothesis.settings.register_profile("mutants", derandomize=True, database=None, deadline=None, phases=generate)
    hypothesis.settings.load_profile("mutants")


def prepare(module: str) -> None:
    """Import once what does not import the module that the children will replace."""
    for name in sorted(_graph().modules - importers(module)):
        if not name.endswith("__main__"):
            importlib.import_module(name)
    assert module not in sys.modules, "no child would import a mutant"
    gc.freeze()  # else each child's first collection copies all of it


def importers(module: str) -> set[str]:
    """The module, and all of ours that import it or something that does: with each goes what is inside its package."""
    graph = _graph()
    found: set[str] = set()
    waiting = {module}
    while waiting:
        found |= waiting
        known = waiting & graph.modules
        waiting = {
            importer
            for name in known
            for importer in graph.find_modules_that_directly_import(name) | graph.find_descendants(name)
        } - found
    return found


@functools.cache
def _graph() -> grimp.ImportGraph:
    return grimp.build_graph("app", "holdfast", cache_dir=None)


def limited(module: str, path: Path, stage: Stage) -> Stage:
    """The stage with five times the time that it takes on the code as it is: what takes longer will not end."""
    source = path.read_text(encoding="utf-8")
    ((_, ended),) = each_in_a_child([source], lambda text: _test(module, path, text, stage), jobs=1)
    if not ended.survived:
        raise BaselineError(f"without a mutant: python -m pytest {stage.arguments}: exit code {ended.code}")
    return replace(stage, processor_max_s=3 + round(5 * ended.processor_s), wall_max_s=30 + round(5 * ended.wall_s))


def run(module: str, path: Path, mutants: Sequence[Mutant], stage: Stage, jobs: int) -> Iterator[tuple[Mutant, Ended]]:
    """Each mutant with how the tests ended on it, as they end."""
    return each_in_a_child(mutants, lambda mutant: _test(module, path, mutant.source, stage), jobs=jobs)


def each_in_a_child(items: Sequence[T], work: Callable[[T], NoReturn], *, jobs: int) -> Iterator[tuple[T, Ended]]:
    """Each item with how the child ended that worked on it; `jobs` children at a time."""
    waiting = list(reversed(items))
    running: dict[int, tuple[T, float]] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            item = waiting.pop()
            pid = os.fork()
            if pid == 0:
                work(item)
            running[pid] = item, time.monotonic()
        pid, status, usage = os.wait4(-1, 0)
        if pid in running:
            item, began = running.pop(pid)
            processor_s = usage.ru_utime + usage.ru_stime
            yield item, Ended(os.waitstatus_to_exitcode(status), processor_s, time.monotonic() - began)


def _test(module: str, path: Path, source: str, stage: Stage) -> NoReturn:
    """In a child: run the tests with this source in the place of the module's own, and exit with pytest's code."""
    code = INVALID
    with contextlib.suppress(BaseException):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        resource.setrlimit(resource.RLIMIT_CPU, (stage.processor_max_s, stage.processor_max_s))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_MAX, MEMORY_MAX))
        signal.alarm(stage.wall_max_s)
        sys.meta_path.insert(0, _Instead(module, path, source))
        importlib.import_module(module)
        code = 1
        code = pytest.main([*PYTEST, *shlex.split(stage.arguments)], plugins=[_WithoutServers()])
    os._exit(code)


class _WithoutServers:
    """A plugin of pytest: leaves out the tests that would start a database server."""

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if not any(word in _needs(item) for word in SERVERS)]


def _needs(item: pytest.Item) -> str:
    return " ".join((item.name, *getattr(item, "fixturenames", ())))


class _Instead(MetaPathFinder, Loader):
    """Imports a source in the place of a module."""

    def __init__(self, module: str, path: Path, source: str) -> None:
        self._module = module
        self._path = path
        self._source = source

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return spec_from_loader(fullname, self, origin=str(self._path)) if fullname == self._module else None

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self._source, self._path, "exec"), module.__dict__)
