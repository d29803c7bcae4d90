"""The API keys of the demo and of `make run`: files that only their owner can read, and that survive a restart.

The first key, an admin's, is written before the coordinator starts for the first time. With it the others are created,
each with the rights that its service needs.
"""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import httpx

from examples.processes import ROOT

FIRST: Final = "first"
YOU: Final = "you"
"""The key for trying things out by hand."""


class KeyFiles:
    """Keys in `folder`, one a file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, name: str) -> Path:
        return self._folder / name

    def text(self, name: str) -> str:
        """A key that exists."""
        return self.path(name).read_text(encoding="ascii").strip()

    def settings(self) -> dict[str, object]:
        """The coordinator's settings, with a first key."""
        self._folder.mkdir(parents=True, exist_ok=True)
        if not self.path(FIRST).exists():
            generate = [sys.executable, "-m", "app", "keys", "generate"]
            self._write(FIRST, subprocess.run(generate, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
        return {"auth": "require", "bootstrap_key_file": self.path(FIRST)}

    async def create(self, coordinator_url: str, wanted: Mapping[str, Mapping[str, Any]]) -> None:
        """Create those of these keys that have no file yet; `wanted` is name → rights."""
        headers = {"Authorization": f"Bearer {self.text(FIRST)}"}
        async with httpx.AsyncClient(base_url=coordinator_url, headers=headers, timeout=10.0, trust_env=False) as http:
            for name, rights in wanted.items():
                if not self.path(name).exists():
                    answer = await http.post("/v1/admin/keys", json={"name": name, **rights})
                    self._write(name, answer.raise_for_status().json()["key"])

    def _write(self, name: str, key: str) -> None:
        descriptor = os.open(self.path(name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(key.strip() + "\n")


def rights(participants: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Who needs a key, and what it may do."""
    keys: dict[str, dict[str, Any]] = {
        YOU: {"roles": ["initiator", "operator", "admin"], "endpoints": True},
        "order": {"roles": ["initiator"], "participants": list(participants)},
    }
    return keys | {name: {"roles": ["participant"], "participant": name} for name in participants}
