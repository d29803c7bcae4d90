"""One process at a time purges, and deletes the calls of a transaction in chunks.

Revision ID: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op

from holdfast.columns import ExactString

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "leases",
        sa.Column("name", ExactString(64), nullable=False),
        sa.Column("holder", ExactString(64), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_leases")),
    )
    op.create_table(
        "leftover_calls",
        sa.Column("transaction_id", ExactString(36), nullable=False),
        sa.PrimaryKeyConstraint("transaction_id", name=op.f("pk_leftover_calls")),
    )


def downgrade() -> None:
    # Calls that are left over stay: nothing reads them any more.
    op.drop_table("leftover_calls")
    op.drop_table("leases")
