"""Column types that behave the same on every supported database, for the tables of the SDK and the coordinator.

Types only: no tables, no statements.
"""

from typing import Any, Final

from sqlalchemy import String, Text
from sqlalchemy.dialects.mysql import LONGTEXT
from sqlalchemy.ext.compiler import compiles


class ExactString(String):
    """Text that is compared exactly: case, accents and trailing spaces matter."""


@compiles(ExactString, "mysql", "mariadb")
def _exact_on_mysql(type_: ExactString, compiler: Any, **_: Any) -> str:
    """MySQL compares by the database's collation, and the exact collation has a different name on MariaDB."""
    collation = "utf8mb4_nopad_bin" if compiler.dialect.is_mariadb else "utf8mb4_0900_bin"
    return f"VARCHAR({type_.length}) CHARACTER SET utf8mb4 COLLATE {collation}"


DOCUMENT: Final = Text().with_variant(LONGTEXT(charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb")
"""Text of any length that is never searched. MySQL's plain TEXT holds only 64 KiB."""
