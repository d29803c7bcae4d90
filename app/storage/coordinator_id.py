"""The id of the coordinator, which a migration has drawn: the same in every replica and after every restart."""

from sqlalchemy import Connection, select

from app.storage.tables import coordinator


def find_coordinator_id(connection: Connection) -> str:
    """What participants know this coordinator by."""
    return str(connection.execute(select(coordinator.c.id)).scalar_one())
