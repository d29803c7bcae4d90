"""The statements on `participants`, the registry."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, bindparam, delete, exists, insert, select, update

from app.storage.audit import AuditEntry, insert_entries
from app.storage.expressions import UNFINISHED
from app.storage.participant_headers import origin_of, put_headers
from app.storage.tables import branches, participant_secrets, participants, transactions
from holdfast.wire import Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredParticipant:
    """A registry entry. If `call_timeout_s` is None, the coordinator's default applies.

    `kinds` are those of the branches that it takes; None if it doesn't say.
    """

    name: str
    base_url: str
    call_timeout_s: float | None
    concurrency_max: int
    kinds: tuple[Kind, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """A participant to register, and the entry of the record, to which this adds what is changed.

    `headers` are encrypted. An empty text removes those that are stored, and None keeps them for the same origin.
    """

    participant: RegisteredParticipant
    audited: AuditEntry | None = None
    headers: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """A participant to remove, and the entry of the record, likewise."""

    name: str
    audited: AuditEntry | None = None


_PARTICIPANTS: Final = select(participants).order_by(participants.c.name)
_ROW: Final = select(participants).where(participants.c.name == bindparam("name"))
_KEPT: Final = (
    select(participants.c.name)
    .where(participants.c.name.in_(bindparam("names", expanding=True)))
    .order_by(participants.c.name)
    .with_for_update(read=True, key_share=True)
)


def list_participants(connection: Connection) -> list[RegisteredParticipant]:
    """Every registered participant, by name."""
    return [_registered(row) for row in connection.execute(_PARTICIPANTS).mappings()]


def keep_registered(connection: Connection, names: Set[str]) -> set[str]:
    """Those of these names that are registered: none of them can be deleted before this database transaction ends.

    The locks are shared, so that begins don't wait for each other, and taken in the order of the names, so that they
    don't deadlock.
    """
    return set(connection.execute(_KEPT, {"names": sorted(names)}).scalars()) if names else set()


def put_participants(connection: Connection, items: Sequence[Registration]) -> list[bool]:
    """Register each participant or replace its entry; returns for each whether it is new."""
    return [_put_participant(connection, item) for item in items]


def delete_participants(connection: Connection, items: Sequence[Removal]) -> list[bool | None]:
    """Remove participants: True if done, False if unfinished transactions need it, None if unknown."""
    return [_delete_participant(connection, item) for item in items]


def _registered(row: Mapping[Any, Any]) -> RegisteredParticipant:
    kinds = row["kinds"]
    return RegisteredParticipant(
        **{**row, "kinds": None if kinds is None else tuple(Kind(kind) for kind in kinds.split(","))}
    )


def _put_participant(connection: Connection, item: Registration) -> bool:
    values = asdict(item.participant)
    values["kinds"] = None if item.participant.kinds is None else ",".join(item.participant.kinds)
    name = values.pop("name")
    before = connection.execute(_ROW.with_for_update(key_share=True), {"name": name}).mappings().first()
    if before is None:
        connection.execute(insert(participants).values(name=name, **values))
    else:
        connection.execute(update(participants).where(participants.c.name == name).values(**values))
    has_moved = before is None or origin_of(before["base_url"]) != origin_of(item.participant.base_url)
    put_headers(connection, name, item.headers, has_moved=has_moved)
    if item.audited is not None:
        shown_before = None if before is None else _shown(dict(before))
        insert_entries(connection, [replace(item.audited, before=shown_before, after=_shown({"name": name} | values))])
    return before is None


def _delete_participant(connection: Connection, item: Removal) -> bool | None:
    """Look, lock and look again: a begin that has locked the row is waited for, and no later one finds it.

    The first look locks nothing, so that the begins of a participant in use never wait for this.
    """
    before = None
    for each in (_ROW, _ROW.with_for_update()):
        before = connection.execute(each, {"name": item.name}).mappings().first()
        if before is None:
            return None
        if _is_needed(connection, item.name):
            return False
    put_headers(connection, item.name, "", has_moved=False)
    connection.execute(delete(participant_secrets).where(participant_secrets.c.participant == item.name))
    is_done = connection.execute(delete(participants).where(participants.c.name == item.name)).rowcount == 1
    if is_done and before is not None and item.audited is not None:
        insert_entries(connection, [replace(item.audited, before=_shown(dict(before)))])
    return is_done


def _shown(row: dict[str, Any]) -> str:
    return msgspec.json.encode(row).decode()


def _is_needed(connection: Connection, name: str) -> bool:
    branch = branches.c
    needs = exists().where(branch.participant == name, branch.transaction_id == transactions.c.id)
    looks = (select(transactions.c.id).where(kind, needs).limit(1) for kind in UNFINISHED)
    return any(connection.execute(look).first() is not None for look in looks)
