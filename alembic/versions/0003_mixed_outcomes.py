"""A column says which transactions ended mixed, so that a list can be limited to one outcome.

Revision ID: 0003
Revises: 0002
"""

import json

import sqlalchemy as sa
from alembic import op

from app.storage.bulk import EXPECTED, update_all
from holdfast.columns import ExactString

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

TABLE = "transactions"
INDEX = "ix_transactions_is_mixed_id"
TRANSACTIONS = sa.table(TABLE, sa.column("id", ExactString(36)), sa.column("is_mixed", sa.Boolean()))


def upgrade() -> None:
    connection = op.get_bind()
    resolved = sa.text(
        "SELECT id, phase, state FROM transactions WHERE resolved_at IS NOT NULL AND finished_at IS NOT NULL"
    )
    # Read before the table is locked: there may be many.
    mixed = [id_ for id_, phase, state in connection.execute(resolved) if _is_mixed(phase, state)]
    op.add_column(TABLE, sa.Column("is_mixed", sa.Boolean(), nullable=True))
    if mixed:
        update_all(connection, TRANSACTIONS, [{f"{EXPECTED}id": id_, "is_mixed": True} for id_ in mixed])
    where = sa.text("is_mixed IS NOT NULL")
    op.create_index(INDEX, TABLE, ["is_mixed", "id"], postgresql_where=where, sqlite_where=where)


def downgrade() -> None:
    op.drop_index(INDEX, TABLE)
    op.drop_column(TABLE, "is_mixed")


def _is_mixed(phase: str, state: str) -> bool:
    """Whether a person resolved a branch of this finished transaction against its decision."""
    try:
        branches = json.loads(state)["branches"]
        return any(branch["resolution"]["settled"] != phase for branch in branches if "resolution" in branch)
    except (ValueError, TypeError, LookupError):
        return False  # a row that nobody can read has no outcome
