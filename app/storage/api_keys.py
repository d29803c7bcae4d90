"""The statements on `api_keys`. A key is never deleted: the record names it, and what was revoked stays so."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, bindparam, insert, select, update

from app.storage.audit import AuditEntry, insert_entries
from app.storage.tables import api_keys


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredKey:
    """A key as it is stored: hashes of its secrets, in hex, and what it may do. Times are seconds since the epoch.

    After a rotation the hash of the secret before is valid until `previous_until`.
    """

    id: str
    name: str
    secret_hash: str
    roles: tuple[str, ...]
    owner: str
    created_at: float
    participant: str | None = None
    participants: tuple[str, ...] | None = None
    endpoints: bool = False
    previous_hash: str | None = None
    previous_until: float | None = None
    expires_at: float | None = None
    revoked_at: float | None = None
    last_used_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    """A key to create, and the entry of the record. With `only_first` it is created only if no key ever existed."""

    key: StoredKey
    audited: AuditEntry
    only_first: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotation:
    """Another secret for a key that isn't revoked, with the entry of the record."""

    id: str
    secret_hash: str
    previous_until: float
    audited: AuditEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocation:
    """The end of a key, with the entry of the record. `at` is in seconds since the epoch."""

    id: str
    at: float
    audited: AuditEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """A key was used at this time, in seconds since the epoch."""

    id: str
    at: float


_KEY: Final = select(api_keys).where(api_keys.c.id == bindparam("id"))
_LOCKED_KEY: Final = _KEY.with_for_update()


def find_key(connection: Connection, id_: str) -> StoredKey | None:
    """The key with this id, revoked ones too."""
    row = connection.execute(_KEY, {"id": id_}).first()
    return None if row is None else _key(row)


def list_keys(connection: Connection) -> list[StoredKey]:
    """All keys, the oldest first."""
    return [_key(row) for row in connection.execute(select(api_keys).order_by(api_keys.c.created_at, api_keys.c.id))]


def create_keys(connection: Connection, items: Sequence[NewKey]) -> list[bool]:
    """Create each key; False for one that must be the first and isn't."""
    return [_create(connection, item) for item in items]


def rotate_keys(connection: Connection, items: Sequence[Rotation]) -> list[StoredKey | None]:
    """Replace the secret of each key; None for one that is unknown or revoked."""
    return [_rotate(connection, item) for item in items]


def revoke_keys(connection: Connection, items: Sequence[Revocation]) -> list[bool]:
    """End each key; False for one that is unknown or revoked already."""
    return [_revoke(connection, item) for item in items]


def note_uses(connection: Connection, items: Sequence[Use]) -> list[None]:
    """Note when keys were used last."""
    latest = {item.id: item.at for item in sorted(items, key=lambda each: each.at)}
    for id_, at in sorted(latest.items()):
        connection.execute(update(api_keys).where(api_keys.c.id == id_).values(last_used_at=at))
    return [None] * len(items)


def _create(connection: Connection, item: NewKey) -> bool:
    if item.only_first and connection.execute(select(api_keys.c.id).limit(1)).first() is not None:
        return False
    connection.execute(insert(api_keys).values(**_row(item.key)))
    insert_entries(connection, [item.audited])
    return True


def _rotate(connection: Connection, item: Rotation) -> StoredKey | None:
    row = connection.execute(_LOCKED_KEY, {"id": item.id}).first()
    if row is None or row.revoked_at is not None:
        return None
    changed = {
        "secret_hash": item.secret_hash,
        "previous_hash": row.secret_hash,
        "previous_until": item.previous_until,
    }
    connection.execute(update(api_keys).where(api_keys.c.id == item.id).values(**changed))
    insert_entries(connection, [item.audited])
    return replace(_key(row), **changed)


def _revoke(connection: Connection, item: Revocation) -> bool:
    ending = update(api_keys).where(api_keys.c.id == item.id, api_keys.c.revoked_at.is_(None))
    if connection.execute(ending.values(revoked_at=item.at)).rowcount != 1:
        return False
    insert_entries(connection, [item.audited])
    return True


def _row(key: StoredKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "secret_hash": key.secret_hash,
        "previous_hash": key.previous_hash,
        "previous_until": key.previous_until,
        "roles": msgspec.json.encode(key.roles).decode(),
        "owner": key.owner,
        "participant": key.participant,
        "participants": None if key.participants is None else msgspec.json.encode(key.participants).decode(),
        "endpoints": key.endpoints,
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
        "last_used_at": key.last_used_at,
    }


def _key(row: Any) -> StoredKey:
    return StoredKey(
        **{
            **row._mapping,
            "roles": msgspec.json.decode(row.roles, type=tuple[str, ...]),
            "participants": None
            if row.participants is None
            else msgspec.json.decode(row.participants, type=tuple[str, ...]),
        }
    )
