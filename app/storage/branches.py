"""The statements on `branches`: what was asked for of each branch. Rows are inserted and never changed."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection, Row, bindparam, delete, select

from app.storage.bulk import insert_all
from app.storage.tables import branches

_OF: Final = (
    select(branches)
    .where(branches.c.transaction_id.in_(bindparam("ids", expanding=True)))
    .order_by(branches.c.transaction_id, branches.c.position)
)


def insert(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert the branches of new transactions."""
    insert_all(connection, branches, rows)


def find(connection: Connection, transaction_ids: Sequence[str]) -> defaultdict[str, list[Row[Any]]]:
    """The branches of these transactions, in order; none for a transaction that was purged."""
    found: defaultdict[str, list[Row[Any]]] = defaultdict(list)
    for row in connection.execute(_OF, {"ids": transaction_ids}) if transaction_ids else ():
        found[row.transaction_id].append(row)
    return found


def remove(connection: Connection, transaction_ids: Sequence[str]) -> None:
    """Delete the branches of transactions that are purged."""
    connection.execute(delete(branches).where(branches.c.transaction_id.in_(transaction_ids)))
