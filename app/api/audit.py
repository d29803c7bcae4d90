"""/v1/admin/audit: the record of who did what. Reads only: nothing changes it but its retention."""

from collections.abc import AsyncIterator
from typing import Annotated, Final

from fastapi import APIRouter, Query
from fastapi.responses import Response, StreamingResponse

from app.api import examples, openapi_links
from app.api.access import GuardedRoute, PrincipalOf, allows
from app.api.bodies import read_cursor
from app.api.dependencies import Parts, PartsOf
from app.api.pagination import cursor_of
from app.api.problems import responses
from app.api.rendering import audit_json, json_response, to_json
from app.api.schemas import AuditExportQuery, AuditPage, AuditQuery
from app.auth.roles import READERS, Principal, Role
from app.storage import audit
from app.storage.audit import AuditFilter

EXPORT_PAGE: Final = 500
"""Number of entries that an export reads at a time."""

router = APIRouter(prefix="/v1/admin/audit", tags=["admin"], route_class=GuardedRoute)


@router.get(
    "",
    summary="List who did what",
    operation_id=openapi_links.LIST_AUDIT,
    openapi_extra=allows(*READERS),
    response_model=AuditPage,
    responses=openapi_links.with_links(
        {
            200: examples.answer("One page of entries, newest first", examples.AUDIT),
            **responses("invalid", "unavailable"),
        },
        {200: openapi_links.to_next_page(openapi_links.LIST_AUDIT)},
    ),
)
async def list_audit(parts: PartsOf, principal: PrincipalOf, query: Annotated[AuditQuery, Query()]) -> Response:
    """List what was done, and what was refused, newest first. Every filter that you give must match.

    An entry is written in the same commit as what it tells of. Refusals are recorded once a minute for a key, or for an
    address without one.
    """
    before_id = read_cursor(query.cursor, str)[0] if query.cursor is not None else None
    found = await parts.journal.read(audit.list_entries, query.wanted, query.limit + 1, before_id)
    next_cursor = cursor_of(found[query.limit - 1].id) if len(found) > query.limit else None
    items = [audit_json(each, masked=_is_masked(principal)) for each in found[: query.limit]]
    return json_response({"items": items, "next_cursor": next_cursor})


@router.get(
    "/export",
    summary="Export who did what, as JSON lines",
    operation_id=openapi_links.EXPORT_AUDIT,
    openapi_extra=allows(*READERS),
    response_class=Response,
    responses={
        200: {
            "description": "One entry a line, newest first",
            "content": {"application/jsonl": {"examples": examples.named(examples.AUDIT_LINES)}},
        },
        **responses("invalid", "unavailable"),
    },
)
async def export_audit(parts: PartsOf, principal: PrincipalOf, query: Annotated[AuditExportQuery, Query()]) -> Response:
    """The same entries, all of them, one JSON object a line."""
    first = await parts.journal.read(audit.list_entries, query.wanted, EXPORT_PAGE, None)
    lines = _lines(parts, query.wanted, [*first], masked=_is_masked(principal))
    return StreamingResponse(lines, media_type="application/jsonl")


async def _lines(
    parts: Parts, wanted: AuditFilter, page: list[audit.StoredEntry], *, masked: bool
) -> AsyncIterator[bytes]:
    while page:
        yield b"".join(to_json(audit_json(each, masked=masked)) + b"\n" for each in page)
        page = await parts.journal.read(audit.list_entries, wanted, EXPORT_PAGE, page[-1].id)


def _is_masked(principal: Principal) -> bool:
    return Role.OPERATOR not in principal.roles and Role.ADMIN not in principal.roles
