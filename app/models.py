"""The tables, and rows ↔ values of the protocol.

One row holds a whole transaction: `definition` is what the client asked for and never changes, `state` what has
become of its branches. What must be searched has a column; everything else is in those two JSON documents, so that
a step of the protocol is one UPDATE. No SQL here (store.py), no transitions (protocol.py).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json, to_json
from sqlalchemy import BigInteger, Column, Double, Index, Integer, MetaData, String, Text, text
from sqlalchemy.dialects.mysql import LONGTEXT
from sqlalchemy.ext.compiler import compiles
from sqlmodel import Field, SQLModel

from app.transaction import (
    Branch,
    BranchPhase,
    Endpoints,
    HungReason,
    Reason,
    ReasonCode,
    Resolution,
    Settled,
    Transaction,
    TryOrder,
)
from holdfast.wire import Answer, Decision, Operation

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}
metadata = MetaData(naming_convention=NAMING)

ID_CHARS = 36
NAME_CHARS_MAX = 200
KEY_CHARS_MAX = 255


class Exact(String):
    """Text in which every character counts when it is compared: case, accents, and spaces at its end."""


@compiles(Exact, "mysql")
def _exact_on_mysql(type_: Exact, compiler: Any, **_: Any) -> str:
    """By itself MySQL compares by its database's collation. The one that counts everything has two names."""
    collation = "utf8mb4_nopad_bin" if compiler.dialect.is_mariadb else "utf8mb4_0900_bin"
    return f"VARCHAR({type_.length}) CHARACTER SET utf8mb4 COLLATE {collation}"


DOCUMENT = Text().with_variant(LONGTEXT(charset="utf8mb4", collation="utf8mb4_bin"), "mysql")
"""Text of any length, which nobody searches for; on MySQL plain TEXT ends at 64 KiB."""


class _Table(SQLModel):
    metadata = metadata


def _partial_index(name: str, *columns: str, where: str, unique: bool = False) -> Index:
    """An index of the rows that it is for; of all rows where the database has no partial indexes."""
    return Index(name, *columns, unique=unique, postgresql_where=text(where), sqlite_where=text(where))


class TransactionRow(_Table, table=True):
    """One global transaction. `wake_at` is null when it is finished; `version` is bumped by every write.

    `resolved_at` is when a person last settled a branch of it: such a record is kept for ever. No index is
    of all rows but the primary key: each save writes an entry into every index that the row is in.
    """

    __tablename__ = "transactions"
    __table_args__ = (
        _partial_index("ix_transactions_phase_id", "phase", "id", where="phase <> 'confirmed'"),
        _partial_index("ix_transactions_name_id", "name", "id", where="name IS NOT NULL"),
        _partial_index("ix_transactions_reference_id", "reference", "id", where="reference IS NOT NULL"),
        _partial_index("ix_transactions_wake_at", "wake_at", where="wake_at IS NOT NULL AND hung_since IS NULL"),
        _partial_index("ix_transactions_hung_wake_at", "wake_at", where="hung_since IS NOT NULL"),
        _partial_index("ix_transactions_hung_since_id", "hung_since", "id", where="hung_since IS NOT NULL"),
        _partial_index(
            "uq_transactions_idempotency_key", "idempotency_key", where="idempotency_key IS NOT NULL", unique=True
        ),
    )

    id: str = Field(sa_column=Column(Exact(ID_CHARS), primary_key=True))
    version: int = Field(sa_column=Column(Integer, nullable=False))
    phase: str = Field(sa_column=Column(Exact(16), nullable=False))
    decision: str = Field(sa_column=Column(Exact(16), nullable=False))
    name: str | None = Field(sa_column=Column(Exact(NAME_CHARS_MAX)))
    reference: str | None = Field(sa_column=Column(Exact(NAME_CHARS_MAX)))
    try_order: str = Field(sa_column=Column(Exact(16), nullable=False))
    idempotency_key: str | None = Field(sa_column=Column(Exact(KEY_CHARS_MAX)))
    request_hash: str | None = Field(sa_column=Column(Exact(64)))
    created_at: float = Field(sa_column=Column(Double, nullable=False))
    deadline: float = Field(sa_column=Column(Double, nullable=False))
    decided_at: float | None = Field(sa_column=Column(Double))
    finished_at: float | None = Field(sa_column=Column(Double))
    hung_since: float | None = Field(sa_column=Column(Double))
    wake_at: float | None = Field(sa_column=Column(Double))
    resolved_at: float | None = Field(sa_column=Column(Double))
    definition: str = Field(sa_column=Column(DOCUMENT, nullable=False))
    state: str = Field(sa_column=Column(DOCUMENT, nullable=False))


