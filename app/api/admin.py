"""/v1/admin: hung transactions, and what an operator can do about them. Section 3 of docs/reference/protocol.md."""

from typing import Annotated, Final

from fastapi import APIRouter, Body, Path, Query, Request
from fastapi.responses import Response

from app.api import examples, openapi_links
from app.api.access import GuardedRoute, PrincipalOf, allows, asker_of, words_of
from app.api.bodies import known_id, read_cursor
from app.api.dependencies import PartsOf
from app.api.pagination import cursor_of
from app.api.problems import responses
from app.api.rendering import json_response, totals_json, transaction_for
from app.api.schemas import HungPage, HungQuery, ResolveRequest, TransactionBody, TransactionId
from app.auth.roles import READERS, Role
from app.protocol.messages import BranchResolved, RetryRequested
from app.protocol.values import Settled
from app.storage import queries

router = APIRouter(prefix="/v1/admin", tags=["admin"], route_class=GuardedRoute)

OPERATORS: Final = frozenset({Role.OPERATOR})


@router.get(
    "/hung",
    summary="List hung transactions",
    operation_id=openapi_links.LIST_HUNG,
    openapi_extra=allows(*READERS),
    response_model=HungPage,
    responses=openapi_links.with_links(
        {
            200: examples.answer("One page of hung transactions, and totals over all pages", examples.HUNG_PAGE),
            **responses("invalid", "unavailable"),
        },
        {200: openapi_links.to_next_page(openapi_links.LIST_HUNG) | openapi_links.to_transaction("/items/0")},
    ),
)
async def list_hung(parts: PartsOf, principal: PrincipalOf, query: Annotated[HungQuery, Query()]) -> Response:
    """List the transactions that need an operator's attention, oldest first.

    A decided transaction is hung when a participant refuses to confirm or cancel, or doesn't answer for too long; an
    undecided one when a Try stays unanswered often and for long. It is still retried. `totals` counts hung branches by
    participant and reason, over all pages.
    """
    hung_before = None if query.older_than_s is None else parts.clock() - query.older_than_s
    wanted = queries.HungFilter(participant=query.participant, name=query.name, hung_before=hung_before)
    since, after_id = read_cursor(query.cursor, float, str) if query.cursor is not None else (None, None)
    after = None if since is None else (since, after_id)
    page = await parts.journal.read(queries.list_hung, wanted, query.limit, after)
    totals = await parts.journal.read(queries.total_hung, wanted)
    next_cursor = page.next_after and cursor_of(*page.next_after)
    items = [transaction_for(principal, each) for each in page.transactions]
    return json_response({"items": items, "next_cursor": next_cursor, "totals": totals_json(totals)})


@router.post(
    "/transactions/{transaction_id}/retry",
    summary="Retry a transaction now",
    operation_id=openapi_links.RETRY,
    openapi_extra=allows(*OPERATORS),
    status_code=202,
    response_model=TransactionBody,
    responses={
        202: examples.answer("The calls have been started", examples.RETRIED),
        **responses("unknown-transaction", "already-finished", "invalid", "overloaded", "unavailable"),
    },
)
async def retry(transaction_id: TransactionId, request: Request, parts: PartsOf, principal: PrincipalOf) -> Response:
    """Make every outstanding call now instead of waiting for its next attempt, and reset the back-off.

    Safe at any time: participants recognise repeated calls. Use it after a participant has been repaired.
    """
    asker = asker_of(request, principal, OPERATORS)
    command = RetryRequested(by=words_of(asker, "operator"), asker=asker)
    transaction = await parts.coordinator.commands.carry_out(known_id(transaction_id), command)
    return json_response(transaction_for(principal, transaction), 202)


@router.post(
    "/transactions/{transaction_id}/branches/{branch}/resolve",
    summary="Resolve a branch by hand",
    operation_id=openapi_links.RESOLVE,
    openapi_extra=allows(*OPERATORS),
    response_model=TransactionBody,
    responses={
        200: examples.answer("The resolution is recorded", examples.RESOLVED),
        **responses(
            "unknown-transaction",
            "unknown-branch",
            "branch-finished",
            "not-decided",
            "nothing-to-send",
            "upgrade-unfinished",
            "malformed",
            "invalid",
            "payload-too-large",
            "overloaded",
            "unavailable",
        ),
    },
)
async def resolve(
    transaction_id: TransactionId,
    branch: Annotated[str, Path(description="the branch's name in the transaction", examples=["shipping"])],
    body: Annotated[ResolveRequest, Body(openapi_examples=examples.RESOLVE)],
    request: Request,
    parts: PartsOf,
    principal: PrincipalOf,
) -> Response:
    """Record that you have settled a branch by hand, how, and why.

    Use it when a participant can't be made to confirm or cancel. Holdfast doesn't call the branch again. If the
    resolution contradicts the decision, the transaction ends with the outcome `mixed`. An undecided transaction must be
    cancelled first; but of a pivot that was sent you may say what it did, which decides.

    With `send` the coordinator makes the call: instead of the ordinary one it sends Confirm for `confirmed`, or Cancel
    or the compensation for `cancelled`, until the participant answers 2xx, which resolves the branch. A 409 `already-…`
    changes nothing: the ordinary call goes on. `sending` shows it meanwhile.
    """
    asker = asker_of(request, principal, OPERATORS)
    command = BranchResolved(
        branch=branch,
        settled=Settled(body.settled),
        by=words_of(asker, "operator"),
        reason=body.reason,
        send=body.send,
        asker=asker,
    )
    if body.send:
        await parts.upgrade.require_finished()
    transaction = await parts.coordinator.commands.carry_out(known_id(transaction_id), command)
    return json_response(transaction_for(principal, transaction))
