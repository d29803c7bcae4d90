"""Fixtures for the example services: each test gets a fresh copy of the module, on a database of its own."""

import importlib.util
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.examples.examples import Load
from tests.harness.repository import ROOT


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Executes an example as if a process of its own had imported it, with these environment variables."""
    copies = itertools.count(1)
    loaded: list[str] = []

    def load_one(name: str, **environment: str) -> ModuleType:
        for variable, value in {"DATA_DIR": str(tmp_path), **environment}.items():
            monkeypatch.setenv(variable, value)
        spec = importlib.util.spec_from_file_location(
            f"example_{name}_{next(copies)}", ROOT / f"participants/examples/{name}.py"
        )
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        loaded.append(module.__name__)
        sys.modules[module.__name__] = module
        spec.loader.exec_module(module)
        return module

    yield load_one
    for name in loaded:
        del sys.modules[name]
