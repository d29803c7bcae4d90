"""The routes: parse a message, pass it on, render the answer. No SQL, no states, no decisions."""

import json
import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple

import msgspec
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import ClientDisconnect

from holdfast.fence.execution import Busy, Declined
from holdfast.fence.failures import Failure
from holdfast.fence.handlers import InvalidPayload
from holdfast.fence.rows import BRANCH_CHARS_MAX, COORDINATOR_ID_CHARS_MAX, TABLE_NAME, TRANSACTION_ID_CHARS_MAX, Row
from holdfast.fence.steps import Fence, Refusal
from holdfast.hold import NotNow, Refused
from holdfast.json_text import NULL, JsonText, NotPortableError, checked, loads
from holdfast.participant.signatures import Signatures
from holdfast.signing import BadSignatureError
from holdfast.wire import (
    BRANCH_HEADER,
    HOLD_TTL_HEADER,
    MESSAGE_BYTES_MAX,
    OPERATION_HEADER,
    TRANSACTION_ID_HEADER,
    UNDOES,
    Kind,
    Operation,
    header_text,
    is_one_line,
    json_text,
    printable,
)

log = logging.getLogger("holdfast")

PROTOCOL: Final = 1
"""The version of the wire protocol that `GET {base_url}` tells."""
KIND_CHARS_MAX: Final = 64
FIRST_CALLS: Final = frozenset({Operation.TRY, Operation.ACTION})
"""The operations that bring a payload, and whose success is answered with the result."""
RETRY_AFTER_S: Final = 1.0
"""`Retry-After` of a database problem or a busy branch, in seconds; a lease may outlast the transaction."""
TABLE_MISSING: Final = (
    f"The participant's database has no table {TABLE_NAME}. Run the service's migrations or create_all(), or let the "
    "participant's lifespan or create_table() create it."
)

_DETAILS: Final = {
    Refusal.NOTHING_HELD: "There is no hold for this transaction and branch: its Try never succeeded here.",
    Refusal.ALREADY_CANCELLED: "This branch was cancelled. It can no longer be held or confirmed.",
    Refusal.ALREADY_COMPENSATED: "This step was compensated. Its action no longer takes effect.",
    Refusal.ALREADY_DONE: "The action has taken effect. It can't be cancelled.",
    Refusal.WRONG_KIND: "This participant is of another kind than the branch; GET its base URL to see which. Begin the "
    "transaction with that kind.",
    Refusal.ALREADY_CONFIRMED: "This branch was confirmed. It can no longer be cancelled.",
    Refusal.HOLD_EXPIRED: "The hold was released after hold_max_s, before a confirm arrived.",
    Refusal.PAYLOAD_MISMATCH: "This transaction and branch were already used with another payload.",
    Refusal.FORGOTTEN: "The Try or action of this branch succeeded, but its row is gone: purged, or lost with a "
    "backup. What it changed may still stand. Look for it, undo it by hand, then resolve the branch.",
}


class Problem(Exception):
    """Raised to answer with a problem (RFC 9457). `result`: JSON text of a member of that name."""

    def __init__(
        self,
        status: int,
        slug: str,
        detail: str,
        *,
        retry_after_s: float | None = None,
        result: JsonText | None = None,
    ) -> None:
        super().__init__(slug)
        self.status = status
        self.slug = slug
        self.detail = detail
        self.retry_after_s = retry_after_s
        self.result = result

    def undecided(self) -> "Problem":
        """The same, so that nobody mistakes it for a decision: a 4xx becomes a 500."""
        status = self.status if self.status >= 500 or self.slug == _BAD_SIGNATURE else 500
        return Problem(status, self.slug, self.detail, retry_after_s=self.retry_after_s, result=self.result)

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
        text = json.dumps(document)
        if self.result is not None:
            text = f'{text.removesuffix("}")}, "result": {self.result}}}'
        return Response(text, self.status, headers, media_type="application/problem+json")


