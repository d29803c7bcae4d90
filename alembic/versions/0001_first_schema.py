"""The first schema: transactions, their participants, hung branches, calls, and the registry.

Revision ID: 0001
Revises:
"""

import sqlalchemy as sa
from alembic import op

from holdfast.columns import DOCUMENT, ExactString

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "calls",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("transaction_id", ExactString(36), nullable=False),
        sa.Column("branch", ExactString(64), nullable=False),
        sa.Column("operation", ExactString(8), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Column("duration_ms", sa.Double(), nullable=False),
        sa.Column("answer", ExactString(16), nullable=False),
        sa.Column("http_status", sa.Integer(), nullable=True),
        sa.Column("error", DOCUMENT, nullable=True),
        sa.Column("response", DOCUMENT, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_calls")),
    )
    op.create_index("ix_calls_transaction_id_id", "calls", ["transaction_id", "id"], unique=False)
    op.create_table(
        "hung_branches",
        sa.Column("transaction_id", ExactString(36), nullable=False),
        sa.Column("branch", ExactString(64), nullable=False),
        sa.Column("participant", ExactString(64), nullable=True),
        sa.Column("reason", ExactString(32), nullable=False),
        sa.PrimaryKeyConstraint("transaction_id", "branch", name=op.f("pk_hung_branches")),
    )
    op.create_index(op.f("ix_hung_branches_participant"), "hung_branches", ["participant"], unique=False)
    op.create_table(
        "participants",
        sa.Column("name", ExactString(64), nullable=False),
        sa.Column("base_url", DOCUMENT, nullable=False),
        sa.Column("call_timeout_s", sa.Double(), nullable=True),
        sa.Column("concurrency_max", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_participants")),
    )
    op.create_table(
        "transaction_participants",
        sa.Column("participant", ExactString(64), nullable=False),
        sa.Column("transaction_id", ExactString(36), nullable=False),
        sa.PrimaryKeyConstraint("participant", "transaction_id", name=op.f("pk_transaction_participants")),
    )
    op.create_table(
        "transactions",
        sa.Column("id", ExactString(36), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("phase", ExactString(16), nullable=False),
        sa.Column("decision", ExactString(16), nullable=False),
        sa.Column("name", ExactString(200), nullable=True),
        sa.Column("reference", ExactString(200), nullable=True),
        sa.Column("try_order", ExactString(16), nullable=False),
        sa.Column("idempotency_key", ExactString(255), nullable=True),
        sa.Column("request_hash", ExactString(64), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("deadline", sa.Double(), nullable=False),
        sa.Column("decided_at", sa.Double(), nullable=True),
        sa.Column("finished_at", sa.Double(), nullable=True),
        sa.Column("hung_since", sa.Double(), nullable=True),
        sa.Column("wake_at", sa.Double(), nullable=True),
        sa.Column("definition", DOCUMENT, nullable=False),
        sa.Column("state", DOCUMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_transactions")),
        sa.UniqueConstraint("idempotency_key", name=op.f("uq_transactions_idempotency_key")),
    )
    op.create_index("ix_transactions_hung_since_id", "transactions", ["hung_since", "id"], unique=False)
    op.create_index("ix_transactions_name_id", "transactions", ["name", "id"], unique=False)
    op.create_index("ix_transactions_phase_id", "transactions", ["phase", "id"], unique=False)
    op.create_index("ix_transactions_reference_id", "transactions", ["reference", "id"], unique=False)
    op.create_index("ix_transactions_wake_at", "transactions", ["wake_at"], unique=False)


def downgrade() -> None:
    op.drop_index("ix_transactions_wake_at", table_name="transactions")
    op.drop_index("ix_transactions_reference_id", table_name="transactions")
    op.drop_index("ix_transactions_phase_id", table_name="transactions")
    op.drop_index("ix_transactions_name_id", table_name="transactions")
    op.drop_index("ix_transactions_hung_since_id", table_name="transactions")
    op.drop_table("transactions")
    op.drop_table("transaction_participants")
    op.drop_table("participants")
    op.drop_index(op.f("ix_hung_branches_participant"), table_name="hung_branches")
    op.drop_table("hung_branches")
    op.drop_index("ix_calls_transaction_id_id", table_name="calls")
    op.drop_table("calls")
