"""Attributes an exception to the participant's own database, which will recover, or to the handler.

Judges by where the exception was raised, not only by its class: an OSError or TimeoutError in a handler's own code is
the handler's, but from its session it is the database's. Must not log, answer or retry.
"""

from collections.abc import Iterator
from enum import StrEnum
from traceback import walk_tb
from types import CodeType, TracebackType
from typing import Any, Final

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import Pool

from holdfast.fence.database import collided, will_pass
from holdfast.fence.groups import leaves
from holdfast.fence.handlers import Handlers
from holdfast.fence.rows import TABLE_NAME

_HANDLER_CALL: Final[CodeType] = Handlers.call.__code__
_UNDEFINED_TABLE: Final = "42P01"
_MYSQL_UNDEFINED_TABLE: Final = 1146


class Failure(StrEnum):
    """The kind of a failure. Each is answered with a 5xx, and the coordinator repeats the call."""

    DATABASE = "database"  # transient: down, full, locked, slow
    TABLE_MISSING = "table_missing"  # the SDK's own table
    HANDLER = "handler"


def failure_of(error: BaseException, engine: Engine) -> Failure:
    """The kind of failure that `error` is; `engine` is the one that the participant's sessions use."""
    if _is_missing_table(error):
        return Failure.TABLE_MISSING
    in_handler = any(frame_code is _HANDLER_CALL for frame_code, _ in _frames(error.__traceback__))
    members = list(leaves(error))
    passing = [leaf for leaf in members if will_pass(leaf) and not (in_handler and _is_foreign(leaf, engine))]
    if len(passing) == len(members) or any(collided(leaf) for leaf in passing):
        return Failure.DATABASE
    return Failure.HANDLER


def _is_foreign(error: BaseException, engine: Engine) -> bool:
    """Whether an exception from a handler has nothing to do with the participant's own database."""
    pools = [pool for _, owner in _frames(error.__traceback__) if (pool := _pool_of(owner)) is not None]
    if isinstance(error, SQLAlchemyError):
        return bool(pools) and engine.pool not in pools
    return engine.pool not in pools


def _pool_of(owner: Any) -> Pool | None:
    match owner:
        case Connection():
            return owner.engine.pool
        case Engine():
            return owner.pool
        case Pool():
            return owner
    return None


def _frames(trace: TracebackType | None) -> Iterator[tuple[CodeType, Any]]:
    """The code of each stack frame, and the object whose method it is."""
    for frame, _ in walk_tb(trace):
        yield frame.f_code, frame.f_locals.get("self")


def _is_missing_table(error: BaseException) -> bool:
    if not isinstance(error, DBAPIError) or TABLE_NAME not in str(error.orig):
        return False
    state = getattr(error.orig, "sqlstate", None)
    arguments: tuple[Any, ...] = getattr(error.orig, "args", ())
    return (
        state == _UNDEFINED_TABLE
        or arguments[:1] == (_MYSQL_UNDEFINED_TABLE,)
        or str(error.orig).startswith("no such table: ")
    )
