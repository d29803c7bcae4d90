"""/v1/admin/keys: API keys. docs/how-to/authentication.md."""

from typing import Annotated, Final

from fastapi import APIRouter, Body, Path, Request
from fastapi.responses import Response

from app.api import examples, openapi_links
from app.api.access import GuardedRoute, PrincipalOf, allows, asker_of
from app.api.dependencies import PartsOf
from app.api.problems import Problem, responses
from app.api.rendering import issued_json, json_response, key_json
from app.api.schemas import IssuedKeyBody, KeyPage, RotateRequest
from app.auth.key_request import KeyRequest
from app.auth.roles import Role

router = APIRouter(prefix="/v1/admin/keys", tags=["keys"], route_class=GuardedRoute)

ADMINS: Final = frozenset({Role.ADMIN})
NEVER_STORED: Final = {"Cache-Control": "no-store"}
KeyId = Annotated[str, Path(pattern=r"^[0-9A-Za-z]{12}$", description="the key's `id`", examples=[examples.KEY_ID])]


@router.post(
    "",
    summary="Create an API key",
    operation_id=openapi_links.CREATE_KEY,
    openapi_extra=allows(*ADMINS),
    status_code=201,
    response_model=IssuedKeyBody,
    responses={
        201: examples.answer("The key, which is shown this once", examples.KEY_ISSUED),
        **responses("malformed", "invalid", "payload-too-large", "unavailable"),
    },
)
async def create(
    body: Annotated[KeyRequest, Body(openapi_examples=examples.CREATE_KEY)],
    request: Request,
    parts: PartsOf,
    principal: PrincipalOf,
) -> Response:
    """Create a key for a service or a person. The answer shows it in full, this once; only a hash is stored."""
    try:
        issued = await parts.keys.create(body, asker_of(request, principal, ADMINS))
    except ValueError as error:
        raise Problem("invalid", str(error)) from error
    return json_response(issued_json(issued), 201, NEVER_STORED)


@router.get(
    "",
    summary="List API keys",
    operation_id=openapi_links.LIST_KEYS,
    openapi_extra=allows(*ADMINS),
    response_model=KeyPage,
    responses={200: examples.answer("Every key, the oldest first", examples.KEYS), **responses("unavailable")},
)
async def list_keys(parts: PartsOf) -> Response:
    """List every key, revoked ones too, with what it may do and when it was last used. Secrets aren't stored."""
    return json_response({"items": [key_json(each) for each in await parts.keys.list()]})


@router.post(
    "/{key_id}/rotate",
    summary="Replace the secret of an API key",
    operation_id=openapi_links.ROTATE_KEY,
    openapi_extra=allows(*ADMINS),
    response_model=IssuedKeyBody,
    responses={
        200: examples.answer("The key with its new secret, which is shown this once", examples.KEY_ISSUED),
        **responses("key-not-found", "malformed", "invalid", "payload-too-large", "unavailable"),
    },
)
async def rotate(
    key_id: KeyId,
    request: Request,
    parts: PartsOf,
    principal: PrincipalOf,
    body: Annotated[RotateRequest | None, Body(openapi_examples=examples.ROTATE_KEY)] = None,
) -> Response:
    """Replace a key's secret. The id, the name, the roles and the owner stay.

    The secret before ends at once, or `previous_ttl_s` seconds later: enough to hand out the new one without an outage.
    """
    previous_ttl_s = 0.0 if body is None else body.previous_ttl_s
    issued = await parts.keys.rotate(key_id, previous_ttl_s, asker_of(request, principal, ADMINS))
    if issued is None:
        raise Problem("key-not-found")
    parts.gate.authenticator.forget(key_id)
    return json_response(issued_json(issued), 200, NEVER_STORED)


@router.delete(
    "/{key_id}",
    summary="Revoke an API key",
    operation_id=openapi_links.REVOKE_KEY,
    openapi_extra=allows(*ADMINS),
    status_code=204,
    responses={204: {"description": "The key is revoked"}, **responses("key-not-found", "invalid", "unavailable")},
)
async def revoke(key_id: KeyId, request: Request, parts: PartsOf, principal: PrincipalOf) -> Response:
    """End a key for good. Other replicas refuse it within five seconds."""
    if not await parts.keys.revoke(key_id, asker_of(request, principal, ADMINS)):
        raise Problem("key-not-found")
    parts.gate.authenticator.forget(key_id)
    return Response(status_code=204)
