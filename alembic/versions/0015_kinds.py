"""Every kind of branch: in which order a transaction is undone, which kinds a participant takes, longer operations.

Revision ID: 0015
Revises: 0014
"""

import sqlalchemy as sa
from alembic import op

from holdfast.columns import ExactString

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("transactions", sa.Column("undo", ExactString(16), nullable=False, server_default="parallel"))
    op.add_column("participants", sa.Column("kinds", ExactString(64), nullable=True))
    _operations_of(16)


def downgrade() -> None:
    _operations_of(8)
    op.drop_column("participants", "kinds")
    op.drop_column("transactions", "undo")


def _operations_of(characters: int) -> None:
    """How long the word for an operation may be. SQLite has no limit, and would copy the table."""
    if op.get_bind().dialect.name != "sqlite":
        op.alter_column("calls", "operation", type_=ExactString(characters), existing_nullable=False)
