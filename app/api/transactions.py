"""/v1/transactions: begin, look, wait, cancel. Section 3 of docs/protocol.md."""

import hashlib
import logging
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from pydantic_core import to_json

from app.api import openapi_links
from app.api.bodies import known_id, read_body, read_cursor
from app.api.dependencies import Parts, PartsOf
from app.api.pagination import cursor_of
from app.api.prefer_header import Preferences, parse_prefer
from app.api.problems import Problem, responses
from app.api.rendering import call_json, json_response, transaction_json
from app.api.request_headers import parse_idempotency_key, parse_traceparent
from app.api.schemas import (
    BeginRequest,
    BranchRequest,
    CallPage,
    CallsQuery,
    DecisionBody,
    TransactionBody,
    TransactionPage,
    TransactionsQuery,
)
from app.engine.coordinator import IdempotencyKeyConflictError, UnknownTransactionError
from app.protocol.messages import CancelRequested
from app.protocol.values import Outcome, Transaction
from app.storage import calls, queries
from app.storage.errors import DatabaseError
from holdfast.wire import Decision

log = logging.getLogger(__name__)

router = APIRouter(prefix="/v1/transactions", tags=["transactions"])

Prefer = Annotated[
    list[str], Header(description="`wait=<s>`: how long to wait at the most; `respond-async`: not at all (RFC 7240)")
]

RECHECK_MIN_S: Final = 1.0
RECHECK_MAX_S: Final = 60.0
"""A participant in doubt is told to come back no sooner and no later, in seconds from now."""

_AWAITED: Final[dict[str, Callable[[Transaction], bool]]] = {
    "end": lambda transaction: transaction.finished,
    "decision": lambda transaction: transaction.decision is not Decision.UNDECIDED,
    "record": lambda transaction: True,
}


class _BeginRoute(APIRoute):
    """Documented as declared, but read by hand: what FastAPI does for any signature costs as much as the rest."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        async def handle(request: Request) -> Response:
            headers = request.headers
            body = read_body(BeginRequest, await request.body(), headers.get("content-type"))
            key, trace = headers.get("idempotency-key"), headers.get("traceparent")
            return await begin(body, request.app.state.parts, headers.getlist("prefer"), key, trace)

        return handle


async def begin(
    request: BeginRequest,
    parts: PartsOf,
    prefer: Prefer = [],  # noqa: B006 - nobody changes it
    idempotency_key: Annotated[str | None, Header(description="the same key and body: the same transaction")] = None,
    traceparent: Annotated[str | None, Header(description="participants are called in this trace")] = None,
) -> Response:
    """Begin a transaction, and wait for what `answer_at` and `Prefer` say."""
    preferences = parse_prefer(prefer)
    key = _key(idempotency_key)
    try:
        _admit(request, parts)
    except Problem:
        if not await parts.coordinator.has_begun(key):
            raise  # else it has begun, under what was registered and allowed then
    asked = request.begin(parts.settings, idempotency_key=key, traceparent=parse_traceparent(traceparent))
    try:
        begun = await parts.coordinator.begin(asked)
    except IdempotencyKeyConflictError as conflict:
        raise Problem("idempotency-key-conflict", transaction_id=conflict.transaction_id) from conflict
    answer_at, wait_s = _waiting(request.answer_at, preferences, parts.settings.wait_default_s)
    try:
        transaction = await parts.coordinator.wait(begun.id, _AWAITED[answer_at], wait_s)
    except DatabaseError as error:  # a 503 would say that nothing was recorded
        log.warning("event=wait_failed transaction_id=%s error=%s", begun.id, error.kind)
        transaction = begun
    return _begun(transaction, answer_at, preferences)


router.add_api_route(
    "",
    begin,
    methods=["POST"],
    route_class_override=_BeginRoute,
    operation_id=openapi_links.BEGIN,
    status_code=201,
    response_model=TransactionBody,
    responses=openapi_links.with_links(
        {
            201: {"description": "Confirmed"},
            202: {
                "description": "Recorded, not finished yet: look at `phase` and `decision`",
                "model": TransactionBody,
            },
            **responses(
                "malformed",
                "invalid",
                "unknown-participant",
                "endpoint-not-allowed",
                "payload-too-large",
                "idempotency-key-conflict",
                "transaction-cancelled",
                "transaction-mixed",
                "overloaded",
                "unavailable",
            ),
        },
        {
            201: openapi_links.to_transaction(""),
            202: openapi_links.to_transaction(""),
            409: openapi_links.to_transaction("/transaction"),
        },
    ),
)


@router.get(
    "",
    operation_id=openapi_links.LIST,
    response_model=TransactionPage,
    responses=openapi_links.with_links(
        {200: {"description": "A page"}, **responses("invalid", "unavailable")},
        {200: openapi_links.to_next_page(openapi_links.LIST) | openapi_links.to_transaction("/items/0")},
    ),
)
async def list_newest(parts: PartsOf, query: Annotated[TransactionsQuery, Query()]) -> Response:
    """Transactions, newest first."""
    before_id = read_cursor(query.cursor, str)[0] if query.cursor is not None else None
    wanted = queries.Filter(**query.model_dump(exclude={"limit", "cursor"}))
    page = await parts.journal.read(queries.list_newest, wanted, query.limit, before_id)
    items = [transaction_json(each) for each in page.transactions]
    return json_response({"items": items, "next_cursor": page.next_after and cursor_of(*page.next_after)})


@router.get(
    "/{transaction_id}",
    operation_id=openapi_links.GET,
    response_model=TransactionBody,
    responses={304: {"description": "Not modified"}, **responses("unknown-transaction", "invalid", "unavailable")},
)
async def get(
    transaction_id: str,
    parts: PartsOf,
    prefer: Prefer = [],  # noqa: B006
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """The transaction as it stands, or at its end when `Prefer: wait` gives it the time."""
    preferences = parse_prefer(prefer)
    wait_s = preferences.wait_s or 0.0
    transaction = await parts.coordinator.wait(known_id(transaction_id), _AWAITED["end"], wait_s)
    body = to_json(transaction_json(transaction))
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {"ETag": etag} | Preferences(preferences.wait_s).applied
    known = {each.strip().removeprefix("W/") for each in (if_none_match or "").split(",")}
    if known & {etag, "*"}:
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type="application/json")


@router.get(
    "/{transaction_id}/calls",
    operation_id=openapi_links.LIST_CALLS,
    response_model=CallPage,
    responses=openapi_links.with_links(
        {200: {"description": "A page"}, **responses("unknown-transaction", "invalid", "unavailable")},
        {200: openapi_links.to_next_page(openapi_links.LIST_CALLS, of="transaction_id")},
    ),
)
async def list_calls(transaction_id: str, parts: PartsOf, query: Annotated[CallsQuery, Query()]) -> Response:
    """Every call that was made for the transaction, oldest first."""
    after_id = read_cursor(query.cursor, int)[0] if query.cursor is not None else 0
    transaction_id = known_id(transaction_id)
    unsaved = parts.coordinator.unsaved_calls(transaction_id)
    await parts.coordinator.find(transaction_id)
    found = await parts.journal.read(calls.list_calls, transaction_id, query.limit + 1, after_id)
    next_cursor = cursor_of(found[query.limit - 1][0]) if len(found) > query.limit else None
    made = [call for _, call in found[: query.limit]]
    if next_cursor is None:
        made += [call for call in unsaved if call not in made]
    return json_response({"items": [call_json(call) for call in made], "next_cursor": next_cursor})


@router.get(
    "/{transaction_id}/decision",
    operation_id=openapi_links.GET_DECISION,
    response_model=DecisionBody,
    responses=responses("unknown-transaction", "invalid", "unavailable"),
)
async def get_decision(transaction_id: str, parts: PartsOf) -> Response:
    """For participants in doubt: what was durably decided, or when to ask again. Unknown means cancel."""
    found = await parts.journal.read(queries.find_decision, known_id(transaction_id))
    if found is None:
        raise UnknownTransactionError(transaction_id)
    decision, deadline = found
    return json_response({"decision": decision, "recheck_in_s": _recheck_in_s(decision, deadline - parts.clock())})


@router.post(
    "/{transaction_id}/cancel",
    operation_id=openapi_links.CANCEL,
    response_model=TransactionBody,
    responses=responses("unknown-transaction", "already-decided", "invalid", "overloaded", "unavailable"),
)
async def cancel(transaction_id: str, parts: PartsOf) -> Response:
    """Abort what is undecided; answered once the decision is durable, before the Cancels are carried out."""
    command = CancelRequested(detail="cancelled by request")
    return json_response(transaction_json(await parts.coordinator.command(known_id(transaction_id), command)))


def _key(header: str | None) -> str | None:
    try:
        return None if header is None else parse_idempotency_key(header)
    except ValueError as error:
        raise Problem("malformed", str(error)) from error


def _admit(request: BeginRequest, parts: Parts) -> None:
    """Refuse what this coordinator's limits, registry or allow-list forbid; nothing has been recorded yet."""
    if fault := request.fault(parts.settings):
        raise Problem("invalid", fault)
    for branch in request.branches:
        _admit_branch(branch, parts)


