"""The second step: what each branch was asked for moves out of `transactions.definition`, in batches.

Each batch is a database transaction of its own, so that no row is locked for long, and a migration that was stopped
goes on where it was. On SQLite, which has one process, all of them are one.

Revision ID: 0007
Revises: 0006
"""

import logging
from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from alembic import op

from app.storage.bulk import EXPECTED, insert_all, update_all
from holdfast.columns import DOCUMENT, ExactString

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

log = logging.getLogger("alembic.runtime.migration")

BATCH_MAX = 500
"""Maximum number of transactions in a batch; there are fewer if their documents are long."""
BATCH_CHARS_MAX = 8 * 1024 * 1024


class Definition(msgspec.Struct):
    traceparent: str | None
    branches: list[dict[str, msgspec.Raw]]


NEXT = sa.text(
    "SELECT id, length(definition) FROM transactions WHERE id > :after "
    "AND NOT EXISTS (SELECT 1 FROM branches WHERE transaction_id = transactions.id) ORDER BY id LIMIT :limit"
)
READ = sa.text("SELECT id, definition FROM transactions WHERE id IN :ids").bindparams(
    sa.bindparam("ids", expanding=True)
)
TRANSACTIONS = sa.table(
    "transactions",
    sa.column("id", ExactString(36)),
    sa.column("traceparent", ExactString(55)),
    sa.column("definition_bytes", sa.Integer()),
)
BRANCHES = sa.table(
    "branches",
    sa.column("transaction_id", ExactString(36)),
    sa.column("position", sa.Integer()),
    sa.column("name", ExactString(64)),
    sa.column("participant", ExactString(64)),
    sa.column("definition", DOCUMENT),
)


def upgrade() -> None:
    bind = op.get_bind()
    after: str | None = ""
    while after is not None:
        if bind.dialect.name == "sqlite":
            after = _copy(bind, after)
        else:
            with bind.engine.begin() as connection:
                after = _copy(connection, after)


def downgrade() -> None:
    op.get_bind().execute(sa.text("DELETE FROM branches"))


def _copy(connection: sa.Connection, after: str) -> str | None:
    """Copy the next transactions after this id; returns the last one, or None if there are no more."""
    ids, chars = [], 0
    for id_, length in connection.execute(NEXT, {"after": after, "limit": BATCH_MAX}):
        chars += length
        if ids and chars > BATCH_CHARS_MAX:
            break
        ids.append(id_)
    if not ids:
        return None
    parts = [_parts(id_, definition) for id_, definition in connection.execute(READ, {"ids": ids})]
    update_all(connection, TRANSACTIONS, [transaction for transaction, _ in parts])
    insert_all(connection, BRANCHES, [branch for _, branches in parts for branch in branches])
    return ids[-1]


def _parts(id_: str, definition: str) -> tuple[dict[str, Any], Sequence[dict[str, Any]]]:
    """What a transaction and its branches get. A document that nobody can read is kept as it is, as one branch."""
    try:
        document = msgspec.json.decode(definition, type=Definition)
        branches = [_branch(id_, position, branch) for position, branch in enumerate(document.branches)]
    except (ValueError, TypeError, LookupError):
        log.warning("%s can't be read; its definition is kept as it is", id_)
        document, branches = Definition(traceparent=None, branches=[]), []
    if not branches:
        branches = [_row(id_, 0, "", None, definition)]
    size = sum(len(branch["definition"].encode()) for branch in branches)
    changed = {"traceparent": document.traceparent, "definition_bytes": size}
    return {f"{EXPECTED}id": id_} | changed, branches


def _branch(id_: str, position: int, branch: dict[str, msgspec.Raw]) -> dict[str, Any]:
    definition = msgspec.json.encode({"endpoints": branch["endpoints"], "payload": branch["payload"]}).decode()
    name = msgspec.json.decode(branch["name"], type=str)
    participant = msgspec.json.decode(branch["participant"], type=str | None)
    return _row(id_, position, name, participant, definition)


def _row(id_: str, position: int, name: str, participant: str | None, definition: str) -> dict[str, Any]:
    return {
        "transaction_id": id_,
        "position": position,
        "name": name,
        "participant": participant,
        "definition": definition,
    }
