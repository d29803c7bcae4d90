"""Errors as RFC 9457 problem documents. The catalogue below has every problem that the API can answer with.

`type` is /problems/<slug>, and the coordinator serves a short page there. Turns exceptions into answers; raises none.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from app.api.examples import PROBLEMS, ProblemExample
from app.api.rendering import to_json, transaction_json
from app.engine.errors import ForgottenTransactionError, ObjectedError, OverloadedError, UnknownTransactionError
from app.storage.errors import DatabaseUnavailableError, UnreadableRowError
from holdfast.wire import DETAIL_CHARS_MAX, printable

log = logging.getLogger(__name__)

MEDIA_TYPE: Final = "application/problem+json"
RETRY_AFTER_S: Final = 1
_FORGOTTEN: Final = (
    "There is no such transaction, but a restored backup may have forgotten it. This doesn't mean cancel: an operator "
    "settles the holds of that time, and then removes HOLDFAST_RESTORED_FROM."
)
_SCHEMA: Final = "#/components/schemas/ProblemDocument"
ERRORS_MAX: Final = 20
"""Maximum number of faults that an answer lists."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of problem: HTTP status, title, and what the client should do about it."""

    status: int
    title: str
    advice: str


CATALOGUE: Final[Mapping[str, Kind]] = {
    "malformed": Kind(
        400,
        "The request can't be read",
        "Send JSON with Content-Type: application/json, and check the form of the headers.",
    ),
    "invalid": Kind(422, "The request is not valid", "Correct what `errors` lists, and send it again."),
    "unknown-participant": Kind(
        422, "No such participant", "Register it with PUT /v1/participants/{name}, then send the request again."
    ),
    "endpoint-not-allowed": Kind(
        422,
        "The coordinator may not call this URL",
        "Use a URL that HOLDFAST_ALLOWED_ENDPOINTS admits, or add this one to it.",
    ),
    "wrong-kind": Kind(
        422,
        "The participant takes no branches of this kind",
        "Nothing was recorded. Use a kind that it takes, or register its kinds with PUT /v1/participants/{name}.",
    ),
    "participant-check-failed": Kind(
        422,
        "The participant isn't there",
        "Nothing was registered. Correct the base URL, or start the participant, and send the request again.",
    ),
    "secrets-key-missing": Kind(
        409,
        "The coordinator has no key to store secrets with",
        "Nothing was changed. `python -m app secrets generate-key` prints a key: set HOLDFAST_SECRETS_KEY or "
        "HOLDFAST_SECRETS_KEY_FILE to it on every replica, and restart.",
    ),
    "upgrade-unfinished": Kind(
        409,
        "Replicas of the version before may still run, and don't know this",
        "Nothing was changed. Once none of them runs, finish the upgrade with `python -m app migrate --finish`.",
    ),
    "payload-too-large": Kind(
        413,
        "The request body is too large",
        "A begin may be HOLDFAST_BODY_MAX_BYTES long, any other request 64 KiB. Send a smaller body.",
    ),
    "head-too-large": Kind(
        431, "The request has too many headers", "A head may have 100 headers and 32 KiB. Send fewer or shorter ones."
    ),
    "request-timeout": Kind(
        408,
        "The request didn't arrive in time",
        "The head must arrive within 10 seconds, and the body within 60 seconds more. Nothing was recorded.",
    ),
    "idempotency-key-conflict": Kind(
        409,
        "This idempotency key was used for another request",
        "To repeat that request, send the same body. For a new request, use a new key.",
    ),
    "transaction-cancelled": Kind(
        409, "The transaction was cancelled", "Nothing took effect. `transaction.reason` says why."
    ),
    "transaction-mixed": Kind(
        409,
        "A branch was resolved against the decision",
        "The `resolution` of each branch says who did it, when and why.",
    ),
    "already-decided": Kind(
        409, "The decision is final", "The transaction will be confirmed. To undo it, begin one that does the opposite."
    ),
    "pivot-sent": Kind(
        409,
        "The pivot was sent, and only its participant knows whether it happened",
        "Wait for its answer, or find out what it did, and resolve its branch.",
    ),
    "nothing-to-send": Kind(
        409,
        "There is no call that would do this",
        "A branch of this kind has none. Settle it at the participant, and resolve it without `send`.",
    ),
    "already-finished": Kind(409, "The transaction is finished", "There is nothing left to retry."),
    "not-decided": Kind(409, "The transaction is undecided", "Cancel it first with POST /v1/transactions/{id}/cancel."),
    "branch-finished": Kind(409, "The branch is finished", "There is nothing left to resolve."),
    "participant-in-use": Kind(
        409,
        "Unfinished transactions need this participant",
        "Wait until they have finished, or resolve their branches, and try again.",
    ),
    "unknown-transaction": Kind(
        404, "No such transaction", "Check the id. To a participant in doubt this means: cancel."
    ),
    "unknown-branch": Kind(
        404, "The transaction has no such branch", "Use the `name` of one of `transaction.branches`."
    ),
    "participant-not-found": Kind(
        404, "No participant is registered under this name", "GET /v1/participants lists the names."
    ),
    "not-found": Kind(404, "There is nothing at this path", "/docs lists every path."),
    "method-not-allowed": Kind(
        405, "This path doesn't support this method", "The `Allow` header lists the methods that it supports."
    ),
    "unauthenticated": Kind(
        401,
        "A valid API key is needed",
        "Send `Authorization: Bearer <key>`. An admin creates keys with POST /v1/admin/keys.",
    ),
    "forbidden": Kind(
        403, "This key may not do that", "Use a key that may, or ask an admin for one with the roles that it needs."
    ),
    "foreign-origin": Kind(
        403,
        "A page of another site sent this request",
        "Only the coordinator's own pages may use a browser for that. If this is one, set HOLDFAST_PUBLIC_URL.",
    ),
    "key-not-found": Kind(404, "There is no such API key, or it was revoked", "GET /v1/admin/keys lists the ids."),
    "rate-limited": Kind(
        429,
        "This key makes too many requests",
        "Nothing was recorded. Try again after `Retry-After` seconds. HOLDFAST_RATE_PER_KEY sets the limit.",
    ),
    "untrusted-host": Kind(
        421,
        "The coordinator isn't asked under this name",
        "Use a name that HOLDFAST_TRUSTED_HOSTS admits, or add this one to it. A proxy passes on its clients' Host.",
    ),
    "overloaded": Kind(
        503,
        "The coordinator is at capacity",
        "Nothing was recorded. Try again after `Retry-After` seconds.",
    ),
    "schema-outdated": Kind(
        503, "The schema of the database doesn't fit this version", "`detail` says whether to migrate or to upgrade."
    ),
    "unavailable": Kind(
        503, "The database is unavailable", "Try again after `Retry-After` seconds, with the same idempotency key."
    ),
    "internal-error": Kind(
        500, "The coordinator has a bug", "Its log has the details (`event=defect`); please report it."
    ),
}


