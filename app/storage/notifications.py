"""The statements by which replicas notify each other: PostgreSQL's LISTEN and NOTIFY."""

from collections.abc import Sequence
from typing import Final

from sqlalchemy import Connection, bindparam, func, select, text
from sqlalchemy.exc import DBAPIError

CHANNEL: Final = "holdfast_changed"
"""The name of the channel."""


def notify(connection: Connection, items: Sequence[str]) -> list[None]:
    """Send these texts to all listeners at the commit. Requires `is_supported`."""
    connection.execute(
        select(func.pg_notify(bindparam("channel"), bindparam("text"))),
        [{"channel": CHANNEL, "text": item} for item in items],
    )
    return [None] * len(items)


def is_supported(connection: Connection) -> bool:
    """Whether this database supports notifications on this connection; a pooler in between may not."""
    try:
        listen(connection)
        connection.execute(text("UNLISTEN *"))
    except DBAPIError as error:
        if error.connection_invalidated:
            raise
        return False
    return True


def listen(connection: Connection) -> None:
    """Make this connection receive notifications."""
    connection.execute(text(f"LISTEN {CHANNEL}"))
