"""A write that leaves nothing: whether the database accepts writes is known only from one."""

from collections.abc import Sequence

from sqlalchemy import Connection, bindparam, delete, insert, update

from app.storage.tables import leases, transactions

_NOTHING = update(transactions).where(transactions.c.id == "").values(version=0)
_REMOVE = delete(leases).where(leases.c.name == bindparam("key"))


def refuse_if_read_only(connection: Connection) -> None:
    """An UPDATE that matches no row. A server that only reads refuses it, and may lack what others have committed."""
    connection.execute(_NOTHING)


def probe(connection: Connection, items: Sequence[str]) -> list[bool]:
    """Write a row under each key, which must be new, and remove it: no other connection sees it or waits for it.

    Fails where transactions can't be written: on a server that only reads, behind a lock of the table, on a full disk.
    """
    refuse_if_read_only(connection)
    connection.execute(insert(leases), [{"name": key, "holder": key, "expires_at": 0.0} for key in items])
    connection.execute(_REMOVE, [{"key": key} for key in items])
    return [True] * len(items)