class TransactionParticipantRow(_Table, table=True):
    """Which registered participants a transaction has: for the filter, and for deleting one from the registry."""

    __tablename__ = "transaction_participants"

    participant: str = Field(sa_column=Column(Exact(64), primary_key=True))
    transaction_id: str = Field(sa_column=Column(Exact(ID_CHARS), primary_key=True))


class HungBranchRow(_Table, table=True):
    """One branch that hangs, as long as it does: totals by participant and reason without reading documents."""

    __tablename__ = "hung_branches"

    transaction_id: str = Field(sa_column=Column(Exact(ID_CHARS), primary_key=True))
    branch: str = Field(sa_column=Column(Exact(64), primary_key=True))
    participant: str | None = Field(sa_column=Column(Exact(64), index=True))
    reason: str = Field(sa_column=Column(Exact(32), nullable=False))


class CallRow(_Table, table=True):
    """One call to a participant and what it came to."""

    __tablename__ = "calls"
    __table_args__ = (Index("ix_calls_transaction_id_id", "transaction_id", "id"),)

    id: int | None = Field(
        default=None,
        sa_column=Column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    )
    transaction_id: str = Field(sa_column=Column(Exact(ID_CHARS), nullable=False))
    branch: str = Field(sa_column=Column(Exact(64), nullable=False))
    operation: str = Field(sa_column=Column(Exact(8), nullable=False))
    attempt: int = Field(sa_column=Column(Integer, nullable=False))
    started_at: float = Field(sa_column=Column(Double, nullable=False))
    duration_ms: float = Field(sa_column=Column(Double, nullable=False))
    answer: str = Field(sa_column=Column(Exact(16), nullable=False))
    http_status: int | None = Field(sa_column=Column(Integer))
    error: str | None = Field(sa_column=Column(DOCUMENT))
    response: str | None = Field(sa_column=Column(DOCUMENT))


class ParticipantRow(_Table, table=True):
    """One registered participant."""

    __tablename__ = "participants"

    name: str = Field(sa_column=Column(Exact(64), primary_key=True))
    base_url: str = Field(sa_column=Column(DOCUMENT, nullable=False))
    call_timeout_s: float | None = Field(sa_column=Column(Double))
    concurrency_max: int = Field(sa_column=Column(Integer, nullable=False))


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRecord:
    """One call to a participant, as the history keeps it. `started_at` in seconds since the epoch."""

    transaction_id: str
    branch: str
    operation: Operation
    attempt: int
    started_at: float
    duration_ms: float
    answer: Answer
    http_status: int | None = None
    error: str | None = None
    response: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredParticipant:
    """An entry of the registry; `call_timeout_s` None means the coordinator's default."""

    name: str
    base_url: str
    call_timeout_s: float | None
    concurrency_max: int


class UnreadableRowError(Exception):
    """A row of `transactions` does not say what this version understands; the message begins with its id."""


def definition_of(transaction: Transaction) -> str:
    """The JSON of what never changes and is not searched."""
    branches = [_definition(branch) for branch in transaction.branches]
    return to_json({"traceparent": transaction.traceparent, "branches": branches}).decode()


