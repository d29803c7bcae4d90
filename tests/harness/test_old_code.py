"""Old code is what was there before the newest migration, with its own SDK; or it is said why there is none."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import old_code
from tests.harness.repository import ROOT


def versions(folder: Path) -> set[str]:
    return {path.name for path in (folder / "alembic/versions").glob("[0-9]*.py")}


def test_old_code_lacks_the_newest_migration_and_nothing_else_of_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "old"
    try:
        old_code.extract(folder)
    except old_code.NoHistoryError as error:
        pytest.skip(str(error))
    assert versions(ROOT) - versions(folder) == {max(versions(ROOT))}
    program = "import app.main, holdfast; print(app.main.__file__, holdfast.__file__)"
    environment = os.environ | {"PYTHONPATH": old_code.old_path(folder)}
    ran = subprocess.run([sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, check=True)
    assert ran.stdout.decode().split() == [
        str(folder / "app/main.py"),
        str(folder / "participants/holdfast/__init__.py"),
    ]


def test_old_code_lacks_what_it_is_to_lack(tmp_path: Path) -> None:
    folder = tmp_path / "old"
    added = "participants/holdfast/participant/inquiry.py"
    try:
        old_code.extract(folder, lacking=added)
    except old_code.NoHistoryError as error:
        pytest.skip(str(error))
    assert not (folder / added).exists()
    assert (folder / "participants/holdfast/__init__.py").exists()


def test_without_history_it_is_said_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "alembic/versions").mkdir(parents=True)
    (tmp_path / "alembic/versions/0001_first.py").touch()
    monkeypatch.setattr(old_code, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(old_code.NoHistoryError, match="not a git repository"):
        old_code.extract(tmp_path / "old")


def test_a_history_that_begins_after_the_migration_is_too_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a shallow clone."""
    (tmp_path / "alembic/versions").mkdir(parents=True)
    (tmp_path / "alembic/versions/0001_first.py").touch()
    identity = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.invalid"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "all at once"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monkeypatch.setattr(old_code, "ROOT", tmp_path)
    with pytest.raises(old_code.NoHistoryError, match="rev-parse"):
        old_code.extract(tmp_path / "old")