class ProblemDocument(BaseModel):
    """An error, as RFC 9457 defines it. `type` is a path on this coordinator that explains the kind of problem.

    Further members depend on the type: `errors`, `participant`, `branch`, `transaction_id`, `transaction` or
    `coordinator_id`.
    """

    type: str
    title: str
    status: int
    detail: str = Field(description="what is wrong here, and what to do next")


class Problem(Exception):
    """Raised to answer with a problem; `members` are added to the document."""

    def __init__(
        self, slug: str, detail: str | None = None, *, headers: Mapping[str, str] | None = None, **members: Any
    ) -> None:
        super().__init__(slug)
        self.slug = slug
        self.detail = detail or CATALOGUE[slug].advice
        self.headers = dict(headers or {})
        self.members = members

    @property
    def document(self) -> dict[str, Any]:
        kind = CATALOGUE[self.slug]
        return {
            "type": f"/problems/{self.slug}",
            "title": kind.title,
            "status": kind.status,
            "detail": self.detail,
            **self.members,
        }

    def response(self) -> Response:
        status = CATALOGUE[self.slug].status
        if status in (429, 503):
            self.headers.setdefault("Retry-After", str(RETRY_AFTER_S))
        return Response(to_json(self.document), status, self.headers, MEDIA_TYPE)


