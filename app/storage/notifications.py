"""The statements by which replicas notify each other: PostgreSQL's LISTEN and NOTIFY."""

from collections.abc import Sequence
from typing import Final

from sqlalchemy import Connection, bindparam, func, select, text
from sqlalchemy.exc import DBAPIError

CHANNEL: Final = "holdfast_changed"
"""The name of the channel."""


def notify(connection: Connection, items: Sequence[str]) -> list[None]:
    """Send these texts to whoever listens, at the commit; only where `is_supported` has said yes."""
    connection.execute(
        select(func.pg_notify(bindparam("channel"), bindparam("text"))),
        [{"channel": CHANNEL, "text": item} for item in items],
    )
    return [None] * len(items)


def is_supported(connection: Connection) -> bool:
    """Whether this database, through this connection, can notify its clients."""
    try:
        listen(connection)
        connection.execute(text("UNLISTEN *"))
    except DBAPIError as error:
        if error.connection_invalidated:
            raise
        return False
    return True


def listen(connection: Connection) -> None:
    """Have this connection receive notifications."""
    connection.execute(text(f"LISTEN {CHANNEL}"))
