"""The three routes: parse a message, pass it on, render the answer. No SQL, no states, no decisions."""

import json
import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from starlette.requests import ClientDisconnect

from holdfast.fence.execution import Busy, Declined
from holdfast.fence.failures import Failure
from holdfast.fence.handlers import InvalidPayload
from holdfast.fence.rows import BRANCH_CHARS_MAX, COORDINATOR_ID_CHARS_MAX, TABLE_NAME, TRANSACTION_ID_CHARS_MAX, Row
from holdfast.fence.table import Refusal
from holdfast.hold import NotNow, Refused
from holdfast.json_text import NotPortableError, checked, loads
from holdfast.participant.signatures import Signatures
from holdfast.signing import BadSignatureError
from holdfast.wire import (
    BRANCH_HEADER,
    HOLD_TTL_HEADER,
    MESSAGE_BYTES_MAX,
    OPERATION_HEADER,
    TRANSACTION_ID_HEADER,
    Operation,
    header_text,
    is_one_line,
    json_text,
    printable,
)

log = logging.getLogger("holdfast")

TCC: Final = (Operation.TRY, Operation.CONFIRM, Operation.CANCEL)
RETRY_AFTER_S: Final = 1.0
"""`Retry-After` of a database problem or a busy branch, in seconds; a lease may outlast the transaction."""
TABLE_MISSING: Final = (
    f"The participant's database has no table {TABLE_NAME}. Run the service's migrations or create_all(), or let the "
    "participant's lifespan or create_table() create it."
)

_DETAILS: Final = {
    Refusal.NOTHING_HELD: "There is no hold for this transaction and branch: its Try never succeeded here.",
    Refusal.ALREADY_CANCELLED: "This branch was cancelled. It can no longer be held or confirmed.",
    Refusal.ALREADY_CONFIRMED: "This branch was confirmed. It can no longer be cancelled.",
    Refusal.HOLD_EXPIRED: "The hold was released after hold_max_s, before a confirm arrived.",
    Refusal.PAYLOAD_MISMATCH: "This transaction and branch were already used with another payload.",
    Refusal.FORGOTTEN: "The Try of this branch succeeded, but its row is gone: purged, or lost with a backup. What it "
    "changed may still stand. Look for it, undo it by hand, then resolve the branch.",
}


class Problem(Exception):
    """Raised to answer with a problem (RFC 9457)."""

    def __init__(self, status: int, slug: str, detail: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(slug)
        self.status = status
        self.slug = slug
        self.detail = detail
        self.retry_after_s = retry_after_s

    def response(self) -> Response:
        document = {
            "type": f"/problems/{self.slug}",
            "title": self.slug.replace("-", " ").capitalize(),
            "status": self.status,
            "detail": self.detail,
        }
        headers = {}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after_s)))
        return Response(json.dumps(document), self.status, headers, media_type="application/problem+json")


class Message(BaseModel):
    """A message of the coordinator; `payload` is JSON text, or None if the message has none.

    Other members are ignored, because the coordinator may be newer.
    """

    model_config = ConfigDict(frozen=True)

    transaction_id: str = Field(min_length=1, max_length=TRANSACTION_ID_CHARS_MAX)
    branch: str = Field(min_length=1, max_length=BRANCH_CHARS_MAX)
    operation: Operation | None = None
    attempt: int = Field(default=1, ge=1, le=2**62)
    hold_ttl_s: float | None = Field(default=None, ge=0, le=1e9, allow_inf_nan=False)
    payload: str | None = None
    held: bool = False
    coordinator_id: str | None = Field(default=None, min_length=1, max_length=COORDINATOR_ID_CHARS_MAX)

    @field_validator("transaction_id", "branch", "coordinator_id")
    @classmethod
    def _is_a_name(cls, value: str | None) -> str | None:
        if value is not None and (not is_one_line(value) or value != value.strip()):
            raise ValueError("must be one line, without leading or trailing spaces")
        return value


Receive = Callable[[Operation, Message], Awaitable[tuple[Row, float | None]]]
"""Processes a message; returns the row, and the seconds to announce in `Tcc-Hold-Ttl`."""

FailureOf = Callable[[BaseException], Failure]
"""Tells what kind of failure an exception is."""


