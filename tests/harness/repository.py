"""What git knows about the repository that is being tested."""

import subprocess
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]


def listed_by_git(*arguments: str) -> list[str]:
    """The paths that `git ls-files` lists; skips the test where there is no git checkout, as in an archive."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    # A checkout may belong to another user than the one who tests it, in a container most of all.
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z", *arguments]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for path in listed.split("\0") if path]
