"""A disk is full for as long as it is to be, and keeps what is on it; where it can't be made, the reason is said."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.repository import ROOT

# In a process of its own, because it leaves the mounts that everybody else sees.
PROGRAM = """
import errno, json, os, pathlib, sys
from tests.chaos.disks import Disk, separate
why_not = separate()
if why_not is not None:
    sys.exit(json.dumps({"why_not": why_not}))
folder = pathlib.Path(sys.argv[1])
disk = Disk("small", folder / "disk", bytes_max=1 << 22)
kept, more = disk.path / "kept", disk.path / "more"
kept.write_bytes(b"k" * 10_000)
seen = []
for change in (lambda: None, disk.fill, disk.free):
    change()
    try:
        more.write_bytes(b"m" * 100_000)
        seen.append("written")
    except OSError as error:
        seen.append(errno.errorcode[error.errno])
    more.unlink(missing_ok=True)
    assert kept.read_bytes() == b"k" * 10_000
mounted = [os.path.ismount(disk.path)]
disk.unmount()
print(json.dumps({"seen": seen, "mounted": [*mounted, os.path.ismount(disk.path)]}))
"""


def test_a_full_disk_takes_nothing_more_until_it_is_freed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if ran.returncode == 1 and '"why_not"' in ran.stderr:
        pytest.skip(ran.stderr.strip())
    assert json.loads(ran.stdout) == {"seen": ["written", "ENOSPC", "written"], "mounted": [True, False]}, ran.stderr
    assert list((tmp_path / "disk").iterdir()) == []  # nobody else has seen it
