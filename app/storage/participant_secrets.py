"""The statements on `participant_secrets`. Secrets pass through here encrypted; nothing here can read them."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, insert, select, update

from app.storage.audit import AuditEntry, insert_entries
from app.storage.errors import ConcurrentWriteError
from app.storage.tables import participant_secrets, participants

PREVIOUS_MAX: Final = 2
"""How many earlier secrets are kept: two rotations in a row don't end the one that the participant has."""

Expiring = tuple[str, float]
"""An earlier secret, encrypted, and when it expires."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSecret:
    """A participant's secret, and those before it, the newest first; all encrypted."""

    participant: str
    current: str
    previous: tuple[Expiring, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSecret:
    """A secret to store, encrypted; the one that is there stays valid until `previous_expires_at`.

    If that is None, all earlier secrets end at once.
    """

    participant: str
    current: str
    previous_expires_at: float | None
    created_at: float
    audited: AuditEntry | None = None


_TABLE: Final = participant_secrets.c
_SECRETS: Final = select(_TABLE.participant, _TABLE.current, _TABLE.previous).order_by(_TABLE.participant)


def list_secrets(connection: Connection) -> list[StoredSecret]:
    """All secrets, by participant."""
    return [
        StoredSecret(participant=participant, current=current, previous=_read(previous))
        for participant, current, previous in connection.execute(_SECRETS)
    ]


def rotate_secrets(connection: Connection, items: Sequence[NewSecret]) -> list[StoredSecret | None]:
    """Store each new secret; returns what is stored then, or None if no such participant is registered."""
    return [_rotate_secret(connection, item) for item in items]


def re_encrypt(connection: Connection, items: Sequence[Callable[[str], str]]) -> list[int]:
    """Replace every stored text by what each function makes of it; returns of how many participants, for each."""
    return [_re_encrypt(connection, item) for item in items]


def _rotate_secret(connection: Connection, item: NewSecret) -> StoredSecret | None:
    """The row of the participant is locked, so rotations and a removal come one after the other."""
    lock = select(participants.c.name).where(participants.c.name == item.participant).with_for_update()
    if connection.execute(lock).first() is None:
        return None
    mine = _TABLE.participant == item.participant
    found = connection.execute(select(_TABLE.current, _TABLE.previous).where(mine)).first()
    previous: tuple[Expiring, ...] = ()
    if found is not None and item.previous_expires_at is not None:
        alive = [each for each in _read(found.previous) if each[1] > item.created_at]
        previous = ((found.current, item.previous_expires_at), *alive)[:PREVIOUS_MAX]
    values = {"current": item.current, "previous": json.dumps(previous), "created_at": item.created_at}
    if found is None:
        connection.execute(insert(participant_secrets).values(participant=item.participant, **values))
    else:
        written = update(participant_secrets).where(mine, _TABLE.current == found.current).values(**values)
        if connection.execute(written).rowcount != 1:  # what was read came from an older snapshot
            raise ConcurrentWriteError
    if item.audited is not None:
        insert_entries(connection, [item.audited])
    return StoredSecret(participant=item.participant, current=item.current, previous=previous)


def _re_encrypt(connection: Connection, changed: Callable[[str], str]) -> int:
    rows = list_secrets(connection)
    for row in rows:
        previous = json.dumps([(changed(token), expires_at) for token, expires_at in row.previous])
        same = (_TABLE.participant == row.participant, _TABLE.current == row.current)
        written = update(participant_secrets).where(*same).values(current=changed(row.current), previous=previous)
        connection.execute(written)  # a secret that was rotated meanwhile is encrypted with the first key already
    return len(rows)


def _read(previous: str) -> tuple[Expiring, ...]:
    return tuple((token, expires_at) for token, expires_at in json.loads(previous))