class Message(BaseModel):
    """A message of the coordinator; `payload` and `results` are JSON texts, or None if the message has none.

    A missing kind means TCC; a kind that this version doesn't know is one that the participant isn't. Other members are
    ignored, because the coordinator may be newer.
    """

    model_config = ConfigDict(frozen=True)

    transaction_id: str = Field(min_length=1, max_length=TRANSACTION_ID_CHARS_MAX)
    branch: str = Field(min_length=1, max_length=BRANCH_CHARS_MAX)
    operation: Operation | None = None
    attempt: int = Field(default=1, ge=1, le=2**62)
    hold_ttl_s: float | None = Field(default=None, ge=0, le=1e9, allow_inf_nan=False)
    payload: str | None = None
    held: bool = False
    kind: str = Field(default=Kind.TCC.value, max_length=KIND_CHARS_MAX)
    results: str | None = None
    coordinator_id: str | None = Field(default=None, min_length=1, max_length=COORDINATOR_ID_CHARS_MAX)

    @field_validator("transaction_id", "branch", "coordinator_id")
    @classmethod
    def _is_a_name(cls, value: str | None) -> str | None:
        if value is not None and (not is_one_line(value) or value != value.strip()):
            raise ValueError("must be one line, without leading or trailing spaces")
        return value

    @field_validator("results")
    @classmethod
    def _is_an_object(cls, value: str | None) -> str | None:
        if value is None or value == NULL:
            return None
        if not value.startswith("{"):
            raise ValueError("must be an object")
        return value


class Answer(NamedTuple):
    """The row after a message, and the seconds to announce in `Tcc-Hold-Ttl`."""

    row: Row
    hold_ttl_s: float | None


class Description(NamedTuple):
    """The participant that the routes belong to."""

    name: str
    fence: Fence
    signatures: Signatures


Receive = Callable[[Operation, Message], Awaitable[Answer]]
"""Processes a message."""

FailureOf = Callable[[BaseException], Failure]
"""Tells what kind of failure an exception is."""


def router_for(
    described: Description, receive: Receive, failure_of: FailureOf, *, lifespan: Callable[[Any], Any]
) -> APIRouter:
    """A router with a lifespan, and a route for each operation; docs/reference/protocol.md, section 4.

    Operations of other kinds are served, too: those that undo are acknowledged, the others are told what is wrong.
    """
    name, fence = described.name, described.fence
    router = APIRouter(tags=[f"{fence.kind}: {name}"], lifespan=lifespan)
    for operation in Operation:
        router.add_api_route(
            f"/{operation.value}",
            _route(operation, receive, failure_of, described),
            methods=["POST"],
            name=f"{name}-{operation.value}",
            operation_id=f"{fence.kind}-{name}-{operation.value}",
            summary=f"{operation.value.capitalize()} this participant's branch of a transaction",
            description="Called by the coordinator, as often as it takes to get an answer. A repeated call has no "
            "further effect.",
            response_class=Response,
            responses=_RESPONSES,
            openapi_extra={
                "requestBody": {"required": True, "content": {"application/json": _body_of(operation, fence)}}
            },
            include_in_schema=operation in fence.operations,
        )
    # The base URL itself, with or without a slash at its end: FastAPI admits no empty path without a prefix.
    router.add_api_route(f"{{slash:{BASE_URL}}}", _describe(described), methods=["GET"], include_in_schema=False)
    return router


class _BaseUrl(Convertor[str]):
    """Matches what may follow a base URL: nothing, or a slash."""

    regex = "/?"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


BASE_URL: Final = "holdfast_base_url"
register_url_convertor(BASE_URL, _BaseUrl())


def _describe(described: Description) -> Callable[[], Response]:
    """What a coordinator's connection test reads."""
    document = {
        "participant": described.name,
        "protocol": PROTOCOL,
        "kinds": [described.fence.kind.value],
        "signature": described.signatures.form,
        "batch": False,
    }

    def answer() -> Response:
        return Response(json.dumps(document), media_type="application/json")

    return answer


