"""Commands of people and initiators are rows, until the replica that works on the transaction carries them out.

Revision ID: 0010
Revises: 0009
"""

import sqlalchemy as sa
from alembic import op

from holdfast.columns import DOCUMENT, ExactString

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "commands",
        sa.Column("id", ExactString(36), nullable=False),
        sa.Column("transaction_id", ExactString(36), nullable=False),
        sa.Column("asked_at", sa.Double(), nullable=False),
        sa.Column("asked_by", DOCUMENT, nullable=True),
        sa.Column("reason", DOCUMENT, nullable=True),
        sa.Column("command", DOCUMENT, nullable=False),
        sa.Column("outcome", ExactString(32), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_commands")),
    )
    op.create_index(op.f("ix_commands_transaction_id"), "commands", ["transaction_id"])
    op.create_index("ix_commands_outcome_id", "commands", ["outcome", "id"])


def downgrade() -> None:
    op.drop_table("commands")
