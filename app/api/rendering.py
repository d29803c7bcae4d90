"""What all routes share: ids and cursors coming in, JSON going out."""

from typing import Any

from fastapi.responses import Response
from pydantic_core import to_json

from app.api.problems import Problem
from app.api.schemas import is_id, parse_cursor
from app.coordinator import UnknownTransactionError


def known_id(transaction_id: str) -> str:
    """`transaction_id` when it has the form of one. Raises UnknownTransactionError."""
    known = transaction_id.lower()
    if not is_id(known):
        raise UnknownTransactionError(transaction_id)
    return known


def parse_or_problem(cursor: str, *types: type) -> tuple[Any, ...]:
    try:
        return parse_cursor(cursor, *types)
    except ValueError as error:
        raise Problem("invalid", "cursor: give back a next_cursor as you got it, with the same filters") from error


def json_response(content: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(to_json(content), status, headers, "application/json")