def _body_of(operation: Operation, fence: Fence) -> dict[str, Any]:
    """The documented body; its payload is whatever the service's handlers expect."""
    example = {
        "transaction_id": "0199b2c4-5e11-7c3a-9f60-2b8d1e47a905",
        "branch": "inventory",
        "kind": fence.kind.value,
        "operation": operation.value,
        "attempt": 1,
        "payload": {"sku": "A-1", "quantity": 2},
        **_EXAMPLES.get(operation, {}),
        **({"result": {"hold_id": "inventory-83"}} if operation not in FIRST_CALLS else {}),
        **({"held": True} if operation in UNDOES else {}),
    }
    return {"schema": _SCHEMA, "examples": {operation.value: {"summary": "One call", "value": example}}}


def _route(
    operation: Operation, receive: Receive, failure_of: FailureOf, described: Description
) -> Callable[[Request], Awaitable[Response]]:
    signatures, decides = described.signatures, operation in described.fence.decisive

    async def answer(request: Request) -> Response:
        try:
            body = await _body(request)
            _check(signatures, request, body)
            message = _message(operation, request, body, is_signed=signatures.requires)
        except Problem as problem:
            return (problem.undecided() if decides else problem).response()
        try:
            answered = await receive(operation, message)
        except Exception as error:
            return _problem(operation, message, error, failure_of).response()
        return _success(operation, answered)

    return answer


def _success(operation: Operation, answered: Answer) -> Response:
    row, ttl_s = answered
    if operation not in FIRST_CALLS:
        return Response(json.dumps({"phase": row.state.value}), media_type="application/json")
    headers = {} if ttl_s is None else {HOLD_TTL_HEADER: _seconds(ttl_s)}
    return Response(row.result or NULL, headers=headers, media_type="application/json")


def _problem(operation: Operation, message: Message, error: Exception, failure_of: FailureOf) -> Problem:
    """The answer for an exception. Only a refusal is a 4xx, because a 4xx to a first call cancels the transaction."""
    where = (message.transaction_id, message.branch, operation.value)
    match error:
        case Declined(refusal=refusal, detail=detail):
            problem = Problem(409, refusal.value, detail or _DETAILS[refusal], result=_result_of(error))
            return problem if error.is_final else problem.undecided()
        case Refused(detail=detail):
            return Problem(409, "refused", detail)
        case InvalidPayload() if operation in FIRST_CALLS:
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


def _result_of(declined: Declined) -> JsonText | None:
    """The result that belongs to the answer: a pivot that is done says with what."""
    if declined.refusal is not Refusal.ALREADY_DONE:
        return None
    return JsonText(declined.result or NULL)


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
            {name: text if name in _TEXTS else loads(text) for name, text in given.items()}
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


_TEXTS: Final = frozenset({"payload", "results"})
_BAD_SIGNATURE: Final = "bad-signature"
_COORDINATOR: Final = {"coordinator_id": "5b0f2b7e-6f0a-4c57-9d0e-3f1d3c0c8a11"}
_EXAMPLES: Final[dict[Operation, dict[str, Any]]] = {
    Operation.TRY: {"hold_ttl_s": 60, **_COORDINATOR},
    Operation.ACTION: {**_COORDINATOR, "results": {"order": {"id": 4711}}},
}
_SCHEMA: Final = {
    "type": "object",
    "required": ["transaction_id", "branch"],
    "properties": {
        "transaction_id": {"type": "string", "minLength": 1, "maxLength": TRANSACTION_ID_CHARS_MAX},
        "branch": {"type": "string", "minLength": 1, "maxLength": BRANCH_CHARS_MAX},
        "operation": {"enum": [operation.value for operation in Operation]},
        "kind": {"type": "string", "maxLength": KIND_CHARS_MAX},
        "attempt": {"type": "integer", "minimum": 1},
        "hold_ttl_s": {"type": ["number", "null"], "minimum": 0},
        "coordinator_id": {"type": ["string", "null"], "minLength": 1, "maxLength": COORDINATOR_ID_CHARS_MAX},
        "payload": {},
        "result": {},
        "results": {"type": ["object", "null"]},
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
