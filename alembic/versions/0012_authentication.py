"""API keys, the record of who did what, owners of transactions, and the URL that this database serves.

Revision ID: 0012
Revises: 0011
"""

import sqlalchemy as sa
from alembic import op

from holdfast.columns import DOCUMENT, ExactString

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

OWNER_INDEX = "ix_transactions_owner_id"


def upgrade() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", ExactString(12), nullable=False),
        sa.Column("name", ExactString(200), nullable=False),
        sa.Column("secret_hash", ExactString(64), nullable=False),
        sa.Column("previous_hash", ExactString(64), nullable=True),
        sa.Column("previous_until", sa.Double(), nullable=True),
        sa.Column("roles", DOCUMENT, nullable=False),
        sa.Column("owner", ExactString(200), nullable=False),
        sa.Column("participant", ExactString(64), nullable=True),
        sa.Column("participants", DOCUMENT, nullable=True),
        sa.Column("endpoints", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=True),
        sa.Column("revoked_at", sa.Double(), nullable=True),
        sa.Column("last_used_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
    )
    op.create_table(
        "audit",
        sa.Column("id", ExactString(36), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("actor", ExactString(200), nullable=True),
        sa.Column("role", ExactString(16), nullable=True),
        sa.Column("address", ExactString(64), nullable=True),
        sa.Column("action", ExactString(64), nullable=False),
        sa.Column("target", ExactString(200), nullable=False),
        sa.Column("reason", DOCUMENT, nullable=True),
        sa.Column("outcome", ExactString(16), nullable=False),
        sa.Column("before", DOCUMENT, nullable=True),
        sa.Column("after", DOCUMENT, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
    )
    for column in ("actor", "action", "target", "outcome"):
        op.create_index(f"ix_audit_{column}_id", "audit", [column, "id"])
    op.add_column("transactions", sa.Column("owner", ExactString(200), nullable=True))
    where = sa.text("owner IS NOT NULL")
    op.create_index(OWNER_INDEX, "transactions", ["owner", "id"], postgresql_where=where, sqlite_where=where)
    for column, type_ in (("actor", ExactString(200)), ("role", ExactString(16)), ("address", ExactString(64))):
        op.add_column("commands", sa.Column(column, type_, nullable=True))
    op.add_column("coordinator", sa.Column("public_url", DOCUMENT, nullable=True))


def downgrade() -> None:
    op.drop_column("coordinator", "public_url")
    for column in ("address", "role", "actor"):
        op.drop_column("commands", column)
    op.drop_index(OWNER_INDEX, "transactions")
    op.drop_column("transactions", "owner")
    op.drop_table("audit")
    op.drop_table("api_keys")