def changing_columns(transaction: Transaction) -> dict[str, Any]:
    """The columns that a save writes, but for the version."""
    return {
        "phase": transaction.phase.value,
        "decision": transaction.decision.value,
        "decided_at": transaction.decided_at,
        "finished_at": transaction.finished_at,
        "hung_since": transaction.hung_since,
        "wake_at": transaction.wake_at,
        "resolved_at": max((b.resolution.at for b in transaction.branches if b.resolution), default=None),
        "state": to_json(_state(transaction)).decode(),
    }


def transaction_of(row: Mapping[Any, Any]) -> Transaction:
    """The value that a row of `transactions` stands for. Nothing is under way in it. Raises UnreadableRowError."""
    try:
        return _transaction(row)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise UnreadableRowError(f"{row['id']}: {type(error).__name__}: {error}") from error


def _transaction(row: Mapping[Any, Any]) -> Transaction:
    definition, state = from_json(row["definition"]), from_json(row["state"])
    reason = state.get("reason")
    return Transaction(
        id=row["id"],
        version=row["version"],
        created_at=row["created_at"],
        deadline=row["deadline"],
        name=row["name"],
        reference=row["reference"],
        try_order=TryOrder(row["try_order"]),
        traceparent=definition["traceparent"],
        decision=Decision(row["decision"]),
        reason=Reason(code=ReasonCode(reason["code"]), branch=reason["branch"], detail=reason["detail"])
        if reason
        else None,
        decided_at=row["decided_at"],
        finished_at=row["finished_at"],
        hung_since=row["hung_since"],
        wake_at=row["wake_at"],
        branches=tuple(
            _branch(defined, branch) for defined, branch in zip(definition["branches"], state["branches"], strict=True)
        ),
    )


def _definition(branch: Branch) -> dict[str, Any]:
    endpoints = branch.endpoints
    return {
        "name": branch.name,
        "participant": branch.participant,
        "endpoints": [endpoints.try_url, endpoints.confirm_url, endpoints.cancel_url] if endpoints else None,
        "payload": branch.payload,
    }


def _state(transaction: Transaction) -> dict[str, Any]:
    reason = transaction.reason
    return {
        "reason": {"code": reason.code, "branch": reason.branch, "detail": reason.detail} if reason else None,
        "branches": [_branch_state(branch) for branch in transaction.branches],
    }


_COUNTERS = ("try_attempts", "confirm_attempts", "cancel_attempts", "failures")
_STATE_FIELDS = (
    "phase",
    "result",
    "next_attempt_at",
    "tried_at",
    "hold_until",
    "last_answer",
    "last_error",
    "hung_reason",
)
_STATE_TYPES: dict[str, Callable[[Any], Any]] = {"phase": BranchPhase, "last_answer": Answer, "hung_reason": HungReason}


def _branch_state(branch: Branch) -> dict[str, Any]:
    """The fields that have a value; `calling` is left out, because after a crash nothing is under way."""
    state = {field: value for field in _STATE_FIELDS if (value := getattr(branch, field)) is not None}
    state |= {field: value for field in _COUNTERS if (value := getattr(branch, field))}
    if branch.resolution is not None:
        it = branch.resolution
        state["resolution"] = {"settled": it.settled, "by": it.by, "at": it.at, "reason": it.reason}
    return state


def _branch(definition: dict[str, Any], state: dict[str, Any]) -> Branch:
    endpoints = definition["endpoints"]
    fields: dict[str, Any] = {
        field: _STATE_TYPES.get(field, _as_is)(value) for field, value in state.items() if field != "resolution"
    }
    resolution = state.get("resolution")
    return Branch(
        name=definition["name"],
        participant=definition["participant"],
        endpoints=Endpoints(try_url=endpoints[0], confirm_url=endpoints[1], cancel_url=endpoints[2])
        if endpoints
        else None,
        payload=definition["payload"],
        resolution=Resolution(**resolution | {"settled": Settled(resolution["settled"])}) if resolution else None,
        **fields,
    )


def _as_is(value: Any) -> Any:
    return value
