"""/v1/transactions: begin, list, get, wait, cancel. Section 3 of docs/reference/protocol.md."""

import asyncio
import hashlib
import logging
from collections.abc import Callable
from typing import Annotated, Final

from fastapi import APIRouter, Body, Header, Query, Request
from fastapi.responses import Response

from app.api import examples, openapi_links
from app.api.access import READ, GuardedRoute, Handler, PrincipalOf, allows, asker_of, words_of
from app.api.bodies import known_id, read_begin, read_cursor
from app.api.branch_order import order_fault
from app.api.dependencies import Parts, PartsOf
from app.api.pagination import cursor_of
from app.api.prefer_header import Preferences, parse_prefer
from app.api.problems import Problem, responses
from app.api.rendering import call_json, json_response, to_json, transaction_for, transaction_json
from app.api.request_headers import parse_idempotency_key, parse_traceparent
from app.api.schemas import (
    BeginRequest,
    BranchRequest,
    CallPage,
    CallsQuery,
    DecisionBody,
    TransactionBody,
    TransactionId,
    TransactionPage,
    TransactionsQuery,
)
from app.auth.roles import READERS, Principal, Role
from app.engine.errors import IdempotencyKeyConflictError, UnknownParticipantError, UnknownTransactionError
from app.protocol.messages import CancelRequested
from app.protocol.values import Outcome, Transaction
from app.storage import calls, queries
from app.storage.errors import DatabaseError
from app.storage.queries import StoredDecision
from holdfast.wire import Decision

log = logging.getLogger(__name__)

router = APIRouter(prefix="/v1/transactions", tags=["transactions"], route_class=GuardedRoute)

Prefer = Annotated[
    list[str],
    Header(
        description="`wait=<seconds>` limits the wait, `respond-async` doesn't wait (RFC 7240)", examples=[["wait=10"]]
    ),
]

LARGE_BYTES: Final = 65_536
"""A larger begin is read in a thread: looking through a megabyte of brackets takes a tenth of a second."""
COMMANDERS: Final = frozenset({Role.INITIATOR, Role.OPERATOR})
NOT_YOURS: Final = "The transaction is another owner's."
RECHECK_MIN_S: Final = 1.0
RECHECK_MAX_S: Final = 60.0
"""Bounds of `recheck_in_s`: when a participant in doubt is told to ask again."""

_AWAITED: Final[dict[str, Callable[[Transaction], bool]]] = {
    "end": lambda transaction: transaction.finished or transaction.is_delayed,
    "decision": lambda transaction: transaction.decision is not Decision.UNDECIDED,
    "record": lambda transaction: True,
}


class _BeginRoute(GuardedRoute):
    """Documented by its signature, but parsed by hand: FastAPI's generic parsing would double the cost of a begin."""

    def get_admitted_handler(self) -> Handler:
        async def handle(request: Request) -> Response:
            headers, body = request.headers, await request.body()
            if len(body) <= LARGE_BYTES:
                read = read_begin(body, headers.get("content-type"))
            else:
                read = await asyncio.to_thread(read_begin, body, headers.get("content-type"))
            key, trace = headers.get("idempotency-key"), headers.get("traceparent")
            parts, principal = request.app.state.parts, request.state.principal
            return await begin(read, request, parts, principal, headers.getlist("prefer"), key, trace)

        return handle


