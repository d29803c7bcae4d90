"""A row says in which format it was written, and the database which versions may run on it.

Versions before this one want their exact schema: stop them before this migration.

Revision ID: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op

from holdfast.columns import ExactString

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

TABLE = "transactions"


def upgrade() -> None:
    op.add_column(TABLE, sa.Column("format", sa.Integer(), nullable=False, server_default="1"))
    compatibility = op.create_table(
        "compatibility",
        sa.Column("compatible_from", ExactString(32), nullable=False),
        sa.PrimaryKeyConstraint("compatible_from", name=op.f("pk_compatibility")),
    )
    op.bulk_insert(compatibility, [{"compatible_from": revision}])


def downgrade() -> None:
    op.drop_table("compatibility")
    op.drop_column(TABLE, "format")
