"""The statements on `coordinator`: the id, which a migration has drawn, and the URL that this database serves."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, select, update

from app.storage.tables import coordinator


@dataclass(frozen=True, slots=True, kw_only=True)
class UrlClaim:
    """The URL that a process wants to serve; `adopts` if that may replace another."""

    url: str
    adopts: bool


def find_coordinator_id(connection: Connection) -> str:
    """What participants know this coordinator by: the same in every replica and after every restart."""
    return str(connection.execute(select(coordinator.c.id)).scalar_one())


def claim_url(connection: Connection, items: Sequence[UrlClaim]) -> list[str]:
    """The URL that the database serves: the one of the claim, unless it has another already."""
    return [_claim(connection, item) for item in items]


def _claim(connection: Connection, item: UrlClaim) -> str:
    served: str | None = connection.execute(select(coordinator.c.public_url).with_for_update()).scalar_one()
    if served is not None and not item.adopts:
        return served
    if served != item.url:
        connection.execute(update(coordinator).values(public_url=item.url))
    return item.url