def responses(*slugs: str) -> dict[int | str, dict[str, Any]]:
    """The problems that a route can answer with, for the OpenAPI document."""
    documented: dict[int | str, dict[str, Any]] = {}
    for slug in slugs:
        kind = CATALOGUE[slug]
        content = {MEDIA_TYPE: {"schema": {"$ref": _SCHEMA}, "examples": {}}}
        entry = documented.setdefault(kind.status, {"description": "", "content": content})
        entry["description"] = "; ".join(filter(None, [entry["description"], f"`{slug}`: {kind.title}"]))
        entry["content"][MEDIA_TYPE]["examples"][slug] = {"summary": kind.title, "value": _example(slug)}
    return documented


def _example(slug: str) -> dict[str, Any]:
    shown = PROBLEMS.get(slug, ProblemExample())
    return Problem(slug, shown.detail, **shown.members or {}).document


def install(app: FastAPI) -> None:
    """Answer every exception with a problem document, and serve a page about each kind."""
    app.add_exception_handler(Problem, _on_problem)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(OverloadedError, _on(Problem("overloaded")))
    app.add_exception_handler(
        ClientDisconnect, _on(Problem("malformed"))
    )  # in the middle of a body; nobody reads the answer
    app.add_exception_handler(UnknownTransactionError, _on(Problem("unknown-transaction")))
    app.add_exception_handler(ForgottenTransactionError, _on(Problem("unavailable", _FORGOTTEN)))
    app.add_exception_handler(ObjectedError, _on_objection)
    app.add_exception_handler(DatabaseUnavailableError, _on_database)
    app.add_exception_handler(UnreadableRowError, _on_unreadable)
    app.add_exception_handler(Exception, _on_defect)
    app.add_api_route("/problems/{slug}", _page, include_in_schema=False)


async def _page(slug: str) -> Response:
    kind = CATALOGUE.get(slug)
    if kind is None:
        raise Problem("not-found")
    return PlainTextResponse(f"{kind.title}\n\nHTTP {kind.status}, /problems/{slug}\n\n{kind.advice}\n")


def _on(problem: Problem) -> Any:
    async def handler(_request: Request, _error: Exception) -> Response:
        return problem.response()

    return handler


async def _on_problem(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return error.response()


async def _on_invalid(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    found = [
        {
            "at": "/".join(str(part) for part in each["loc"]),
            "message": printable(str(each["msg"]).removeprefix("Value error, ")),
        }
        for each in error.errors()[:ERRORS_MAX]
    ]
    if any(each["type"] == "json_invalid" or isinstance(each.get("input"), bytes) for each in error.errors()):
        return Problem("malformed", "Send JSON with Content-Type: application/json.", errors=found).response()
    first = found[0]
    return Problem("invalid", f"{first['at']}: {first['message']}"[:DETAIL_CHARS_MAX], errors=found).response()


async def _on_http(_request: Request, error: Exception) -> Response:
    """Errors that the framework raises: unknown paths, wrong methods, unreadable bodies."""
    assert isinstance(error, HTTPException)
    slugs = {404: "not-found", 405: "method-not-allowed", 413: "payload-too-large", 503: "overloaded"}
    slug = slugs.get(error.status_code, "malformed" if error.status_code < HTTPStatus.INTERNAL_SERVER_ERROR else "")
    return Problem(slug or "internal-error", headers=error.headers).response()


async def _on_objection(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ObjectedError)
    return Problem(error.reason.value, transaction=transaction_json(error.transaction)).response()


async def _on_database(_request: Request, error: Exception) -> Response:
    assert isinstance(error, DatabaseUnavailableError)
    log.warning("event=database_unavailable error=%s", error.kind)
    return Problem("unavailable").response()


async def _on_unreadable(_request: Request, error: Exception) -> Response:
    log.error("event=row_unreadable error=%s", error)
    return Problem(
        "unavailable", "This replica can't read the transaction's record. If another version wrote it, ask that one."
    ).response()


async def _on_defect(request: Request, error: Exception) -> Response:
    log.error("event=defect path=%s", request.url.path, exc_info=error)
    return Problem("internal-error").response()
