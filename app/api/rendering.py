"""What all routes share: bodies, ids and cursors coming in, JSON going out."""

import json
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, ValidationError
from pydantic_core import to_json

from app.api.problems import Problem
from app.api.schemas import call_json, is_id, parse_cursor, transaction_json
from app.coordinator import UnknownTransactionError
from app.models import CallRecord
from app.transaction import Transaction

_Model = TypeVar("_Model", bound=BaseModel)


def read_body(model: type[_Model], body: bytes, content_type: str | None) -> _Model:
    """The body of a request as a `model`. Raises what FastAPI raises where it reads bodies itself."""
    if not body:
        raise RequestValidationError([{"type": "missing", "loc": ("body",), "msg": "Field required"}])
    media_type = (content_type or "").partition(";")[0].strip().lower()
    try:
        if not (media_type == "application/json" or media_type.endswith("+json")):
            raise ValueError(f"not JSON, by its Content-Type: {media_type or 'none'}")
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestValidationError([{"type": "json_invalid", "loc": ("body",), "msg": str(error)}]) from error
    try:
        return model.model_validate(document)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        raise RequestValidationError([fault | {"loc": ("body", *fault["loc"])} for fault in faults]) from error


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


def exported(transaction: Transaction, calls: Iterable[CallRecord]) -> Iterator[bytes]:
    """The transaction resource with its calls as a JSON object, in pieces: there may be very many calls."""
    yield to_json(transaction_json(transaction)).removesuffix(b"}") + b',"calls":['
    for place, call in enumerate(calls):
        yield (b"," if place else b"") + to_json(call_json(call))
    yield b"]}"