def router_for(
    name: str,
    receive: Receive,
    failure_of: FailureOf,
    *,
    signatures: Signatures,
    lifespan: Callable[[Any], Any],
) -> APIRouter:
    """A router with `POST /try`, `/confirm`, `/cancel`, and a lifespan. docs/reference/protocol.md, section 4."""
    router = APIRouter(tags=[f"tcc: {name}"], lifespan=lifespan)
    for operation in TCC:
        router.add_api_route(
            f"/{operation.value}",
            _route(operation, receive, failure_of, signatures),
            methods=["POST"],
            name=f"{name}-{operation.value}",
            operation_id=f"tcc-{name}-{operation.value}",
            summary=f"{operation.value.capitalize()} this participant's branch of a transaction",
            description="Called by the coordinator, as often as it takes to get an answer. A repeated call has no "
            "further effect.",
            response_class=Response,
            responses=_RESPONSES,
            openapi_extra={"requestBody": {"required": True, "content": {"application/json": _body_of(operation)}}},
        )
    return router


def _body_of(operation: Operation) -> dict[str, Any]:
    """The documented body; its payload is whatever the service's handlers expect."""
    example = {
        "transaction_id": "0199b2c4-5e11-7c3a-9f60-2b8d1e47a905",
        "branch": "inventory",
        "operation": operation.value,
        "attempt": 1,
        "payload": {"sku": "A-1", "quantity": 2},
        **(_ON_TRY if operation is Operation.TRY else {"result": {"hold_id": "inventory-83"}}),
        **({"held": True} if operation is Operation.CANCEL else {}),
    }
    return {"schema": _SCHEMA, "examples": {operation.value: {"summary": "One call", "value": example}}}


def _route(
    operation: Operation, receive: Receive, failure_of: FailureOf, signatures: Signatures
) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        try:
            body = await _body(request)
            _check(signatures, request, body)
            message = _message(operation, request, body, is_signed=signatures.requires)
        except Problem as problem:
            return problem.response()
        try:
            row, ttl_s = await receive(operation, message)
        except Exception as error:
            return _problem(operation, message, error, failure_of).response()
        return _success(operation, row, ttl_s)

    return answer


def _success(operation: Operation, row: Row, ttl_s: float | None) -> Response:
    if operation is not Operation.TRY:
        return Response(json.dumps({"phase": row.state.value}), media_type="application/json")
    headers = {} if ttl_s is None else {HOLD_TTL_HEADER: _seconds(ttl_s)}
    return Response(row.result or "null", headers=headers, media_type="application/json")


def _problem(operation: Operation, message: Message, error: Exception, failure_of: FailureOf) -> Problem:
    """The answer for an exception. Only a refusal is a 4xx, because on Try a 4xx cancels the transaction."""
    where = (message.transaction_id, message.branch, operation.value)
    match error:
        case Declined(refusal=refusal, detail=detail):
            return Problem(409, refusal.value, detail or _DETAILS[refusal])
        case Refused(detail=detail):
            return Problem(409, "refused", detail)
        case InvalidPayload() if operation is Operation.TRY:
            return Problem(422, "invalid-payload", str(error))
        case Busy(after_s=after_s):
            return Problem(
                503, "busy", "A handler of this branch is still running.", retry_after_s=min(after_s, RETRY_AFTER_S)
            )
        case NotNow(detail=detail, retry_after_s=after_s):
            log.warning("event=call_postponed transaction_id=%s branch=%s operation=%s", *where)
            return Problem(503, "unavailable", detail, retry_after_s=after_s)
    match failure_of(error):
        case Failure.DATABASE:
            log.warning(
                "event=call_postponed transaction_id=%s branch=%s operation=%s error=%s",
                *where,
                type(error).__name__,
                exc_info=error,
            )
            return Problem(
                503, "unavailable", "The participant's database is not available.", retry_after_s=RETRY_AFTER_S
            )
        case Failure.TABLE_MISSING:
            log.error("event=table_missing transaction_id=%s branch=%s operation=%s %s", *where, TABLE_MISSING)
            return Problem(503, "unavailable", TABLE_MISSING, retry_after_s=RETRY_AFTER_S)
    log.error("event=handler_failed transaction_id=%s branch=%s operation=%s", *where, exc_info=error)
    return Problem(
        500,
        "handler-failed",
        f"The {operation.value} handler raised {type(error).__name__}; the participant's log has the details.",
    )


