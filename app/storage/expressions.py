"""SQL expressions on `transactions` that several statements share, and the limit on the bytes read at once."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Final, TypeVar

from sqlalchemy import Integer, and_
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import GenericFunction

from app.storage.mapping import FORMATS
from app.storage.tables import transactions

_Row = TypeVar("_Row", bound=Sequence[Any])


class octet_length(GenericFunction[int]):
    """The size of a text in bytes."""

    type = Integer()
    inherit_cache = True


@compiles(octet_length, "sqlite")
def _octet_length_sqlite(element: octet_length, compiler: SQLCompiler, **options: Any) -> str:
    """SQLite has this function only since 3.43."""
    return f"length(CAST({compiler.process(element.clauses, **options)} AS BLOB))"


DOCUMENT_BYTES: Final = transactions.c.definition_bytes + octet_length(transactions.c.progress)
"""The size of a transaction's documents, which is what reading it costs."""
IS_HUNG: Final = transactions.c.hung_since.is_not(None)
IS_UNDER_WAY: Final = and_(transactions.c.wake_at.is_not(None), transactions.c.hung_since.is_(None))
IS_READABLE: Final = transactions.c.format.in_(sorted(FORMATS))
"""This version can read the row. Others are left to the replicas that wrote them."""
UNFINISHED: Final = (IS_UNDER_WAY, IS_HUNG)
"""The two conditions that together select unfinished transactions; each has its own index."""
READ_BYTES_MAX: Final = 8 * 1024 * 1024
"""Maximum size of the documents read at once; a page of a list ends early if its documents are larger."""


def within_read_limit(rows: Sequence[_Row], bytes_max: int | None = None) -> Sequence[_Row]:
    """The first `rows` whose documents together fit into `bytes_max` (default: READ_BYTES_MAX), but at least one row.

    The first column of each row must be DOCUMENT_BYTES.
    """
    totals = list(accumulate(row[0] for row in rows))
    return rows[: max(1, bisect_right(totals, READ_BYTES_MAX if bytes_max is None else bytes_max))]
