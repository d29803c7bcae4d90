"""The statements on `commands`: the inbox of transactions that another process is working on.

The process that was asked inserts a row. The transaction's owner applies the command and writes the outcome in the
same database transaction as the step (transactions.py), and nobody writes it twice. No transitions and no clock here.
"""

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, assert_never

import msgspec
from sqlalchemy import Connection, Row, bindparam, delete, exists, insert, select, update

from app.protocol.messages import Asker, BranchResolved, CancelRequested, Command, Objection, RetryRequested
from app.protocol.values import ReasonCode, Settled
from app.storage.tables import commands, transactions

log = logging.getLogger(__name__)

APPLIED: Final = "applied"
"""The outcome of a command that was carried out; any other is an objection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A command, and the transaction that it is for. `at` is in seconds since the epoch."""

    id: str
    transaction_id: str
    at: float
    command: Command


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """The owner has looked at a command: `objection` says why it can't be carried out, and None that it was."""

    id: str
    objection: Objection | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """The state of a command. `heard` is None while it waits, which is in vain once the transaction is final."""

    heard: Heard | None
    is_final: bool


class WithdrawnError(Exception):
    """The command that this save carries out was withdrawn before anybody heard it. Nothing was saved."""

    def __init__(self, command_id: str) -> None:
        super().__init__(command_id)
        self.command_id = command_id


class _Cancel(msgspec.Struct, tag="cancel"):
    code: ReasonCode


class _Retry(msgspec.Struct, tag="retry"):
    pass


class _Resolve(msgspec.Struct, tag="resolve"):
    branch: str
    settled: Settled
    send: bool = False


_DECODER: Final = msgspec.json.Decoder(_Cancel | _Retry | _Resolve)
_WAITS: Final = commands.c.outcome.is_(None)
_STANDING: Final = (
    select(commands.c.outcome, transactions.c.wake_at)
    .outerjoin(transactions, transactions.c.id == commands.c.transaction_id)
    .where(commands.c.id == bindparam("id"))
)


# --- writes ----------------------------------------------------------------------------------------------------------


def ask(connection: Connection, items: Sequence[Asked]) -> list[None]:
    """Put commands into the inbox. Raises an error of the database for an id that is there already."""
    connection.execute(insert(commands), [_row(item) for item in items])
    return [None] * len(items)


def withdraw(connection: Connection, items: Sequence[str]) -> list[bool]:
    """Take commands with these ids out of the inbox; False for one that isn't waiting any more."""
    return [connection.execute(delete(commands).where(commands.c.id == item, _WAITS)).rowcount == 1 for item in items]


def remove_forgotten(connection: Connection, items: Sequence[float]) -> list[int]:
    """Remove commands that wait in vain: asked before this time, of transactions that are final, or gone."""
    is_open = exists().where(transactions.c.id == commands.c.transaction_id, transactions.c.wake_at.is_not(None))
    return [
        connection.execute(delete(commands).where(_WAITS, commands.c.asked_at < item, ~is_open)).rowcount
        for item in items
    ]


def write_outcomes(connection: Connection, heard: Sequence[Heard]) -> None:
    """Write what came of commands, as part of the save that carries them out, once that owns the transaction.

    Raises WithdrawnError for one that isn't waiting: nobody but the owner hears commands.
    """
    for each in heard:
        outcome = APPLIED if each.objection is None else each.objection.value
        waiting = update(commands).where(commands.c.id == each.id, _WAITS)
        if connection.execute(waiting.values(outcome=outcome)).rowcount != 1:
            raise WithdrawnError(each.id)


def remove(connection: Connection, transaction_ids: Sequence[str]) -> None:
    """Remove the commands of purged transactions."""
    connection.execute(delete(commands).where(commands.c.transaction_id.in_(transaction_ids)))


# --- reads -----------------------------------------------------------------------------------------------------------


def find_waiting(connection: Connection, transaction_ids: Sequence[str]) -> defaultdict[str, list[Asked]]:
    """The commands that wait for the owners of these transactions, oldest first."""
    waiting: defaultdict[str, list[Asked]] = defaultdict(list)
    if transaction_ids:
        query = select(commands).where(commands.c.transaction_id.in_(transaction_ids), _WAITS)
        for asked in _readable(connection.execute(query.order_by(commands.c.id)).all()):
            waiting[asked.transaction_id].append(asked)
    return waiting


def list_waiting(connection: Connection, limit: int) -> list[Asked]:
    """The oldest commands that wait, of whichever transactions."""
    query = select(commands).where(_WAITS).order_by(commands.c.id).limit(limit)
    return list(_readable(connection.execute(query).all()))


def find_standing(connection: Connection, command_id: str) -> Standing:
    """The state of a command; one that isn't there any more was removed after its transaction's end."""
    row = connection.execute(_STANDING, {"id": command_id}).first()
    if row is None:
        return Standing(heard=None, is_final=True)
    if row.outcome is None:
        return Standing(heard=None, is_final=row.wake_at is None)
    objection = None if row.outcome == APPLIED else Objection(row.outcome)
    return Standing(heard=Heard(id=command_id, objection=objection), is_final=row.wake_at is None)


# --- helpers ---------------------------------------------------------------------------------------------------------


def _row(asked: Asked) -> dict[str, Any]:
    document: _Cancel | _Retry | _Resolve
    reason: str | None = None
    match asked.command:
        case CancelRequested(code=code, detail=reason, by=by, asker=asker):
            document = _Cancel(code=code)
        case RetryRequested(by=by, asker=asker):
            document = _Retry()
        case BranchResolved(branch=branch, settled=settled, by=by, reason=reason, send=send, asker=asker):
            document = _Resolve(branch=branch, settled=settled, send=send)
        case _:
            assert_never(asked.command)
    return {
        "id": asked.id,
        "transaction_id": asked.transaction_id,
        "asked_at": asked.at,
        "asked_by": by,
        "actor": asker.actor,
        "role": asker.role,
        "address": asker.address,
        "reason": reason,
        "command": msgspec.json.encode(document).decode(),
        "outcome": None,
    }


def _readable(rows: Sequence[Row[Any]]) -> Iterator[Asked]:
    """What this version understands; the rest waits for a process of the version that asked."""
    for row in rows:
        try:
            command = _command_of(row)
        except msgspec.ValidationError:
            log.warning("event=unreadable_command transaction_id=%s command_id=%s", row.transaction_id, row.id)
            continue
        yield Asked(id=row.id, transaction_id=row.transaction_id, at=row.asked_at, command=command)


def _command_of(row: Row[Any]) -> Command:
    asker = Asker(actor=row.actor, role=row.role, address=row.address)
    match _DECODER.decode(row.command):
        case _Cancel(code=code):
            return CancelRequested(code=code, detail=row.reason, by=row.asked_by, asker=asker)
        case _Retry():
            return RetryRequested(by=row.asked_by, asker=asker)
        case _Resolve(branch=branch, settled=settled, send=send):
            return BranchResolved(
                branch=branch, settled=settled, by=row.asked_by, reason=row.reason, send=send, asker=asker
            )
        case unknown:
            assert_never(unknown)
