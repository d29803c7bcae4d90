"""The coordinator's tables. No statements here.

A transaction is a row of `transactions`, and a row of `branches` for each branch. What the client asked for of a branch
never changes, payload included; how far all of them are is one JSON document, `progress`. So a step of the protocol is
one UPDATE, which touches no payload. Whatever is searched has a column. mapping.py maps rows to values and back.
"""

from typing import Final

from sqlalchemy import BigInteger, Boolean, Column, Double, Index, Integer, MetaData, Table, text
from sqlmodel import Field, SQLModel

from holdfast.columns import DOCUMENT, ExactString

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
TRACEPARENT_CHARS = 55
ADDRESS_CHARS = 64
TARGET_CHARS_MAX = 200


class _Table(SQLModel):
    metadata = metadata


def _partial_index(name: str, *columns: str, where: str, unique: bool = False) -> Index:
    """A partial index; it covers all rows where the database has no partial indexes."""
    return Index(name, *columns, unique=unique, postgresql_where=text(where), sqlite_where=text(where))


class TransactionRow(_Table, table=True):
    """One global transaction. `wake_at` is null once it is finished. Every write increments `version`.

    `owner` is the owner of the API key that it was begun with. `format` is that of the documents (mapping.py); a
    replica leaves rows alone whose format it doesn't know. `definition_bytes` is the size of the definitions of its
    branches.

    `resolved_at` is when an operator last settled one of its branches; such a record is kept forever. `is_mixed` is
    true if it ended mixed, and null otherwise. Only the primary key indexes all rows, because a save writes an entry
    into every index that contains the row.
    """

    __tablename__ = "transactions"
    __table_args__ = (
        _partial_index("ix_transactions_phase_id", "phase", "id", where="phase <> 'confirmed'"),
        _partial_index("ix_transactions_name_id", "name", "id", where="name IS NOT NULL"),
        _partial_index("ix_transactions_owner_id", "owner", "id", where="owner IS NOT NULL"),
        _partial_index("ix_transactions_reference_id", "reference", "id", where="reference IS NOT NULL"),
        _partial_index("ix_transactions_wake_at", "wake_at", where="wake_at IS NOT NULL AND hung_since IS NULL"),
        _partial_index("ix_transactions_hung_wake_at", "wake_at", where="hung_since IS NOT NULL"),
        _partial_index("ix_transactions_hung_since_id", "hung_since", "id", where="hung_since IS NOT NULL"),
        _partial_index("ix_transactions_is_mixed_id", "is_mixed", "id", where="is_mixed IS NOT NULL"),
        _partial_index(
            "uq_transactions_idempotency_key", "idempotency_key", where="idempotency_key IS NOT NULL", unique=True
        ),
    )

    id: str = Field(sa_column=Column(ExactString(ID_CHARS), primary_key=True))
    version: int = Field(sa_column=Column(Integer, nullable=False))
    format: int = Field(sa_column=Column(Integer, nullable=False, server_default="1"))
    phase: str = Field(sa_column=Column(ExactString(16), nullable=False))
    decision: str = Field(sa_column=Column(ExactString(16), nullable=False))
    name: str | None = Field(sa_column=Column(ExactString(NAME_CHARS_MAX)))
    reference: str | None = Field(sa_column=Column(ExactString(NAME_CHARS_MAX)))
    try_order: str = Field(sa_column=Column(ExactString(16), nullable=False))
    undo: str = Field(sa_column=Column(ExactString(16), nullable=False, server_default="parallel"))
    idempotency_key: str | None = Field(sa_column=Column(ExactString(KEY_CHARS_MAX)))
    request_hash: str | None = Field(sa_column=Column(ExactString(64)))
    created_at: float = Field(sa_column=Column(Double, nullable=False))
    deadline: float = Field(sa_column=Column(Double, nullable=False))
    decided_at: float | None = Field(sa_column=Column(Double))
    finished_at: float | None = Field(sa_column=Column(Double))
    hung_since: float | None = Field(sa_column=Column(Double))
    wake_at: float | None = Field(sa_column=Column(Double))
    resolved_at: float | None = Field(sa_column=Column(Double))
    is_mixed: bool | None = Field(sa_column=Column(Boolean))
    traceparent: str | None = Field(sa_column=Column(ExactString(TRACEPARENT_CHARS)))
    owner: str | None = Field(sa_column=Column(ExactString(NAME_CHARS_MAX)))
    definition_bytes: int = Field(sa_column=Column(Integer, nullable=False, server_default="0"))
    progress: str = Field(sa_column=Column(DOCUMENT, nullable=False))


