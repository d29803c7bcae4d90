"""Reads what requests carry: bodies, transaction ids in paths, and cursors."""

import json
from typing import Any, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from app.api.pagination import parse_cursor
from app.api.problems import Problem
from app.engine.coordinator import UnknownTransactionError
from app.protocol.transaction_id import is_id

_Model = TypeVar("_Model", bound=BaseModel)


def read_body(model: type[_Model], body: bytes, content_type: str | None) -> _Model:
    """Parse a request body as a `model`. Raises the same errors as FastAPI's own parsing."""
    if not body:
        raise RequestValidationError([{"type": "missing", "loc": ("body",), "msg": "Field required"}])
    media_type = (content_type or "").partition(";")[0].strip().lower()
    try:
        if not (media_type == "application/json" or media_type.endswith("+json")):
            raise ValueError(f"Content-Type is {media_type or 'missing'}; send application/json")
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestValidationError([{"type": "json_invalid", "loc": ("body",), "msg": str(error)}]) from error
    try:
        return model.model_validate(document)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        raise RequestValidationError([fault | {"loc": ("body", *fault["loc"])} for fault in faults]) from error


def known_id(transaction_id: str) -> str:
    """The id in canonical form. Raises UnknownTransactionError if it can't be one."""
    known = transaction_id.lower()
    if not is_id(known):
        raise UnknownTransactionError(transaction_id)
    return known


def read_cursor(cursor: str, *types: type) -> tuple[Any, ...]:
    """As `parse_cursor`, but raises the problem `invalid`."""
    try:
        return parse_cursor(cursor, *types)
    except ValueError as error:
        raise Problem(
            "invalid", "cursor: send the `next_cursor` of the previous page unchanged, with the same filters"
        ) from error
