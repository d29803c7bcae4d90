"""The statements on `leases`: work that one process at a time does, such as purging. No clock here."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, insert, or_, select, update

from app.storage.errors import StaleError
from app.storage.tables import leases


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """Who wants or has the lease for a piece of work, until when; times are seconds since the epoch."""

    name: str
    holder: str
    now: float
    expires_at: float


class LeaseLostError(StaleError):
    """Another process has taken over the work. The caller must stop doing it."""


def take_lease(connection: Connection, items: Sequence[Lease]) -> list[bool]:
    """Take or extend leases; the result is False where another process holds one that hasn't expired.

    Raises an error of the database if two processes take the same lease for the first time ever.
    """
    return [_take(connection, item) for item in items]


def release_lease(connection: Connection, items: Sequence[Lease]) -> list[None]:
    """End leases, so that another process can take them at once; those of other holders stay."""
    for item in items:
        mine = (leases.c.name == item.name, leases.c.holder == item.holder)
        connection.execute(update(leases).where(*mine).values(expires_at=item.now))
    return [None] * len(items)


def check_lease(connection: Connection, item: Lease) -> None:
    """Extend a lease as part of another write, which is only valid while the lease is held.

    Raises LeaseLostError.
    """
    mine = (leases.c.name == item.name, leases.c.holder == item.holder)
    if connection.execute(update(leases).where(*mine).values(expires_at=item.expires_at)).rowcount != 1:
        raise LeaseLostError(f"{item.name} is another process's work now")


def _take(connection: Connection, item: Lease) -> bool:
    column = leases.c
    free = or_(column.holder == item.holder, column.expires_at <= item.now)
    values = {"holder": item.holder, "expires_at": item.expires_at}
    if connection.execute(update(leases).where(column.name == item.name, free).values(values)).rowcount:
        return True
    if connection.execute(select(column.name).where(column.name == item.name)).first():
        return False
    connection.execute(insert(leases).values(name=item.name, **values))
    return True
