"""Files of other projects are the ones that their packages hold: each folder has a VENDOR.json that says so."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any, Final

import pytest

from tests.harness.repository import ROOT, listed_by_git

RECORD: Final = "VENDOR.json"


def digest(content: bytes, algorithm: str) -> str:
    """In the notation of Subresource Integrity, as npm and browsers use it."""
    return f"{algorithm}-{base64.b64encode(hashlib.new(algorithm, content).digest()).decode()}"


def faults(folder: Path) -> list[str]:
    """What a folder holds that its record doesn't say, or the other way round."""
    record: dict[str, Any] = json.loads((folder / RECORD).read_text())
    found = {path.name: digest(path.read_bytes(), "sha384") for path in folder.iterdir() if path.name != RECORD}
    names = record["files"].keys() | found.keys()
    wrong = [f"{name}: {found.get(name)}" for name in sorted(names) if record["files"].get(name) != found.get(name)]
    missing = [member for member in ("package", "version", "license", "integrity") if not record.get(member)]
    licensed = any(name.startswith("LICENSE") for name in found)
    return wrong + [f"{RECORD} has no {member}" for member in missing] + ([] if licensed else ["no LICENSE"])


def folders() -> list[Path]:
    paths = listed_by_git("--cached", "--others", "--exclude-standard")
    return sorted({(ROOT / path).parent for path in paths if path.endswith(f"/{RECORD}")})


def test_every_vendored_file_is_what_its_record_says() -> None:
    assert folders()
    assert {folder.relative_to(ROOT).as_posix(): faults(folder) for folder in folders() if faults(folder)} == {}


def test_every_vendored_file_is_tracked_and_reaches_the_image() -> None:
    tracked = {ROOT / path for path in listed_by_git("--cached", "--others", "--exclude-standard")}
    present = {path for folder in folders() for path in folder.iterdir()}
    assert present <= tracked, "ignored by git"
    assert all(path.is_relative_to(ROOT / "app") for path in present), "the Dockerfile copies app/"


def test_swagger_ui_is_of_the_version_that_its_record_says() -> None:
    folder = ROOT / "app/docs_ui/vendor/swagger-ui-dist"
    version = json.loads((folder / RECORD).read_text())["version"]
    assert f'"{version}"' in (folder / "swagger-ui-bundle.js").read_text()


@pytest.mark.parametrize("planted", ["changed", "added", "removed", "unlicensed"])
def test_a_planted_difference_is_found(planted: str, tmp_path: Path) -> None:
    files = {"a.js": b"1", "LICENSE": b"MIT"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    record = {"package": "a", "version": "1", "license": "MIT", "integrity": "sha512-x"}
    record_of = {name: digest(content, "sha384") for name, content in files.items()}
    (tmp_path / RECORD).write_text(json.dumps(record | {"files": record_of}))
    assert faults(tmp_path) == []
    match planted:
        case "changed":
            (tmp_path / "a.js").write_bytes(b"2")
        case "added":
            (tmp_path / "b.js").write_bytes(b"2")
        case "removed":
            (tmp_path / "a.js").unlink()
        case "unlicensed":
            (tmp_path / "LICENSE").unlink()
            del record_of["LICENSE"]
            (tmp_path / RECORD).write_text(json.dumps(record | {"files": record_of}))
    assert len(faults(tmp_path)) == 1
