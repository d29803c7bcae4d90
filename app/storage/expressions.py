"""SQL expressions over `transactions` that several statements share, and the limit on the bytes read at once."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Final

from sqlalchemy import Integer, Row, and_
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import GenericFunction

from app.storage.tables import transactions


class octet_length(GenericFunction[int]):
    """How many bytes a text takes."""

    type = Integer()
    inherit_cache = True


@compiles(octet_length, "sqlite")
def _octet_length_sqlite(element: octet_length, compiler: SQLCompiler, **options: Any) -> str:
    """SQLite has the function since 3.43 only."""
    return f"length(CAST({compiler.process(element.clauses, **options)} AS BLOB))"


DOCUMENT_BYTES: Final = octet_length(transactions.c.definition) + octet_length(transactions.c.state)
"""The size of a row's documents: what it costs to read it."""
IS_HUNG: Final = transactions.c.hung_since.is_not(None)
IS_UNDER_WAY: Final = and_(transactions.c.wake_at.is_not(None), transactions.c.hung_since.is_(None))
UNFINISHED: Final = (IS_UNDER_WAY, IS_HUNG)
"""The two conditions that together select what is not finished; each has an index of its own."""
READ_BYTES_MAX: Final = 8 * 1024 * 1024
"""Maximum size of the documents that are read at once; a page of a list ends early when its own are larger."""


def within_read_limit(rows: Sequence[Row[Any]]) -> Sequence[Row[Any]]:
    """The first of `rows` whose documents together fit into READ_BYTES_MAX; DOCUMENT_BYTES come first in each.

    The first row always fits.
    """
    totals = list(accumulate(row[0] for row in rows))
    return rows[: max(1, bisect_right(totals, READ_BYTES_MAX))]