async def begin(
    body: Annotated[BeginRequest, Body(openapi_examples=examples.BEGIN)],
    request: Request,
    parts: PartsOf,
    principal: PrincipalOf,
    prefer: Prefer = [],  # noqa: B006 - never mutated
    idempotency_key: Annotated[
        str | None,
        Header(
            description="makes repeats safe: the same key with the same body returns the same transaction",
            examples=['"order-4711"'],
        ),
    ] = None,
    traceparent: Annotated[
        str | None,
        Header(
            description="a W3C trace context; participants are called in this trace",
            examples=["00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"],
        ),
    ] = None,
) -> Response:
    """Record a transaction, try every branch, and confirm all of them or cancel all of them.

    `answer_at` chooses what the request waits for: the `end` (the default), the `decision`, or only the `record`. It
    waits for the end no longer once the outcome is decided and a Confirm or Cancel has failed, because that may take
    long. `Prefer: wait=<seconds>` limits the wait. The transaction goes on without you.

    - **201**: confirmed
    - **202**: not finished yet; `phase` and `decision` say where it stands
    - **409** `transaction-cancelled`: cancelled; `transaction.reason` says why
    """
    preferences = parse_prefer(prefer)
    key = _key(idempotency_key)
    _check_rights(body, request, parts, principal)
    try:
        await _admit(body, parts)
    except Problem:
        if not await parts.coordinator.has_begun(key):
            raise  # otherwise this is a repeat, and was admitted at the time
    trace = parse_traceparent(traceparent)
    asked = body.begin(parts.settings, idempotency_key=key, traceparent=trace, owner=principal.owner)
    try:
        begun = await parts.coordinator.begin(asked)
    except IdempotencyKeyConflictError as conflict:
        if principal.owns(conflict.owner):
            raise Problem("idempotency-key-conflict", transaction_id=conflict.transaction_id) from conflict
        raise Problem("idempotency-key-conflict") from conflict
    except UnknownParticipantError as unknown:
        raise _unknown_participant(unknown.name) from unknown
    if not principal.owns(begun.owner):
        conflicting = Problem("idempotency-key-conflict")
        parts.gate.refuse(request, principal, "The idempotency key is another owner's.", problem=conflicting)
    answer_at, wait_s = _waiting(body.answer_at, preferences, parts.settings.wait_default_s)
    try:
        transaction = await parts.coordinator.wait(begun.id, _AWAITED[answer_at], wait_s)
    except DatabaseError as error:  # not 503, which would mean that nothing was recorded
        log.warning("event=wait_failed transaction_id=%s error=%s", begun.id, error.kind)
        transaction = begun
    location = f"{parts.settings.root_path}/v1/transactions/{transaction.id}"
    return _begun(transaction, location, answer_at, preferences)


