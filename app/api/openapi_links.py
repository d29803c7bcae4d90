"""OpenAPI links from an answer to the operations that can follow it, for readers and for generated clients.

Documentation only. Routes refer to each other by the operation ids below, so that no link is dangling.
"""

from collections.abc import Mapping
from typing import Any, Final

BEGIN: Final = "beginTransaction"
GET: Final = "getTransaction"
LIST: Final = "listTransactions"
LIST_CALLS: Final = "listCalls"
GET_DECISION: Final = "getDecision"
CANCEL: Final = "cancelTransaction"
RETRY: Final = "retryTransaction"
RESOLVE: Final = "resolveBranch"
LIST_HUNG: Final = "listHung"
PUT_PARTICIPANT: Final = "putParticipant"
GET_PARTICIPANT: Final = "getParticipant"
DELETE_PARTICIPANT: Final = "deleteParticipant"
LIST_PARTICIPANTS: Final = "listParticipants"
CREATE_KEY: Final = "createKey"
LIST_KEYS: Final = "listKeys"
ROTATE_KEY: Final = "rotateKey"
REVOKE_KEY: Final = "revokeKey"
LIST_AUDIT: Final = "listAudit"
EXPORT_AUDIT: Final = "exportAudit"
ROTATE_SECRET: Final = "rotateSecret"  # noqa: S105 - a name

Links = Mapping[int | str, Mapping[str, Any]]


def with_links(responses: Mapping[int | str, dict[str, Any]], links: Links) -> dict[int | str, dict[str, Any]]:
    """The documented answers of a route, with the links that belong to each status."""
    assert links.keys() <= responses.keys(), "a link belongs to a documented answer"
    return {
        status: entry | ({"links": links[status]} if status in links else {}) for status, entry in responses.items()
    }


def to_transaction(at: str) -> dict[str, Any]:
    """Links to every operation on the transaction that is at this JSON pointer in the answer."""
    transaction_id = f"$response.body#{at}/id"
    branch = {"transaction_id": transaction_id, "branch": f"$response.body#{at}/branches/0/name"}
    what = {
        GET: "Get it again, or wait for its end with `Prefer: wait`.",
        LIST_CALLS: "List the calls that were made for it.",
        GET_DECISION: "Get the decision.",
        CANCEL: "Cancel it while it is undecided.",
        RETRY: "Make its outstanding calls now.",
    }
    links = {name: _link(name, text, {"transaction_id": transaction_id}) for name, text in what.items()}
    return links | {RESOLVE: _link(RESOLVE, "Record that you settled a branch by hand.", branch)}


def to_next_page(operation_id: str, *, of: str | None = None) -> dict[str, Any]:
    """A link to the next page with the same filters; `of` is the path parameter that says whose page it is."""
    parameters = {"cursor": "$response.body#/next_cursor"} | ({of: f"$request.path.{of}"} if of else {})
    return {"nextPage": _link(operation_id, "The next page, while `next_cursor` is not null.", parameters)}


def to_participant(name: str) -> dict[str, Any]:
    """Links to every operation on the participant whose name this expression finds."""
    branches = {"branches": [{"participant": f"{{{name}}}"}]}
    return {
        GET_PARTICIPANT: _link(GET_PARTICIPANT, "Get its registry entry.", {"name": name}),
        ROTATE_SECRET: _link(ROTATE_SECRET, "Give it a secret, with which its calls are signed.", {"name": name}),
        DELETE_PARTICIPANT: _link(DELETE_PARTICIPANT, "Remove it, if no transaction needs it.", {"name": name}),
        BEGIN: _link(BEGIN, "Begin a transaction with it.", {}) | {"requestBody": branches},
    }


def _link(operation_id: str, description: str, parameters: dict[str, str]) -> dict[str, Any]:
    return {"operationId": operation_id, "description": description, "parameters": parameters}