def _admit_branch(branch: BranchRequest, parts: Parts) -> None:
    if branch.participant is not None and parts.registry.get(branch.participant) is None:
        raise Problem(
            "unknown-participant",
            f"No participant {branch.participant!r} is registered; PUT /v1/participants/{branch.participant} does it.",
            participant=branch.participant,
        )
    if branch.endpoints is not None:
        for url in (branch.endpoints.try_url, branch.endpoints.confirm_url, branch.endpoints.cancel_url):
            if fault := parts.allowed.fault(url):
                raise Problem("endpoint-not-allowed", fault, branch=branch.branch_name)


def _waiting(answer_at: str, preferences: Preferences, wait_default_s: float) -> tuple[str, float]:
    if preferences.wait_s is not None:
        return answer_at, preferences.wait_s
    return ("record", 0.0) if preferences.respond_async else (answer_at, wait_default_s)


def _begun(transaction: Transaction, answer_at: str, preferences: Preferences) -> Response:
    """201 confirmed, 202 not yet, 409 cancelled: a careless client must not take the last for a success."""
    body = transaction_json(transaction)
    headers = {"Location": f"/v1/transactions/{transaction.id}"} | preferences.applied
    cancelled = transaction.decision is Decision.CANCEL
    if cancelled and (transaction.finished or answer_at != "end"):
        reason = transaction.reason
        detail = f"{reason.code}: {reason.branch or 'transaction'}: {reason.detail}" if reason else None
        raise Problem("transaction-cancelled", detail, headers=headers, transaction=body)
    if transaction.outcome is Outcome.MIXED:
        raise Problem("transaction-mixed", headers=headers, transaction=body)
    return json_response(body, 201 if transaction.finished else 202, headers)


def _recheck_in_s(decision: Decision, left_s: float) -> float:
    """When asking again is worth it: after the deadline, by which it will have been decided, or before by request."""
    return min(max(RECHECK_MIN_S, left_s), RECHECK_MAX_S) if decision is Decision.UNDECIDED else 0.0
