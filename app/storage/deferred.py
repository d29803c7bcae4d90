"""What remains to be done with rows that were read, once their database transaction has ended.

Parsing large documents while a transaction is open would hold its locks, and can outlast the session's idle limit.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Deferred(Generic[_Result]):
    """The result of a read function whose rows have yet to be parsed. `finish` needs no connection."""

    finish: Callable[[], _Result]


def finished(result: Any) -> Any:
    """The final result of a read function."""
    return result.finish() if isinstance(result, Deferred) else result
