"""The statements on `participants`, the registry."""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, bindparam, delete, exists, insert, select, update

from app.storage.expressions import UNFINISHED
from app.storage.tables import branches, participants, transactions


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredParticipant:
    """A registry entry. If `call_timeout_s` is None, the coordinator's default applies."""

    name: str
    base_url: str
    call_timeout_s: float | None
    concurrency_max: int


_PARTICIPANTS: Final = select(participants).order_by(participants.c.name)
_KEPT: Final = (
    select(participants.c.name)
    .where(participants.c.name.in_(bindparam("names", expanding=True)))
    .order_by(participants.c.name)
    .with_for_update(read=True, key_share=True)
)


def list_participants(connection: Connection) -> list[RegisteredParticipant]:
    """Every registered participant, by name."""
    return [RegisteredParticipant(**dict(row)) for row in connection.execute(_PARTICIPANTS).mappings()]


def keep_registered(connection: Connection, names: Set[str]) -> set[str]:
    """Those of these names that are registered: none of them can be deleted before this database transaction ends.

    The locks are shared, so that begins don't wait for each other, and taken in the order of the names, so that they
    don't deadlock.
    """
    return set(connection.execute(_KEPT, {"names": sorted(names)}).scalars()) if names else set()


def put_participants(connection: Connection, items: Sequence[RegisteredParticipant]) -> list[bool]:
    """Register each participant or replace its entry; returns for each whether it is new."""
    return [_put_participant(connection, item) for item in items]


def delete_participants(connection: Connection, items: Sequence[str]) -> list[bool | None]:
    """Remove participants by name: True if done, False if unfinished transactions need it, None if unknown."""
    return [_delete_participant(connection, name) for name in items]


def _put_participant(connection: Connection, item: RegisteredParticipant) -> bool:
    values = {
        "base_url": item.base_url,
        "call_timeout_s": item.call_timeout_s,
        "concurrency_max": item.concurrency_max,
    }
    found = connection.execute(update(participants).where(participants.c.name == item.name).values(**values))
    if found.rowcount:
        return False
    connection.execute(insert(participants).values(name=item.name, **values))
    return True


def _delete_participant(connection: Connection, name: str) -> bool | None:
    """Look, lock and look again: a begin that has locked the row is waited for, and no later one finds it.

    The first look locks nothing, so that the begins of a participant in use never wait for this.
    """
    row = select(participants.c.name).where(participants.c.name == name)
    for each in (row, row.with_for_update()):
        if connection.execute(each).first() is None:
            return None
        if _is_needed(connection, name):
            return False
    return connection.execute(delete(participants).where(participants.c.name == name)).rowcount == 1


def _is_needed(connection: Connection, name: str) -> bool:
    branch = branches.c
    needs = exists().where(branch.participant == name, branch.transaction_id == transactions.c.id)
    looks = (select(transactions.c.id).where(kind, needs).limit(1) for kind in UNFINISHED)
    return any(connection.execute(look).first() is not None for look in looks)
