"""The key that clients and participants show, which is replaced again and again while they use it.

Replicas require keys. The one in use is in a file that everybody reads afresh. A new secret replaces it every few
seconds, at some replica; the one before stays valid for a while, so nobody may be refused.
"""

import random
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import httpx

from app.auth.api_keys import ApiKey

FILE: Final = "key"
ROTATED_EVERY_S: Final = 4.0
PREVIOUS_TTL_S: Final = 120.0
"""Longer than anybody needs to read the file again, also on a machine that is busy with other things."""
READ_EVERY_S: Final = 1.0
RIGHTS: Final[dict[str, Any]] = {"name": "crowd", "roles": ["initiator", "operator"]}


class ShownKey:
    """The key as it was in the file a moment ago."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / FILE
        self._key = ""
        self._read_at = float("-inf")

    def headers(self) -> dict[str, str]:
        """The headers that show it; none while there is no key yet."""
        now = time.monotonic()
        if now - self._read_at > READ_EVERY_S:
            self._read_at = now
            with suppress(FileNotFoundError):
                self._key = self._file.read_text()
        return {"Authorization": f"Bearer {self._key}"} if self._key else {}


class KeyRotation(threading.Thread):
    """Creates the key, and rotates it until it is stopped."""

    def __init__(self, folder: Path, first: ApiKey, urls: Sequence[str], seed: str) -> None:
        super().__init__(name="key-rotation", daemon=True)
        self.rotated = 0
        self._file = folder / FILE
        self._urls = urls
        self._draw = random.Random(f"{seed}:keys")
        self._http = httpx.Client(headers={"Authorization": f"Bearer {first.text}"}, timeout=5.0)
        self._key_id: str | None = None
        self._stopping = threading.Event()

    def create(self) -> None:
        """Create the key, and start to rotate it."""
        while self._key_id is None:
            self._replace()
            self._stopping.wait(0.1)
        self.start()

    def run(self) -> None:
        while not self._stopping.wait(ROTATED_EVERY_S):
            self._replace()

    def stop(self) -> None:
        self._stopping.set()
        if self.is_alive():
            self.join()
        self._http.close()

    def _replace(self) -> None:
        """Rotate the key, or create another one: after a rotation whose answer was lost nobody knows its secret."""
        url, key_id = self._draw.choice(self._urls), self._key_id
        path = "/v1/admin/keys" if key_id is None else f"/v1/admin/keys/{key_id}/rotate"
        body = RIGHTS if key_id is None else {"previous_ttl_s": PREVIOUS_TTL_S}
        self._key_id = None
        with suppress(httpx.HTTPError):
            answer = self._http.post(url + path, json=body)
            if answer.is_success:
                made = self._file.with_suffix(".new")
                made.write_text(answer.json()["key"])
                made.rename(self._file)
                self._key_id = answer.json()["id"]
                self.rotated += key_id is not None
