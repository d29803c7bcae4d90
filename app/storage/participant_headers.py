"""The statements on `participant_headers`. They pass through here encrypted; nothing here can read them."""

from collections.abc import Callable, Sequence
from typing import Final
from urllib.parse import urlsplit

from sqlalchemy import Connection, delete, insert, select, update

from app.storage.tables import participant_headers

_TABLE: Final = participant_headers.c
_HEADERS: Final = select(_TABLE.participant, _TABLE.headers).order_by(_TABLE.participant)
_PORTS: Final = {"http": 80, "https": 443}


def list_headers(connection: Connection) -> dict[str, str]:
    """The headers of each participant that has some, encrypted."""
    return {row.participant: row.headers for row in connection.execute(_HEADERS)}


def put_headers(connection: Connection, participant: str, headers: str | None, *, has_moved: bool) -> None:
    """Replace a participant's headers; an empty text removes them. None keeps them, unless it `has_moved`."""
    mine = _TABLE.participant == participant
    if headers is None and not has_moved:
        return
    if not headers:
        connection.execute(delete(participant_headers).where(mine))
    elif not connection.execute(update(participant_headers).where(mine).values(headers=headers)).rowcount:
        connection.execute(insert(participant_headers).values(participant=participant, headers=headers))


def re_encrypt_headers(connection: Connection, items: Sequence[Callable[[str], str]]) -> list[int]:
    """Replace every stored text by what each function makes of it; returns of how many participants, for each."""
    counts = []
    for changed in items:
        found = list_headers(connection)
        for participant, headers in found.items():
            same = (_TABLE.participant == participant, _TABLE.headers == headers)
            connection.execute(update(participant_headers).where(*same).values(headers=changed(headers)))
        counts.append(len(found))
    return counts


def origin_of(url: str) -> tuple[str, str | None, int | None]:
    """Scheme, host and port of a URL: who gets what is sent there."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or _PORTS.get(parts.scheme)
