"""What clients and participants were told about transactions: one JSON line each, written at once."""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """One question and what came back. Times are monotonic; `status` 0 means that no answer came."""

    kind: str  # begin, get, decision, cancel, inquiry
    replica: int
    sent_at: float
    seen_at: float
    status: int
    key: str | None = None
    transaction_id: str | None = None
    decision: str | None = None
    outcome: str | None = None
    problem: str | None = None

    @property
    def decided(self) -> bool:
        return self.decision in ("confirm", "cancel")


def note_of(
    kind: str,
    document: Any,
    *,
    replica: int,
    sent_at: float,
    seen_at: float,
    status: int,
    key: str | None = None,
    transaction_id: str | None = None,
) -> Note:
    """What an answer told whoever asked; `transaction_id` where the question named the transaction."""
    by_id = document if status == 200 and isinstance(document, dict) else None
    told = (transaction_in(document) if transaction_id is None else by_id) or {}
    return Note(
        kind=kind,
        replica=replica,
        sent_at=sent_at,
        seen_at=seen_at,
        status=status,
        key=key,
        transaction_id=transaction_id or told.get("id"),
        decision=told.get("decision"),
        outcome=told.get("outcome"),
        problem=slug_of(document),
    )


def transaction_in(document: Any) -> dict[str, Any] | None:
    """The transaction that an answer shows: as it is, or as a member of a problem."""
    if not isinstance(document, dict):
        return None
    shown = document.get("transaction", document)
    return shown if isinstance(shown, dict) and "id" in shown else None


class Notebook:
    """Appends to a file; SIGKILL loses no line that was written."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(self, note: Note) -> None:
        known = {name: value for name, value in asdict(note).items() if value is not None}
        os.write(self._file, json.dumps(known).encode() + b"\n")


def read_notes(path: Path) -> Iterator[Note]:
    """The notes of one file, in the order in which they were written."""
    for line in path.read_text().splitlines():
        yield Note(**json.loads(line))


def slug_of(document: Any) -> str | None:
    """Which problem an answer names, if it is one (RFC 9457)."""
    kind = document.get("type") if isinstance(document, dict) else None
    return kind.rpartition("/")[2] if isinstance(kind, str) else None
