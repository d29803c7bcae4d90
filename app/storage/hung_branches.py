"""The statements on `hung_branches`: a row for each hung branch, so that totals don't need to read documents."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, delete

from app.protocol.values import Transaction
from app.storage.bulk import insert_all
from app.storage.tables import hung_branches


def replace_changed(connection: Connection, steps: Sequence[tuple[Transaction, Transaction]]) -> None:
    """Update the rows of transactions whose hung branches have changed; most steps change none and cost nothing."""
    changed = [after for before, after in steps if _rows(before) != _rows(after)]
    if not changed:
        return
    ids = [transaction.id for transaction in changed]
    connection.execute(delete(hung_branches).where(hung_branches.c.transaction_id.in_(ids)))
    insert_all(connection, hung_branches, [row for transaction in changed for row in _rows(transaction)])


def _rows(transaction: Transaction) -> list[dict[str, Any]]:
    return [
        {"transaction_id": transaction.id, "branch": b.name, "participant": b.participant, "reason": b.hung_reason}
        for b in transaction.branches
        if b.hung_reason
    ]
