"""The coordinator has an id, the same for all replicas of a database: participants tell it from other coordinators.

Revision ID: 0009
Revises: 0008
"""

import uuid

import sqlalchemy as sa
from alembic import op

from holdfast.columns import ExactString

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    coordinator = op.create_table(
        "coordinator",
        sa.Column("id", ExactString(36), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_coordinator")),
    )
    op.bulk_insert(coordinator, [{"id": str(uuid.uuid4())}])


def downgrade() -> None:
    op.drop_table("coordinator")
