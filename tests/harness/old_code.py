"""The code as it was before a file was added, such as the newest migration, by git's history; or why not."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.harness.repository import ROOT

PARTS = ("app", "alembic", "participants")


class NoHistoryError(Exception):
    """There is no older code to run; the message says why."""


def extract(folder: Path, *, lacking: str | None = None) -> str:
    """Put the code from before the newest migration, or the file `lacking`, into `folder`; returns the commit.

    Raises NoHistoryError.
    """
    newest = lacking or str(max((ROOT / "alembic/versions").glob("[0-9]*.py")).relative_to(ROOT))
    added = _git("log", "--diff-filter=A", "--format=%H", "-1", "--", newest).decode().strip()
    if not added:
        raise NoHistoryError(f"git does not know who added {newest}")
    before = _git("rev-parse", "--verify", "--quiet", f"{added}^").decode().strip()
    archive = _git("archive", before, *PARTS)
    if newest.encode() in archive:
        raise NoHistoryError(f"the parent of {added[:7]} has {newest} already")
    folder.mkdir()
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
    return before[:7]


def old_path(folder: Path) -> str:
    """Where old code is imported from: the coordinator, and the SDK that it had."""
    return os.pathsep.join((str(folder), str(folder / "participants")))


def migrate(folder: Path, environment: Mapping[str, str]) -> None:
    """Bring the database to the schema that the old code knows."""
    changed = {**os.environ, **environment, "PYTHONPATH": old_path(folder)}
    subprocess.run([sys.executable, "-m", "app", "migrate"], cwd=folder, env=changed, check=True, capture_output=True)


def _git(*arguments: str) -> bytes:
    # A checkout may belong to another user than the one who tests it, in a container most of all.
    command = ["git", "-c", "safe.directory=*", *arguments]
    try:
        return subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout
    except OSError as error:
        raise NoHistoryError(f"git: {error}") from error
    except subprocess.CalledProcessError as error:
        raise NoHistoryError(f"git {arguments[0]} failed: {error.stderr.decode().strip()}") from error
