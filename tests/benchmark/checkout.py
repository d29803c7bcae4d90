"""A folder with Holdfast's code, of whatever age. It is only ever run, as processes, and never imported here."""

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.harness.repository import ROOT

_ALWAYS_THERE: Final = ("app/__main__.py", "participants/holdfast/__init__.py")
"""What each commit has, whatever its layout: the coordinator's command, and the SDK that the coordinator imports."""


class BadCheckout(Exception):
    """What was named is no folder, or has no Holdfast in it."""


@dataclass(frozen=True)
class Checkout:
    """Run `python -m app …` in `root`, with `app` and `holdfast` from there."""

    root: Path

    @property
    def label(self) -> str:
        """The commit, and whether files differ from it; the folder's name where git does not know."""
        if not (self.root / ".git").exists():
            return self.root.name
        described = ["git", "-c", "safe.directory=*", "describe", "--always", "--dirty", "--exclude=*"]
        done = subprocess.run(described, cwd=self.root, capture_output=True, text=True, check=False)
        return done.stdout.strip() or self.root.name


THIS: Final = Checkout(ROOT)


def open_checkout(folder: Path) -> Checkout:
    """The checkout in this folder. Raises BadCheckout, which says what to do."""
    if not folder.is_dir():
        raise BadCheckout(f"{folder}: no such folder. Make one: git worktree add {folder} <commit>")
    missing = [path for path in _ALWAYS_THERE if not (folder / path).is_file()]
    if missing:
        raise BadCheckout(
            f"{folder} is not the root of a checkout of Holdfast: it has no {' and no '.join(missing)}. "
            "Make one: git worktree add <new folder> <commit>"
        )
    return Checkout(folder.resolve())
