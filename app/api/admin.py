"""/v1/admin: what hangs, and what a person can do about it. Section 3 of docs/protocol.md."""

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from app.api import openapi_links
from app.api.bodies import known_id, read_cursor
from app.api.dependencies import PartsOf
from app.api.pagination import cursor_of
from app.api.problems import responses
from app.api.rendering import json_response, totals_json, transaction_json
from app.api.schemas import HungPage, HungQuery, ResolveRequest, TransactionBody
from app.protocol.messages import BranchResolved, RetryRequested
from app.protocol.values import Settled
from app.storage import queries

router = APIRouter(prefix="/v1/admin", tags=["admin"])


@router.get(
    "/hung",
    operation_id=openapi_links.LIST_HUNG,
    response_model=HungPage,
    responses=openapi_links.with_links(
        {200: {"description": "A page"}, **responses("invalid", "unavailable")},
        {200: openapi_links.to_next_page(openapi_links.LIST_HUNG) | openapi_links.to_transaction("/items/0")},
    ),
)
async def list_hung(parts: PartsOf, query: Annotated[HungQuery, Query()]) -> Response:
    """Hung transactions, oldest first, and how many branches hang by participant and reason."""
    hung_before = None if query.older_than_s is None else parts.clock() - query.older_than_s
    wanted = queries.HungFilter(participant=query.participant, name=query.name, hung_before=hung_before)
    since, after_id = read_cursor(query.cursor, float, str) if query.cursor is not None else (None, None)
    after = None if since is None else (since, after_id)
    page = await parts.journal.read(queries.list_hung, wanted, query.limit, after)
    totals = await parts.journal.read(queries.total_hung, wanted)
    next_cursor = page.next_after and cursor_of(*page.next_after)
    items = [transaction_json(each) for each in page.transactions]
    return json_response({"items": items, "next_cursor": next_cursor, "totals": totals_json(totals)})


@router.post(
    "/transactions/{transaction_id}/retry",
    operation_id=openapi_links.RETRY,
    status_code=202,
    response_model=TransactionBody,
    responses=responses("unknown-transaction", "already-finished", "invalid", "overloaded", "unavailable"),
)
async def retry(transaction_id: str, parts: PartsOf) -> Response:
    """Make every call that waits now, and start the back-off over."""
    transaction = await parts.coordinator.command(known_id(transaction_id), RetryRequested())
    return json_response(transaction_json(transaction), 202)


@router.post(
    "/transactions/{transaction_id}/branches/{branch}/resolve",
    operation_id=openapi_links.RESOLVE,
    response_model=TransactionBody,
    responses=responses(
        "unknown-transaction",
        "unknown-branch",
        "branch-finished",
        "not-decided",
        "malformed",
        "invalid",
        "payload-too-large",
        "overloaded",
        "unavailable",
    ),
)
async def resolve(transaction_id: str, branch: str, body: ResolveRequest, request: Request, parts: PartsOf) -> Response:
    """Record that a person settled this branch by hand, as what and why; it is called no more."""
    command = BranchResolved(
        branch=branch,
        settled=Settled(body.settled),
        by=f"operator at {request.client.host if request.client else 'unknown'}",
        reason=body.reason,
    )
    return json_response(transaction_json(await parts.coordinator.command(known_id(transaction_id), command)))
