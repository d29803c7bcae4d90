"""Appends records to files as JSON lines, durably. Doesn't choose what to export, or when (retention.py does)."""

import os
import secrets
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from app.protocol.values import CallRecord, Transaction
from app.storage.purge import Record

Render = Callable[[Transaction, Iterable[CallRecord]], Iterable[bytes]]
"""Renders a record as JSON on one line, in pieces."""


class Export:
    """Appends records to a file that only this process writes; a new one for each day (UTC)."""

    def __init__(self, directory: Path, render: Render) -> None:
        self._directory = directory
        self._render = render
        self._process = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"

    def append(self, records: Iterable[Record], at: float) -> None:
        """Write a line for each record; returns when all are on disk. If it raises OSError, no partial line is left."""
        path = self._directory / f"transactions-{datetime.fromtimestamp(at, UTC):%Y-%m-%d}-{self._process}.jsonl"
        with open(path, "ab", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            whole = file.tell()
        try:
            with open(path, "ab") as file:
                for record in records:
                    file.writelines(self._render(*record))
                    file.write(b"\n")
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            with suppress(OSError):
                os.truncate(path, whole)
            raise
        if whole == 0:
            _sync_directory(self._directory)


def _sync_directory(directory: Path) -> None:
    """Make the new file's directory entry durable, too."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
