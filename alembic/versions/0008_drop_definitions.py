"""The third step: nothing reads `transactions.definition` and `transaction_participants` any more.

Revision ID: 0008
Revises: 0007
"""

import msgspec
import sqlalchemy as sa
from alembic import op

from holdfast.columns import DOCUMENT, ExactString

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

TABLE = "transactions"
MEMBERS = "transaction_participants"


def upgrade() -> None:
    op.drop_column(TABLE, "definition")
    op.drop_table(MEMBERS)


def downgrade() -> None:
    op.create_table(
        MEMBERS,
        sa.Column("participant", ExactString(64), nullable=False),
        sa.Column("transaction_id", ExactString(36), nullable=False),
        sa.PrimaryKeyConstraint("participant", "transaction_id", name=op.f("pk_transaction_participants")),
    )
    op.add_column(TABLE, sa.Column("definition", DOCUMENT, nullable=True))
    connection = op.get_bind()
    members = "SELECT DISTINCT participant, transaction_id FROM branches WHERE participant IS NOT NULL"
    connection.execute(sa.text(f"INSERT INTO {MEMBERS} (participant, transaction_id) {members}"))
    branches = sa.text(
        "SELECT name, participant, definition FROM branches WHERE transaction_id = :id ORDER BY position"
    )
    update = sa.text("UPDATE transactions SET definition = :definition WHERE id = :id")
    for id_, traceparent in connection.execute(sa.text("SELECT id, traceparent FROM transactions")).all():
        rows = connection.execute(branches, {"id": id_}).all()
        connection.execute(update, {"id": id_, "definition": _definition(traceparent, rows)})


def _definition(traceparent: str | None, rows: list[sa.Row]) -> str:
    if [row.name for row in rows] == [""]:
        return rows[0].definition  # nobody could read it
    branches = [
        {"name": row.name, "participant": row.participant}
        | msgspec.json.decode(row.definition, type=dict[str, msgspec.Raw])
        for row in rows
    ]
    return msgspec.json.encode({"traceparent": traceparent, "branches": branches}).decode()
