"""Indexes hold the rows that they are for; a record that a person resolved says so in a column.

On PostgreSQL the table is locked against writes while the indexes are built: some twenty seconds for each million rows.

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

TABLE = "transactions"
KEY = "uq_transactions_idempotency_key"
PARTIAL = {
    "ix_transactions_phase_id": (["phase", "id"], "phase <> 'confirmed'"),
    "ix_transactions_name_id": (["name", "id"], "name IS NOT NULL"),
    "ix_transactions_reference_id": (["reference", "id"], "reference IS NOT NULL"),
    "ix_transactions_wake_at": (["wake_at"], "wake_at IS NOT NULL AND hung_since IS NULL"),
    "ix_transactions_hung_wake_at": (["wake_at"], "hung_since IS NOT NULL"),
    "ix_transactions_hung_since_id": (["hung_since", "id"], "hung_since IS NOT NULL"),
    KEY: (["idempotency_key"], "idempotency_key IS NOT NULL"),
}
ADDED = {"ix_transactions_hung_wake_at", KEY}


# Each save leaves an entry in ix_transactions_wake_at behind, and whoever looks for what is due walks over all that are
# left. Vacuum removes them; it must come before a fifth of the table is dead, and not skip the indexes, as it does by
# itself where few pages of the table have changed.
VACUUM = {"autovacuum_vacuum_scale_factor": "0.05", "vacuum_index_cleanup": "on"}


def upgrade() -> None:
    for name in PARTIAL.keys() - ADDED:
        op.drop_index(name, TABLE)
    with op.batch_alter_table(TABLE) as batch:
        batch.drop_constraint(KEY, type_="unique")
        batch.add_column(sa.Column("resolved_at", sa.Double(), nullable=True))
    for name, (columns, where) in PARTIAL.items():
        only = sa.text(where)
        op.create_index(name, TABLE, columns, unique=name == KEY, postgresql_where=only, sqlite_where=only)
    # A branch that a person resolved has this member. A result that only looks so is kept too, which harms nobody.
    op.execute("""UPDATE transactions SET resolved_at = decided_at WHERE state LIKE '%"resolution":%'""")
    if _is_postgresql():
        op.execute(f"ALTER TABLE {TABLE} SET ({', '.join(f'{name} = {value}' for name, value in VACUUM.items())})")


def downgrade() -> None:
    if _is_postgresql():
        op.execute(f"ALTER TABLE {TABLE} RESET ({', '.join(VACUUM)})")
    for name in PARTIAL:
        op.drop_index(name, TABLE)
    with op.batch_alter_table(TABLE) as batch:
        batch.drop_column("resolved_at")
        batch.create_unique_constraint(KEY, ["idempotency_key"])
    for name in PARTIAL.keys() - ADDED:
        op.create_index(name, TABLE, PARTIAL[name][0])


def _is_postgresql() -> bool:
    """Itself, and not a database that only speaks its protocol."""
    connection = op.get_bind()
    if connection.dialect.name != "postgresql":
        return False
    return str(connection.execute(sa.text("SELECT version()")).scalar_one()).startswith("PostgreSQL")
