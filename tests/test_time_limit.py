"""A test that hangs fails by its name, whatever it waits for, and the others go on."""

import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

HANGING: Final = """
import asyncio
import threading

def test_waits_for_a_thread():
    threading.Event().wait()

async def test_waits_on_its_loop():
    await asyncio.get_running_loop().create_future()

def test_goes_on():
    assert True
"""


def test_one_test_has_a_limit(pytestconfig: pytest.Config) -> None:
    assert 0 < float(pytestconfig.getini("timeout")) <= 600


def test_a_test_that_hangs_fails_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "test_hanging.py").write_text(HANGING)
    options = [
        "-q",
        "-rf",
        "-p",
        "no:cacheprovider",
        "-o",
        "asyncio_mode=auto",
        "--timeout=2",
        "--timeout-method=signal",
    ]
    command = [sys.executable, "-m", "pytest", *options, f"--rootdir={tmp_path}", str(tmp_path)]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 1, ended.stdout
    for name in ("test_waits_for_a_thread", "test_waits_on_its_loop"):
        assert f"FAILED test_hanging.py::{name}" in ended.stdout
    assert "2 failed, 1 passed" in ended.stdout