router.add_api_route(
    "",
    begin,
    methods=["POST"],
    route_class_override=_BeginRoute,
    summary="Begin a transaction",
    operation_id=openapi_links.BEGIN,
    openapi_extra=allows(Role.INITIATOR),
    status_code=201,
    response_model=TransactionBody,
    responses=openapi_links.with_links(
        {
            201: examples.answer("Every branch is confirmed", examples.CONFIRMED),
            202: examples.answer(
                "Recorded, but not finished yet: see `phase` and `decision`", examples.TRYING, examples.CONFIRMING
            )
            | {"model": TransactionBody},
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
    summary="List transactions",
    operation_id=openapi_links.LIST,
    openapi_extra=READ,
    response_model=TransactionPage,
    responses=openapi_links.with_links(
        {
            200: examples.answer("One page of transactions", examples.TRANSACTIONS, examples.NO_TRANSACTIONS),
            **responses("invalid", "unavailable"),
        },
        {200: openapi_links.to_next_page(openapi_links.LIST) | openapi_links.to_transaction("/items/0")},
    ),
)
async def list_newest(parts: PartsOf, principal: PrincipalOf, query: Annotated[TransactionsQuery, Query()]) -> Response:
    """List transactions, newest first. Every filter that you give must match. An initiator sees its own.

    Follow `next_cursor` until it is null: a page may be short, or even empty, and not be the last.
    """
    before_id = read_cursor(query.cursor, str)[0] if query.cursor is not None else None
    owner = None if principal.roles & READERS else principal.owner
    wanted = queries.Filter(**query.model_dump(exclude={"limit", "cursor"}), owner=owner)
    page = await parts.journal.read(queries.list_newest, wanted, query.limit, before_id)
    items = [transaction_for(principal, each) for each in page.transactions]
    return json_response({"items": items, "next_cursor": page.next_after and cursor_of(*page.next_after)})


@router.get(
    "/{transaction_id}",
    summary="Get a transaction, or wait for its end",
    operation_id=openapi_links.GET,
    openapi_extra=READ,
    response_model=TransactionBody,
    responses={
        200: examples.answer("The transaction", examples.CONFIRMED, examples.CANCELLED, examples.HUNG),
        304: {"description": "The transaction still has the `ETag` that `If-None-Match` names"},
        **responses("unknown-transaction", "invalid", "unavailable"),
    },
)
async def get(
    transaction_id: TransactionId,
    request: Request,
    parts: PartsOf,
    principal: PrincipalOf,
    prefer: Prefer = [],  # noqa: B006
    if_none_match: Annotated[
        str | None, Header(description="the `ETag` of an earlier answer; answers 304 if nothing has changed")
    ] = None,
) -> Response:
    """Get a transaction as it stands now. With `Prefer: wait=<seconds>` the answer waits until it is finished."""
    preferences = parse_prefer(prefer)
    id_, wait_s = known_id(transaction_id), preferences.wait_s or 0.0
    transaction = await parts.coordinator.wait(
        id_, lambda each: each.finished or not principal.reads(each.owner), wait_s
    )
    if not principal.reads(transaction.owner):
        parts.gate.refuse(request, principal, NOT_YOURS)
    body = to_json(transaction_for(principal, transaction))
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {"ETag": etag} | Preferences(preferences.wait_s).applied
    known = {each.strip().removeprefix("W/") for each in (if_none_match or "").split(",")}
    if known & {etag, "*"}:
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type="application/json")


@router.get(
    "/{transaction_id}/calls",
    summary="List the calls made for a transaction",
    operation_id=openapi_links.LIST_CALLS,
    openapi_extra=READ,
    response_model=CallPage,
    responses=openapi_links.with_links(
        {
            200: examples.answer("One page of calls", examples.CALLS),
            **responses("unknown-transaction", "invalid", "unavailable"),
        },
        {200: openapi_links.to_next_page(openapi_links.LIST_CALLS, of="transaction_id")},
    ),
)
async def list_calls(
    transaction_id: TransactionId,
    request: Request,
    parts: PartsOf,
    principal: PrincipalOf,
    query: Annotated[CallsQuery, Query()],
) -> Response:
    """List every call to a participant that was made for the transaction, oldest first, with its answer."""
    after_id = read_cursor(query.cursor, int)[0] if query.cursor is not None else 0
    transaction_id = known_id(transaction_id)
    unsaved = parts.coordinator.runs.unsaved_calls(transaction_id)
    transaction = await parts.coordinator.find(transaction_id)
    if not principal.reads(transaction.owner):
        parts.gate.refuse(request, principal, NOT_YOURS)
    masked = not principal.reads_payloads(transaction.owner)
    found = await parts.journal.read(calls.list_calls, transaction_id, query.limit + 1, after_id)
    next_cursor = cursor_of(found[query.limit - 1][0]) if len(found) > query.limit else None
    made = [call for _, call in found[: query.limit]]
    if next_cursor is None:
        made += [call for call in unsaved if call not in made]
    return json_response({"items": [call_json(call, masked=masked) for call in made], "next_cursor": next_cursor})


@router.get(
    "/{transaction_id}/decision",
    summary="Get the decision (for participants in doubt)",
    operation_id=openapi_links.GET_DECISION,
    openapi_extra=allows(*READERS, Role.INITIATOR, Role.PARTICIPANT),
    response_model=DecisionBody,
    responses={
        200: examples.answer("What was durably decided", examples.DECIDED, examples.UNDECIDED),
        **responses("unknown-transaction", "invalid", "unavailable"),
    },
)
async def get_decision(
    transaction_id: TransactionId,
    request: Request,
    parts: PartsOf,
    principal: PrincipalOf,
    branch: Annotated[
        str | None, Query(description="the branch that asks; without it the transaction's decision", examples=["card"])
    ] = None,
) -> Response:
    """Tell a participant whose hold has run out what was decided, or when to ask again.

    404 `unknown-transaction` means: cancel. An `undecided` transaction is asked about again after `recheck_in_s`
    seconds. A branch that a decided transaction doesn't have is told `cancel`. Each answer, the 404 too, says which
    coordinator gives it: it concerns only holds whose Try had this `coordinator_id`, or none.
    """
    try:
        found = await parts.coordinator.find_decision(known_id(transaction_id), branch)
    except UnknownTransactionError as unknown:
        raise Problem("unknown-transaction", coordinator_id=parts.coordinator_id) from unknown
    if not _may_ask(principal, found):
        parts.gate.refuse(request, principal, "The decision is about another participant's branch.")
    return json_response(
        {
            "decision": found.decision,
            "recheck_in_s": _recheck_in_s(found.decision, found.deadline - parts.clock()),
            "finished": found.finished,
            "coordinator_id": parts.coordinator_id,
        }
    )


@router.post(
    "/{transaction_id}/cancel",
    summary="Cancel an undecided transaction",
    operation_id=openapi_links.CANCEL,
    openapi_extra=allows(*COMMANDERS),
    response_model=TransactionBody,
    responses={
        200: examples.answer("Cancel is decided", examples.CANCELLING),
        **responses("unknown-transaction", "already-decided", "pivot-sent", "invalid", "overloaded", "unavailable"),
    },
)
async def cancel(transaction_id: TransactionId, request: Request, parts: PartsOf, principal: PrincipalOf) -> Response:
    """Decide to cancel a transaction that is still undecided.

    The answer comes once the decision is durable; the participants' Cancels follow. Cancelling twice is safe. A
    transaction that is already decided to confirm answers 409, and so does one whose pivot was sent: only the pivot's
    participant knows what happened.
    """
    id_ = known_id(transaction_id)
    if Role.OPERATOR not in principal.roles and not principal.owns((await parts.coordinator.find(id_)).owner):
        parts.gate.refuse(request, principal, NOT_YOURS)
    asker = asker_of(request, principal, COMMANDERS)
    command = CancelRequested(detail="cancelled by request", by=words_of(asker, "initiator"), asker=asker)
    transaction = await parts.coordinator.commands.carry_out(id_, command)
    return json_response(transaction_for(principal, transaction))


def _check_rights(body: BeginRequest, request: Request, parts: Parts, principal: Principal) -> None:
    """Refuse branches that this key may not use."""
    for branch in body.branches:
        if branch.endpoints is not None and not principal.endpoints:
            parts.gate.refuse(request, principal, f"branch {branch.branch_name}: this key may not use endpoints.")
        elif branch.participant and not (
            principal.participants is None or branch.participant in principal.participants
        ):
            parts.gate.refuse(
                request, principal, f"branch {branch.branch_name}: this key may not use {branch.participant}."
            )


def _may_ask(principal: Principal, found: StoredDecision) -> bool:
    """A key that is a participant's alone asks about branches of that participant, or of none."""
    if principal.roles & READERS or Role.INITIATOR in principal.roles:
        return True
    return found.participant in (None, principal.participant)


def _key(header: str | None) -> str | None:
    try:
        return None if header is None else parse_idempotency_key(header)
    except ValueError as error:
        raise Problem("malformed", str(error)) from error


async def _admit(request: BeginRequest, parts: Parts) -> None:
    """Raise a Problem for what the limits, the registry or the allow-list forbid. Nothing has been recorded yet."""
    if fault := request.fault(parts.settings, parts.clock()):
        raise Problem("invalid", fault)
    if wrong := order_fault(request.branches, sequential=request.try_order == "sequential"):
        raise Problem("invalid", f"branch {wrong.branch}: {wrong.message}", branch=wrong.branch)
    for branch in request.branches:
        _admit_branch(branch, parts)
    if not request.is_plain:
        await parts.upgrade.require_finished()


def _admit_branch(branch: BranchRequest, parts: Parts) -> None:
    if branch.participant is not None:
        registered = parts.registry.get(branch.participant)
        if registered is None:
            raise _unknown_participant(branch.participant)
        if registered.kinds is not None and branch.kind not in registered.kinds:
            why = f"participant {registered.name} takes {' and '.join(registered.kinds)}, not {branch.kind}"
            raise Problem("wrong-kind", f"branch {branch.branch_name}: {why}", branch=branch.branch_name)
    if branch.endpoints is not None:
        for url in branch.endpoints.urls.values():
            if fault := parts.allowed.fault(url):
                raise Problem("endpoint-not-allowed", fault, branch=branch.branch_name)
            if name := parts.registry.under(url):
                why = f"{url} lies under the base URL of participant {name}, and calls to endpoints aren't signed"
                fault = f"{why}; name the participant instead"
                raise Problem("endpoint-not-allowed", fault, branch=branch.branch_name)


def _unknown_participant(name: str) -> Problem:
    return Problem(
        "unknown-participant",
        f"No participant {name!r} is registered. Register it with PUT /v1/participants/{name}.",
        participant=name,
    )


def _waiting(answer_at: str, preferences: Preferences, wait_default_s: float) -> tuple[str, float]:
    if preferences.wait_s is not None:
        return answer_at, preferences.wait_s
    return ("record", 0.0) if preferences.respond_async else (answer_at, wait_default_s)


def _begun(transaction: Transaction, location: str, answer_at: str, preferences: Preferences) -> Response:
    """201 if confirmed, 202 if not finished, 409 if cancelled, which no client can mistake for success."""
    body = transaction_json(transaction)
    headers = {"Location": location} | preferences.applied
    cancelled = transaction.decision is Decision.CANCEL
    if cancelled and (transaction.finished or answer_at != "end"):
        reason = transaction.reason
        detail = f"{reason.code}: {reason.branch or 'transaction'}: {reason.detail}" if reason else None
        raise Problem("transaction-cancelled", detail, headers=headers, transaction=body)
    if transaction.outcome is Outcome.MIXED:
        raise Problem("transaction-mixed", headers=headers, transaction=body)
    return json_response(body, 201 if transaction.finished else 202, headers)


def _recheck_in_s(decision: Decision, left_s: float) -> float:
    """When to ask again: once the deadline has passed, by which time there is a decision, within the bounds above."""
    return min(max(RECHECK_MIN_S, left_s), RECHECK_MAX_S) if decision is Decision.UNDECIDED else 0.0