class BranchRow(_Table, table=True):
    """A branch as it was asked for. Rows are inserted and never changed.

    `participant` is null for a branch with inline endpoints. The index finds the transactions of a participant.
    """

    __tablename__ = "branches"
    __table_args__ = (
        _partial_index(
            "ix_branches_participant_transaction_id",
            "participant",
            "transaction_id",
            where="participant IS NOT NULL",
        ),
    )

    transaction_id: str = Field(sa_column=Column(ExactString(ID_CHARS), primary_key=True))
    position: int = Field(sa_column=Column(Integer, primary_key=True, autoincrement=False))
    name: str = Field(sa_column=Column(ExactString(64), nullable=False))
    participant: str | None = Field(sa_column=Column(ExactString(64)))
    definition: str = Field(sa_column=Column(DOCUMENT, nullable=False))


class HungBranchRow(_Table, table=True):
    """A branch, as long as it is hung: for totals by participant and reason without reading documents."""

    __tablename__ = "hung_branches"

    transaction_id: str = Field(sa_column=Column(ExactString(ID_CHARS), primary_key=True))
    branch: str = Field(sa_column=Column(ExactString(64), primary_key=True))
    participant: str | None = Field(sa_column=Column(ExactString(64), index=True))
    reason: str = Field(sa_column=Column(ExactString(32), nullable=False))


class CommandRow(_Table, table=True):
    """What somebody asked of a transaction while another process was working on it; ids sort by time.

    `outcome` is null until the transaction's owner has carried the command out: `applied`, or the objection.
    """

    __tablename__ = "commands"
    __table_args__ = (Index("ix_commands_outcome_id", "outcome", "id"),)

    id: str = Field(sa_column=Column(ExactString(ID_CHARS), primary_key=True))
    transaction_id: str = Field(sa_column=Column(ExactString(ID_CHARS), nullable=False, index=True))
    asked_at: float = Field(sa_column=Column(Double, nullable=False))
    asked_by: str | None = Field(sa_column=Column(DOCUMENT))
    actor: str | None = Field(sa_column=Column(ExactString(NAME_CHARS_MAX)))
    role: str | None = Field(sa_column=Column(ExactString(16)))
    address: str | None = Field(sa_column=Column(ExactString(ADDRESS_CHARS)))
    reason: str | None = Field(sa_column=Column(DOCUMENT))
    command: str = Field(sa_column=Column(DOCUMENT, nullable=False))
    outcome: str | None = Field(sa_column=Column(ExactString(32)))


OPERATION: Final = ExactString(16).with_variant(ExactString(8), "sqlite")
"""The word for an operation. SQLite ignores the length, and would have to copy the table to change it."""


class CallRow(_Table, table=True):
    """One call to a participant, and its answer."""

    __tablename__ = "calls"
    __table_args__ = (Index("ix_calls_transaction_id_id", "transaction_id", "id"),)

    id: int | None = Field(
        default=None,
        sa_column=Column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    )
    transaction_id: str = Field(sa_column=Column(ExactString(ID_CHARS), nullable=False))
    branch: str = Field(sa_column=Column(ExactString(64), nullable=False))
    operation: str = Field(sa_column=Column(OPERATION, nullable=False))
    attempt: int = Field(sa_column=Column(Integer, nullable=False))
    started_at: float = Field(sa_column=Column(Double, nullable=False))
    duration_ms: float = Field(sa_column=Column(Double, nullable=False))
    answer: str = Field(sa_column=Column(ExactString(16), nullable=False))
    http_status: int | None = Field(sa_column=Column(Integer))
    error: str | None = Field(sa_column=Column(DOCUMENT))
    response: str | None = Field(sa_column=Column(DOCUMENT))


class LeftoverCallsRow(_Table, table=True):
    """A purged transaction that had too many calls to delete with it: the purge goes on with them."""

    __tablename__ = "leftover_calls"

    transaction_id: str = Field(sa_column=Column(ExactString(ID_CHARS), primary_key=True))


class LeaseRow(_Table, table=True):
    """A piece of work that one process at a time does, and the process that has it until `expires_at`."""

    __tablename__ = "leases"

    name: str = Field(sa_column=Column(ExactString(64), primary_key=True))
    holder: str = Field(sa_column=Column(ExactString(64), nullable=False))
    expires_at: float = Field(sa_column=Column(Double, nullable=False))


class ParticipantRow(_Table, table=True):
    """One registered participant. `kinds` are separated by commas; null if it doesn't say."""

    __tablename__ = "participants"

    name: str = Field(sa_column=Column(ExactString(64), primary_key=True))
    base_url: str = Field(sa_column=Column(DOCUMENT, nullable=False))
    call_timeout_s: float | None = Field(sa_column=Column(Double))
    concurrency_max: int = Field(sa_column=Column(Integer, nullable=False))
    kinds: str | None = Field(sa_column=Column(ExactString(64)))


