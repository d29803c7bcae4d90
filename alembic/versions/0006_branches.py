"""Branches are rows of their own, so that a step touches no payload. The first of three steps: the room for them.

No version before can run from here on, and the database says so. One that still does fails at each write and records
nothing, because the column `state` becomes `progress`.

Revision ID: 0006
Revises: 0005
"""

import sqlalchemy as sa
from alembic import op

from holdfast.columns import DOCUMENT, ExactString

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

TABLE = "transactions"
INDEX = "ix_branches_participant_transaction_id"
COMPATIBLE_FROM = sa.text("UPDATE compatibility SET compatible_from = :revision")
LAST_STEP = "0008"


def upgrade() -> None:
    op.get_bind().execute(COMPATIBLE_FROM, {"revision": LAST_STEP})
    op.alter_column(TABLE, "state", new_column_name="progress", existing_type=DOCUMENT, existing_nullable=False)
    op.add_column(TABLE, sa.Column("traceparent", ExactString(55), nullable=True))
    op.add_column(TABLE, sa.Column("definition_bytes", sa.Integer(), nullable=False, server_default="0"))
    op.create_table(
        "branches",
        sa.Column("transaction_id", ExactString(36), nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("name", ExactString(64), nullable=False),
        sa.Column("participant", ExactString(64), nullable=True),
        sa.Column("definition", DOCUMENT, nullable=False),
        sa.PrimaryKeyConstraint("transaction_id", "position", name=op.f("pk_branches")),
    )
    where = sa.text("participant IS NOT NULL")
    columns = ["participant", "transaction_id"]
    op.create_index(INDEX, "branches", columns, postgresql_where=where, sqlite_where=where)


def downgrade() -> None:
    op.drop_table("branches")
    op.drop_column(TABLE, "definition_bytes")
    op.drop_column(TABLE, "traceparent")
    op.alter_column(TABLE, "progress", new_column_name="state", existing_type=DOCUMENT, existing_nullable=False)
    op.get_bind().execute(COMPATIBLE_FROM, {"revision": down_revision})
