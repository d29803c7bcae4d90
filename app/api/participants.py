"""/v1/participants: the registry. Section 3 of docs/reference/protocol.md."""

from typing import Annotated, Final

from fastapi import APIRouter, Body, Path, Query, Request
from fastapi.responses import Response

from app.api import examples, openapi_links
from app.api.access import GuardedRoute, PrincipalOf, allows, asker_of
from app.api.dependencies import Parts, PartsOf
from app.api.problems import Problem, responses
from app.api.rendering import json_response, participant_json
from app.api.schemas import ParticipantBody, ParticipantPage
from app.auth.audit_log import log_entry
from app.auth.roles import READERS, Principal, Role
from app.calling.registration import ParticipantName, RegistryBody
from app.storage.audit import AuditEntry
from app.storage.encryption import NoKeyError
from app.storage.participants import RegisteredParticipant
from holdfast.wire import Kind

router = APIRouter(prefix="/v1/participants", tags=["participants"], route_class=GuardedRoute)

ADMINS: Final = frozenset({Role.ADMIN})

Name = Annotated[ParticipantName, Path(description="the participant's name", examples=["inventory"])]


@router.get(
    "",
    summary="List registered participants",
    operation_id=openapi_links.LIST_PARTICIPANTS,
    openapi_extra=allows(*READERS, Role.INITIATOR),
    response_model=ParticipantPage,
    responses=openapi_links.with_links(
        {200: examples.answer("Every registered participant", examples.PARTICIPANTS), **responses("unavailable")},
        {200: openapi_links.to_participant("$response.body#/items/0/name")},
    ),
)
async def list_participants(parts: PartsOf) -> Response:
    """List every registered participant with its limits, ordered by name."""
    return json_response({"items": [participant_json(each) for each in parts.registry.all()]})


@router.get(
    "/{name}",
    summary="Get a participant",
    operation_id=openapi_links.GET_PARTICIPANT,
    openapi_extra=allows(*READERS, Role.INITIATOR),
    response_model=ParticipantBody,
    responses={
        200: examples.answer("The registry entry", examples.PARTICIPANT),
        **responses("participant-not-found", "invalid", "unavailable"),
    },
)
async def get(name: Name, parts: PartsOf) -> Response:
    """Where the coordinator calls a registered participant, and with which limits."""
    participant = parts.registry.get(name)
    if participant is None:
        raise Problem("participant-not-found")
    return json_response(participant_json(participant))


@router.put(
    "/{name}",
    summary="Register or replace a participant",
    operation_id=openapi_links.PUT_PARTICIPANT,
    openapi_extra=allows(*ADMINS),
    response_model=ParticipantBody,
    responses=openapi_links.with_links(
        {
            200: examples.answer("The entry was replaced", examples.PARTICIPANT),
            201: examples.answer("The participant is new", examples.PARTICIPANT) | {"model": ParticipantBody},
            **responses(
                "malformed",
                "invalid",
                "endpoint-not-allowed",
                "participant-check-failed",
                "secrets-key-missing",
                "upgrade-unfinished",
                "payload-too-large",
                "unavailable",
            ),
        },
        {status: openapi_links.to_participant("$request.path.name") for status in (200, 201)},
    ),
)
async def put(
    name: Name,
    body: Annotated[RegistryBody, Body(openapi_examples=examples.REGISTER)],
    request: Request,
    parts: PartsOf,
    principal: PrincipalOf,
    check: Annotated[bool, Query(description="register it only if the routes of its `kinds` are there now")] = False,
) -> Response:
    """Register a participant under a name that branches refer to, or replace its entry.

    The change applies from the next call on, to transactions in progress, too. The base URL must be among
    `HOLDFAST_ALLOWED_ENDPOINTS`. With `check=true` the coordinator first asks for the OPTIONS of its routes, which
    calls nothing, and a wrong prefix or a name that can't be found is 422 `participant-check-failed`.
    """
    if fault := parts.allowed.base_fault(body.base_url):
        raise Problem("endpoint-not-allowed", fault)
    timeout_s = body.call_timeout_s or parts.settings.call_timeout_s
    if check and (faults := await parts.caller.route_faults(body.base_url, body.kinds or [Kind.TCC], timeout_s)):
        raise Problem(
            "participant-check-failed",
            f"{faults[0][0]}: {faults[0][1]}",
            errors=[{"at": operation, "message": fault} for operation, fault in faults],
        )
    if body.headers or body.kinds:
        await parts.upgrade.require_finished()
    participant = RegisteredParticipant(name=name, **body.members)
    audited = _entry("participant.put", name, request, parts, principal)
    try:
        is_new = await parts.registry.put(participant, audited, body.header_values)
    except NoKeyError as error:
        raise Problem("secrets-key-missing") from error
    log_entry(audited)
    return json_response(participant_json(participant), 201 if is_new else 200)


@router.delete(
    "/{name}",
    summary="Remove a participant",
    operation_id=openapi_links.DELETE_PARTICIPANT,
    openapi_extra=allows(*ADMINS),
    status_code=204,
    responses={
        204: {"description": "The participant is removed"},
        **responses("participant-not-found", "participant-in-use", "invalid", "unavailable"),
    },
)
async def delete(name: Name, request: Request, parts: PartsOf, principal: PrincipalOf) -> Response:
    """Remove a participant from the registry. Refused while an unfinished transaction needs it."""
    audited = _entry("participant.delete", name, request, parts, principal)
    deleted = await parts.registry.delete(name, audited)
    if deleted is None:
        raise Problem("participant-not-found")
    if not deleted:
        raise Problem("participant-in-use")
    log_entry(audited)
    return Response(status_code=204)


def _entry(action: str, name: str, request: Request, parts: Parts, principal: Principal) -> AuditEntry:
    asker = asker_of(request, principal, ADMINS)
    return AuditEntry(at=parts.clock(), asker=asker, action=action, target=f"participants/{name}")
