"""Finds SQLite connections that nobody closes, and names the test that opened them.

Python 3.13 warns of them whenever it collects the garbage, which blames another test. Here every connection of the
process is known from its opening, on any Python.
"""

import sqlite3
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.harness.repository import ROOT

_lock = threading.Lock()
_opened: list["weakref.ref[TrackedConnection]"] = []
_abandoned: list[str] = []
_test = "no test"


class TrackedConnection(sqlite3.Connection):
    """A connection that says so when it is collected unclosed. `origin` tells who opened it, and which file."""

    origin = ""

    def __init__(self, database: Any, *args: Any, **options: Any) -> None:
        super().__init__(database, *args, **options)
        self.file = str(database).removeprefix("file:").partition("?")[0]
        self.origin = f"{database} was opened in {_test} by {' < '.join(_callers()) or 'other code'}"
        with _lock:
            _opened.append(weakref.ref(self))

    def __del__(self) -> None:
        if self.origin and is_open(self):
            _abandoned.append(self.origin)


def is_open(connection: sqlite3.Connection) -> bool:
    try:
        connection.total_changes  # noqa: B018 the cheapest thing that a closed connection refuses, in any thread
    except sqlite3.ProgrammingError:
        return False
    return True


def track() -> None:
    """From now on every connection of this process is known."""
    connect = sqlite3.connect

    def tracked(*args: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*args, **{"factory": TrackedConnection, **options})
        return connection

    sqlite3.connect = sqlite3.dbapi2.connect = tracked  # type: ignore[assignment]


@contextmanager
def opened_by(test: str) -> Iterator[None]:
    """Connections that are opened meanwhile are this test's."""
    global _test  # noqa: PLW0603 there is one per process, as of what it stands for
    _test = test
    try:
        yield
    finally:
        _test = f"what came after {test}"


def left_open(folder: Path) -> list[str]:
    """The connections to files of this folder that are still open, each told of once."""
    with _lock:
        connections = [connection for reference in _opened if (connection := reference()) is not None]
        _opened[:] = [weakref.ref(connection) for connection in connections if is_open(connection)]
    found: list[str] = []
    for connection in connections:
        if connection.origin and is_open(connection) and Path(connection.file).is_relative_to(folder):
            found.append(connection.origin)
            connection.origin = ""
    return found


def abandoned() -> list[str]:
    """The connections that were collected unclosed since this was asked last."""
    found = [*_abandoned]
    del _abandoned[: len(found)]
    return found


def _callers() -> list[str]:
    """Lines of this repository that led here, the innermost first."""
    lines: list[str] = []
    frame = sys._getframe(2)
    while frame is not None and len(lines) < 6:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT) and ".venv" not in path.parts and path != Path(__file__):
            lines.append(f"{path.relative_to(ROOT)}:{frame.f_lineno}")
        frame = frame.f_back  # type: ignore[assignment]
    return lines
