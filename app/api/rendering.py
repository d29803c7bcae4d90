"""What all routes share: ids, limits and cursors coming in, JSON going out."""

from typing import Annotated, Any

from fastapi import Query
from fastapi.responses import Response
from pydantic_core import to_json

from app.api.problems import Problem
from app.api.schemas import CURSOR_CHARS_MAX, is_id, parse_cursor
from app.coordinator import UnknownTransactionError

Limit = Annotated[int, Query(ge=1, le=500)]
Cursor = Annotated[str | None, Query(max_length=CURSOR_CHARS_MAX, description="`next_cursor` of the page before")]


def known_id(transaction_id: str) -> str:
    """`transaction_id` when it has the form of one. Raises UnknownTransactionError."""
    if not is_id(transaction_id):
        raise UnknownTransactionError(transaction_id)
    return transaction_id


def parse_or_problem(cursor: str, *types: type) -> tuple[Any, ...]:
    try:
        return parse_cursor(cursor, *types)
    except ValueError as error:
        raise Problem("invalid", "cursor: give back a next_cursor as you got it, with the same filters") from error


def json_response(content: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(to_json(content), status, headers, "application/json")
