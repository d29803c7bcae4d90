"""When the coordinator first started on a database that was restored from a backup.

Revision ID: 0011
Revises: 0010
"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "restores",
        sa.Column("restored_from", sa.Double(), nullable=False),
        sa.Column("first_start", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("restored_from", name=op.f("pk_restores")),
    )


def downgrade() -> None:
    op.drop_table("restores")
