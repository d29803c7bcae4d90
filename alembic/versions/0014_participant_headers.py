"""The headers that participants want with each call, encrypted.

Revision ID: 0014
Revises: 0013
"""

import sqlalchemy as sa
from alembic import op

from holdfast.columns import DOCUMENT, ExactString

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "participant_headers",
        sa.Column("participant", ExactString(64), nullable=False),
        sa.Column("headers", DOCUMENT, nullable=False),
        sa.PrimaryKeyConstraint("participant", name=op.f("pk_participant_headers")),
    )


def downgrade() -> None:
    op.drop_table("participant_headers")
