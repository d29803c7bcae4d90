"""Fixtures for tests that do what a page says."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.reader import Reader, loopback_of_its_own
from tests.harness.repository import ROOT


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    """A reader with an empty home, who begins somewhere inside this checkout."""
    with loopback_of_its_own() as loopback:
        reader = Reader(tmp_path, begins_in=ROOT / "docs", loopback=loopback)
        yield reader
        reader.leave()
