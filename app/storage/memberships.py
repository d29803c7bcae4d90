"""The statements on `transaction_participants`: the registered participants of each transaction."""

from collections import defaultdict
from collections.abc import Sequence

from sqlalchemy import Connection, delete

from app.protocol.values import Transaction
from app.storage.bulk import insert_all
from app.storage.tables import transaction_participants


def insert(connection: Connection, of: Sequence[Transaction]) -> None:
    """Insert the memberships of new transactions."""
    insert_all(connection, transaction_participants, memberships(of))


def remove(connection: Connection, of: Sequence[Transaction]) -> None:
    """Delete the memberships of these transactions, one statement per participant, because it leads the key."""
    ids: dict[str, list[str]] = defaultdict(list)
    for row in memberships(of):
        ids[row["participant"]].append(row["transaction_id"])
    column = transaction_participants.c
    for participant, its_ids in ids.items():
        connection.execute(
            delete(transaction_participants).where(
                column.participant == participant, column.transaction_id.in_(its_ids)
            )
        )


def memberships(of: Sequence[Transaction]) -> list[dict[str, str]]:
    """The rows of these transactions."""
    return [
        {"participant": participant, "transaction_id": transaction.id}
        for transaction in of
        for participant in sorted({b.participant for b in transaction.branches if b.participant})
    ]
