"""/v1/participants: the registry. Section 3 of docs/protocol.md."""

from typing import Annotated

from fastapi import APIRouter, Path
from fastapi.responses import Response

from app.api import openapi_links
from app.api.dependencies import PartsOf
from app.api.problems import Problem, responses
from app.api.rendering import json_response, participant_json
from app.api.schemas import ParticipantBody, ParticipantPage
from app.calling.registration import ParticipantName, RegistryBody
from app.storage.participants import RegisteredParticipant

router = APIRouter(prefix="/v1/participants", tags=["participants"])

Name = Annotated[ParticipantName, Path()]


@router.get(
    "",
    operation_id=openapi_links.LIST_PARTICIPANTS,
    response_model=ParticipantPage,
    responses=openapi_links.with_links(
        {200: {"description": "All of them"}, **responses("unavailable")},
        {200: openapi_links.to_participant("$response.body#/items/0/name")},
    ),
)
async def list_participants(parts: PartsOf) -> Response:
    """Every registered participant, by name."""
    return json_response({"items": [participant_json(each) for each in parts.registry.all()]})


@router.get(
    "/{name}",
    operation_id=openapi_links.GET_PARTICIPANT,
    response_model=ParticipantBody,
    responses=responses("participant-not-found", "invalid", "unavailable"),
)
async def get(name: Name, parts: PartsOf) -> Response:
    """One registered participant."""
    participant = parts.registry.get(name)
    if participant is None:
        raise Problem("participant-not-found")
    return json_response(participant_json(participant))


@router.put(
    "/{name}",
    operation_id=openapi_links.PUT_PARTICIPANT,
    response_model=ParticipantBody,
    responses=openapi_links.with_links(
        {
            200: {"description": "Replaced"},
            201: {"description": "Registered", "model": ParticipantBody},
            **responses("malformed", "invalid", "endpoint-not-allowed", "payload-too-large", "unavailable"),
        },
        {status: openapi_links.to_participant("$request.path.name") for status in (200, 201)},
    ),
)
async def put(name: Name, body: RegistryBody, parts: PartsOf) -> Response:
    """Register a participant, or say where it is now: transactions under way call it there from the next call on."""
    if fault := parts.allowed.base_fault(body.base_url):
        raise Problem("endpoint-not-allowed", fault)
    participant = RegisteredParticipant(name=name, **body.model_dump())
    is_new = await parts.registry.put(participant)
    return json_response(participant_json(participant), 201 if is_new else 200)


@router.delete(
    "/{name}",
    operation_id=openapi_links.DELETE_PARTICIPANT,
    status_code=204,
    responses=responses("participant-not-found", "participant-in-use", "invalid", "unavailable"),
)
async def delete(name: Name, parts: PartsOf) -> Response:
    """Remove a participant that no unfinished transaction needs."""
    deleted = await parts.registry.delete(name)
    if deleted is None:
        raise Problem("participant-not-found")
    if not deleted:
        raise Problem("participant-in-use")
    return Response(status_code=204)
