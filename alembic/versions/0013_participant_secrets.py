"""The secrets with which calls to participants are signed, encrypted.

Revision ID: 0013
Revises: 0012
"""

import sqlalchemy as sa
from alembic import op

from holdfast.columns import DOCUMENT, ExactString

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "participant_secrets",
        sa.Column("participant", ExactString(64), nullable=False),
        sa.Column("current", DOCUMENT, nullable=False),
        sa.Column("previous", DOCUMENT, nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("participant", name=op.f("pk_participant_secrets")),
    )


def downgrade() -> None:
    op.drop_table("participant_secrets")
