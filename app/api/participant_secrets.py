"""/v1/admin/participants/{name}/secret: the secrets that sign calls. How-to: docs/how-to/sign-calls.md."""

from typing import Annotated, Final

from fastapi import APIRouter, Body, Request
from fastapi.responses import Response

from app.api import examples, openapi_links
from app.api.access import GuardedRoute, PrincipalOf, allows, asker_of
from app.api.dependencies import PartsOf
from app.api.participants import ADMINS, Name
from app.api.problems import Problem, responses
from app.api.rendering import json_response, rfc3339
from app.api.schemas import SecretBody, SecretRequest
from app.auth.audit_log import log_entry
from app.storage.audit import AuditEntry
from app.storage.encryption import NoKeyError

router = APIRouter(prefix="/v1/admin/participants", tags=["admin"], route_class=GuardedRoute)

_DEFAULTS: Final = SecretRequest()


@router.post(
    "/{name}/secret",
    summary="Create or rotate a participant's secret",
    operation_id=openapi_links.ROTATE_SECRET,
    openapi_extra=allows(*ADMINS),
    status_code=201,
    response_model=SecretBody,
    responses={
        201: examples.answer("The secret, which is shown this once", examples.FIRST_SECRET, examples.NEXT_SECRET),
        **responses(
            "participant-not-found",
            "secrets-key-missing",
            "upgrade-unfinished",
            "malformed",
            "invalid",
            "payload-too-large",
            "unavailable",
        ),
    },
)
async def rotate(
    name: Name,
    request: Request,
    parts: PartsOf,
    principal: PrincipalOf,
    body: Annotated[SecretRequest, Body(openapi_examples=examples.ROTATE)] = _DEFAULTS,
) -> Response:
    """Give the participant a new secret, with which its calls are signed from now on; by other replicas in a second.

    Calls are signed with the secret before it, too, for `previous_ttl_s` seconds. 0 ends all earlier ones at once.
    """
    await parts.upgrade.require_finished()
    now = parts.clock()
    asker = asker_of(request, principal, ADMINS)
    audited = AuditEntry(at=now, asker=asker, action="participant.rotate_secret", target=f"participants/{name}")
    try:
        made = await parts.registry.rotate_secret(name, previous_ttl_s=body.previous_ttl_s, now=now, audited=audited)
    except NoKeyError as error:
        raise Problem("secrets-key-missing") from error
    if made is None:
        raise Problem("participant-not-found")
    secret, previous_expires_at = made
    log_entry(audited)
    answer = {"secret": secret.text, "previous_expires_at": rfc3339(previous_expires_at)}
    return json_response(answer, 201, {"Cache-Control": "no-store"})
