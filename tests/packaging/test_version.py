"""The version is stated in one place, and everything that shows it reads it there."""

import re
import subprocess
import sys
import tomllib
from typing import Final

import holdfast
from app.main import create_app
from app.settings import Settings
from tests.harness.repository import ROOT, listed_by_git

SOURCE: Final = "participants/holdfast/version.py"
OTHERS: Final = (
    "CHANGELOG.md",  # the history of all versions
    "requirements/",  # versions of other packages
)


def test_the_api_and_the_command_line_show_the_version_of_the_package() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "app", "--version"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert shown.stdout == f"holdfast {holdfast.__version__}\n"
    assert create_app(Settings()).openapi()["info"]["version"] == holdfast.__version__


def test_the_package_takes_its_version_from_the_source() -> None:
    settings = tomllib.loads((ROOT / "participants/pyproject.toml").read_text())
    assert "version" not in settings["project"]
    assert settings["project"]["dynamic"] == ["version"]
    assert settings["tool"]["hatch"]["version"] == {"path": SOURCE.removeprefix("participants/")}


def test_nothing_else_states_the_version() -> None:
    stated = re.compile(rf"(?<![\d.]){re.escape(holdfast.__version__)}(?![\d.]*\d)")
    paths = listed_by_git("--cached", "--others", "--exclude-standard")
    ours = [path for path in paths if not path.startswith(OTHERS) and "/vendor/" not in path]
    texts = {path: (ROOT / path).read_text(errors="ignore") for path in ours if (ROOT / path).is_file()}
    assert [path for path, text in texts.items() if stated.search(text)] == [SOURCE]
