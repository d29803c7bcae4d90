"""OpenAPI links: where what a route answers leads next. For readers of the document and for clients made from it.

Only documents; routes name each other by the operation ids that are here, so none can lead nowhere.
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

Links = Mapping[int | str, Mapping[str, Any]]


def with_links(responses: Mapping[int | str, dict[str, Any]], links: Links) -> dict[int | str, dict[str, Any]]:
    """What OpenAPI says of a route's answers, and by status where each of them leads."""
    assert links.keys() <= responses.keys(), "a link belongs to a documented answer"
    return {
        status: entry | ({"links": links[status]} if status in links else {}) for status, entry in responses.items()
    }


def to_transaction(at: str) -> dict[str, Any]:
    """To all that can be asked about a transaction, or done to it, which is at this JSON pointer in the answer."""
    transaction_id = f"$response.body#{at}/id"
    branch = {"transaction_id": transaction_id, "branch": f"$response.body#{at}/branches/0/name"}
    what = {
        GET: "Look at it again, or wait for its end with `Prefer: wait`.",
        LIST_CALLS: "See every call that was made for it.",
        GET_DECISION: "See what was decided.",
        CANCEL: "Abort it while it is undecided.",
        RETRY: "Make the calls that it waits for now.",
    }
    links = {name: _link(name, text, {"transaction_id": transaction_id}) for name, text in what.items()}
    return links | {RESOLVE: _link(RESOLVE, "Record that a person settled a branch by hand.", branch)}


def to_next_page(operation_id: str, *, of: str | None = None) -> dict[str, Any]:
    """To the page after this one; `of`: the path parameter that says whose page it is. The filters stay the same."""
    parameters = {"cursor": "$response.body#/next_cursor"} | ({of: f"$request.path.{of}"} if of else {})
    return {"nextPage": _link(operation_id, "The next page, while `next_cursor` is not null.", parameters)}


def to_participant(name: str) -> dict[str, Any]:
    """To what can be done with the participant whose name this expression finds."""
    branches = {"branches": [{"participant": f"{{{name}}}"}]}
    return {
        GET_PARTICIPANT: _link(GET_PARTICIPANT, "See how it is registered.", {"name": name}),
        DELETE_PARTICIPANT: _link(DELETE_PARTICIPANT, "Remove it when no transaction needs it.", {"name": name}),
        BEGIN: _link(BEGIN, "Begin a transaction with it.", {}) | {"requestBody": branches},
    }


def _link(operation_id: str, description: str, parameters: dict[str, str]) -> dict[str, Any]:
    return {"operationId": operation_id, "description": description, "parameters": parameters}