async def _body(request: Request) -> bytes:
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MESSAGE_BYTES_MAX:
                raise Problem(
                    413,
                    "payload-too-large",
                    f"The message is longer than {MESSAGE_BYTES_MAX} bytes; send a smaller payload.",
                )
    except ClientDisconnect:  # nobody reads the answer
        raise Problem(400, "malformed", "The body is incomplete.") from None
    return bytes(body)


def _check(signatures: Signatures, request: Request, body: bytes) -> None:
    try:
        signatures.check(request.headers, body)
    except BadSignatureError as error:
        raise Problem(403, "bad-signature", printable(str(error))) from None


def _message(operation: Operation, request: Request, body: bytes, *, is_signed: bool) -> Message:
    """The message that the body is. Only the body may be signed: path and headers are compared with it, no more."""
    try:
        members = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        given = {name: checked(members[name]) for name in Message.model_fields if name in members}
    except msgspec.ValidationError as error:
        if json_text(body) is not None:
            raise Problem(422, "invalid-message", f"body: {error}") from None
        raise Problem(400, "malformed", "The body is not valid JSON.") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, NotPortableError) as error:
        raise Problem(400, "malformed", printable(f"The body is not valid JSON: {error}")) from None
    try:
        message = Message.model_validate(
            {name: text if name == "payload" else loads(text) for name, text in given.items()}
        )
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_context=False, include_input=False)
        detail = "; ".join(f"{'.'.join(map(str, one['loc'])) or 'body'}: {one['msg']}" for one in wrong)
        raise Problem(422, "invalid-message", printable(detail)) from None
    if is_signed and message.operation is not operation:
        asked = message.operation or "no operation"
        raise Problem(403, "bad-signature", f"The signed body asks for {asked}, and this is the route of {operation}.")
    for what, here, there in (
        ("operation in the body", message.operation, operation),
        (OPERATION_HEADER, request.headers.get(OPERATION_HEADER), operation),
        (TRANSACTION_ID_HEADER, request.headers.get(TRANSACTION_ID_HEADER), message.transaction_id),
        (BRANCH_HEADER, request.headers.get(BRANCH_HEADER), header_text(message.branch)),
    ):
        if here is not None and here != there:
            raise Problem(
                422, "invalid-message", printable(f"{what} is {here}, but the rest of the request says {there}.")
            )
    return message


def _seconds(seconds: float) -> str:
    """Rounded down, so as not to promise too much."""
    return f"{math.floor(max(0.0, seconds) * 1000) / 1000:.3f}".rstrip("0").rstrip(".")


_ON_TRY: Final = {"hold_ttl_s": 60, "coordinator_id": "5b0f2b7e-6f0a-4c57-9d0e-3f1d3c0c8a11"}
_SCHEMA: Final = {
    "type": "object",
    "required": ["transaction_id", "branch"],
    "properties": {
        "transaction_id": {"type": "string", "minLength": 1, "maxLength": TRANSACTION_ID_CHARS_MAX},
        "branch": {"type": "string", "minLength": 1, "maxLength": BRANCH_CHARS_MAX},
        "operation": {"enum": [operation.value for operation in TCC]},
        "attempt": {"type": "integer", "minimum": 1},
        "hold_ttl_s": {"type": ["number", "null"], "minimum": 0},
        "coordinator_id": {"type": ["string", "null"], "minLength": 1, "maxLength": COORDINATOR_ID_CHARS_MAX},
        "payload": {},
        "result": {},
        "held": {"type": "boolean"},
    },
}
_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    200: {"description": "Done, now or by an earlier call.", "content": {"application/json": {}}},
    **{
        status: {"description": description, "content": {"application/problem+json": {}}}
        for status, description in {
            400: "The body is not valid JSON.",
            403: "Signatures are required, and this call isn't signed as it should be.",
            409: "Refused, or no longer possible.",
            413: "The message is too long.",
            422: "The message or its payload is not valid.",
            500: "The handler failed: try again.",
            503: "Busy, or the database is not available: try again after `Retry-After` seconds.",
        }.items()
    },
}
