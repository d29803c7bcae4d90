"""A column says which transactions ended mixed, so that a list can be limited to one outcome.

Revision ID: 0003
Revises: 0002
"""

import json

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

TABLE = "transactions"
INDEX = "ix_transactions_is_mixed_id"


def upgrade() -> None:
    op.add_column(TABLE, sa.Column("is_mixed", sa.Boolean(), nullable=True))
    where = sa.text("is_mixed IS NOT NULL")
    op.create_index(INDEX, TABLE, ["is_mixed", "id"], postgresql_where=where, sqlite_where=where)
    connection = op.get_bind()
    resolved = sa.text(
        "SELECT id, phase, state FROM transactions WHERE resolved_at IS NOT NULL AND finished_at IS NOT NULL"
    )
    mixed = [id_ for id_, phase, state in connection.execute(resolved) if _is_mixed(phase, state)]
    update = sa.text("UPDATE transactions SET is_mixed = true WHERE id = :id")
    for id_ in mixed:
        connection.execute(update, {"id": id_})


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
