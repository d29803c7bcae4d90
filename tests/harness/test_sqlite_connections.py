"""A connection that a test leaves open fails that test, on any Python; one that is closed doesn't."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.harness.repository import ROOT

CONFTEST: Final = """
from tests.conftest import connections_are_closed, no_connection_is_abandoned, tmp_path
"""
LEAKS: Final = """
import gc
import sqlite3
import pytest
from sqlalchemy import create_engine

kept = []

def test_closed(tmp_path):
    sqlite3.connect(tmp_path / "a.db").close()

def test_left_open(tmp_path):
    kept.append(sqlite3.connect(tmp_path / "b.db"))

def test_left_in_a_pool(tmp_path):
    kept.append(create_engine(f"sqlite:///{tmp_path}/c.db"))
    with kept[-1].connect():
        pass

def test_disposed(tmp_path):
    engine = create_engine(f"sqlite:///{tmp_path}/d.db")
    with engine.connect():
        pass
    engine.dispose()

def test_abandoned():
    sqlite3.connect(":memory:")

@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    connection = sqlite3.connect(tmp_path_factory.mktemp("shared") / "e.db")
    yield connection
    connection.close()

def test_shared(shared):
    shared.execute("SELECT 1")

def test_shared_too(shared):
    shared.execute("SELECT 1")

def test_another_collects_it():
    gc.collect()

def test_the_last():
    sqlite3.connect(":memory:")
"""


def test_who_leaves_a_connection_open_fails(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_leaks.py").write_text(LEAKS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={tmp_path}", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'participants'}"}
    ended = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 1, ended.stdout
    assert "9 passed, 4 errors" in ended.stdout
    for test, file in (("left_open", "b.db"), ("left_in_a_pool", "c.db"), ("abandoned", ":memory:"), ("the_last", "")):
        assert re.search(rf"{file} was opened in test_leaks.py::test_{test} by", ended.stdout), test