class ParticipantSecretRow(_Table, table=True):
    """The secret that signs a participant's calls, encrypted; and those before it, each until it expires, as JSON.

    A table of its own, because the entries of HOLDFAST_PARTICIPANTS are written again at every start.
    """

    __tablename__ = "participant_secrets"

    participant: str = Field(sa_column=Column(ExactString(64), primary_key=True))
    current: str = Field(sa_column=Column(DOCUMENT, nullable=False))
    previous: str = Field(sa_column=Column(DOCUMENT, nullable=False))
    created_at: float = Field(sa_column=Column(Double, nullable=False))


class ParticipantHeadersRow(_Table, table=True):
    """The headers that a participant wants with each call, as a JSON object, encrypted."""

    __tablename__ = "participant_headers"

    participant: str = Field(sa_column=Column(ExactString(64), primary_key=True))
    headers: str = Field(sa_column=Column(DOCUMENT, nullable=False))


class CoordinatorRow(_Table, table=True):
    """One row: the id by which participants tell this coordinator, all its replicas, from others, and its URL."""

    __tablename__ = "coordinator"

    id: str = Field(sa_column=Column(ExactString(ID_CHARS), primary_key=True))
    public_url: str | None = Field(sa_column=Column(DOCUMENT))


class CompatibilityRow(_Table, table=True):
    """One row: the oldest revision of the schema whose version may run on this database; see migrations.py."""

    __tablename__ = "compatibility"

    compatible_from: str = Field(sa_column=Column(ExactString(32), primary_key=True))


class ApiKeyRow(_Table, table=True):
    """A key of the API, which is never deleted. `roles` and `participants` are JSON arrays."""

    __tablename__ = "api_keys"

    id: str = Field(sa_column=Column(ExactString(12), primary_key=True))
    name: str = Field(sa_column=Column(ExactString(NAME_CHARS_MAX), nullable=False))
    secret_hash: str = Field(sa_column=Column(ExactString(64), nullable=False))
    previous_hash: str | None = Field(sa_column=Column(ExactString(64)))
    previous_until: float | None = Field(sa_column=Column(Double))
    roles: str = Field(sa_column=Column(DOCUMENT, nullable=False))
    owner: str = Field(sa_column=Column(ExactString(NAME_CHARS_MAX), nullable=False))
    participant: str | None = Field(sa_column=Column(ExactString(64)))
    participants: str | None = Field(sa_column=Column(DOCUMENT))
    endpoints: bool = Field(sa_column=Column(Boolean, nullable=False))
    created_at: float = Field(sa_column=Column(Double, nullable=False))
    expires_at: float | None = Field(sa_column=Column(Double))
    revoked_at: float | None = Field(sa_column=Column(Double))
    last_used_at: float | None = Field(sa_column=Column(Double))


class AuditRow(_Table, table=True):
    """Something that somebody did, or wasn't allowed to; ids sort by time."""

    __tablename__ = "audit"
    __table_args__ = (
        Index("ix_audit_actor_id", "actor", "id"),
        Index("ix_audit_action_id", "action", "id"),
        Index("ix_audit_target_id", "target", "id"),
        Index("ix_audit_outcome_id", "outcome", "id"),
    )

    id: str = Field(sa_column=Column(ExactString(ID_CHARS), primary_key=True))
    at: float = Field(sa_column=Column(Double, nullable=False))
    actor: str | None = Field(sa_column=Column(ExactString(NAME_CHARS_MAX)))
    role: str | None = Field(sa_column=Column(ExactString(16)))
    address: str | None = Field(sa_column=Column(ExactString(ADDRESS_CHARS)))
    action: str = Field(sa_column=Column(ExactString(64), nullable=False))
    target: str = Field(sa_column=Column(ExactString(TARGET_CHARS_MAX), nullable=False))
    reason: str | None = Field(sa_column=Column(DOCUMENT))
    outcome: str = Field(sa_column=Column(ExactString(16), nullable=False))
    before: str | None = Field(sa_column=Column(DOCUMENT))
    after: str | None = Field(sa_column=Column(DOCUMENT))


class RestoreRow(_Table, table=True):
    """A backup that the database was restored from, by its time, and when the coordinator first started on it."""

    __tablename__ = "restores"

    restored_from: float = Field(sa_column=Column(Double, primary_key=True, autoincrement=False))
    first_start: float = Field(sa_column=Column(Double, nullable=False))


def _table(model: type) -> Table:
    table: Table = model.__table__  # type: ignore[attr-defined]
    return table


transactions = _table(TransactionRow)
branches = _table(BranchRow)
hung_branches = _table(HungBranchRow)
commands = _table(CommandRow)
calls = _table(CallRow)
leftover_calls = _table(LeftoverCallsRow)
leases = _table(LeaseRow)
participants = _table(ParticipantRow)
participant_secrets = _table(ParticipantSecretRow)
participant_headers = _table(ParticipantHeadersRow)
coordinator = _table(CoordinatorRow)
compatibility = _table(CompatibilityRow)
restores = _table(RestoreRow)
api_keys = _table(ApiKeyRow)
audit = _table(AuditRow)
