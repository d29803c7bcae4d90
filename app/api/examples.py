"""Examples for the OpenAPI document: requests that you can send, and the answers to them.

Data only. They fit the services that `make run` starts, but for the branch that is given by URLs.
tests/api/test_examples.py sends every request to a real application, and checks every answer against its schema.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from app.api.pagination import cursor_of

Json = dict[str, Any]

TRANSACTION_ID: Final = "0199b2c4-5e11-7c3a-9f60-2b8d1e47a905"
NEXT_CURSOR: Final = cursor_of(TRANSACTION_ID)


@dataclass(frozen=True, slots=True)
class Example:
    """One example: what it shows, in a few words, and its value."""

    summary: str
    value: Any


def named(*shown: Example) -> dict[str, Any]:
    """The examples in OpenAPI's form, each under a name made from its summary."""
    return {"-".join(each.summary.lower().split()): {"summary": each.summary, "value": each.value} for each in shown}


def answer(description: str, *shown: Example) -> Json:
    """A JSON answer for the OpenAPI document; its schema comes from the route's model."""
    return {"description": description, "content": {"application/json": {"examples": named(*shown)}}}


# --- requests --------------------------------------------------------------------------------------------------------

_INVENTORY: Final = {"participant": "inventory", "payload": {"sku": "A-1", "quantity": 2}}
_PAYMENT: Final = {"participant": "payment", "payload": {"customer": "ada", "amount_cents": 5000}}
_SHIPPING: Final = {"participant": "shipping", "payload": {"day": "monday", "parcels": 2}}

BEGIN: Final = named(
    Example(
        "Three registered participants",
        {"name": "place-order", "reference": "order-4711", "branches": [_INVENTORY, _PAYMENT, _SHIPPING]},
    ),
    Example(
        "Answer as soon as it is decided",
        {
            "name": "place-order",
            "reference": "order-4712",
            "timeout_s": 10,
            "answer_at": "decision",
            "branches": [_INVENTORY, _PAYMENT],
        },
    ),
    Example(
        "A branch given by URLs, tried last",
        {
            "name": "pay-by-card",
            "try_order": "sequential",
            "branches": [
                _INVENTORY,
                {
                    "name": "card",
                    "endpoints": {
                        "try": "http://127.0.0.1:9000/auth",
                        "confirm": "http://127.0.0.1:9000/capture",
                        "cancel": "http://127.0.0.1:9000/void",
                    },
                    "call_timeout_s": 20,
                    "payload": {"amount": "50.00"},
                },
            ],
        },
    ),
    Example(
        "A saga with a pivot, undone in reverse",
        {
            "name": "order-saga",
            "try_order": "sequential",
            "undo": "reverse",
            "branches": [
                {"name": "reserve", "participant": "inventory", "kind": "compensable", "payload": {"sku": "A-1"}},
                {"name": "charge", "participant": "payment", "kind": "pivot", "payload": {"amount": "50.00"}},
                {"name": "send-parcel", "participant": "shipping", "kind": "retryable"},
            ],
        },
    ),
    Example(
        "Branches that wait for others, and get their results",
        {
            "branches": [
                {"name": "stock", "participant": "inventory", "kind": "check", "payload": {"sku": "A-1"}},
                {"name": "payment", "participant": "payment", "after": ["stock"], "payload": {"amount": "50.00"}},
            ],
        },
    ),
)
REGISTER: Final = named(
    Example("With the kinds that it takes", {"base_url": "http://127.0.0.1:8001/saga", "kinds": ["compensable"]}),
    Example("Where it is", {"base_url": "http://127.0.0.1:8001/tcc"}),
    Example(
        "With limits of its own", {"base_url": "http://127.0.0.1:8001/tcc", "call_timeout_s": 2, "concurrency_max": 16}
    ),
    Example(
        "Behind a gateway that wants credentials",
        {"base_url": "http://127.0.0.1:8001/tcc", "headers": {"Authorization": "Bearer of-a-gateway"}},
    ),
)
CREATE_KEY: Final = named(
    Example(
        "For a service that begins transactions",
        {
            "name": "order-service",
            "roles": ["initiator"],
            "owner": "orders",
            "participants": ["inventory", "payment", "shipping"],
        },
    ),
    Example(
        "For a participant that asks for decisions",
        {"name": "inventory", "roles": ["participant"], "participant": "inventory"},
    ),
    Example("For a person on call", {"name": "ada", "roles": ["operator"], "expires_at": "2031-01-01T00:00:00Z"}),
)
ROTATE_KEY: Final = named(
    Example("The secret before ends at once", {}),
    Example("It stays valid for an hour", {"previous_ttl_s": 3600}),
)
ROTATE: Final = named(
    Example("The earlier secret stays valid for a day", {}),
    Example("The earlier secret was stolen and ends at once", {"previous_ttl_s": 0}),
)
RESOLVE: Final = named(
    Example("It was done", {"as": "confirmed", "reason": "shipped by hand, waybill 2291; confirmed with the carrier"}),
    Example("It was undone", {"as": "cancelled", "reason": "the carrier lost the booking; ticket OPS-118"}),
)


# --- answers ---------------------------------------------------------------------------------------------------------


def _branch(requested: Mapping[str, Any], phase: str, attempts: tuple[int, int, int], **changes: Any) -> Json:
    branch = {
        "name": requested["participant"],
        "participant": requested["participant"],
        "kind": "tcc",
        "after": [],
        "endpoints": None,
        "call_timeout_s": None,
        "phase": phase,
        "payload": requested["payload"],
        "result": {"hold_id": f"{requested['participant']}-83"},
        "attempts": dict(zip(("try", "confirm", "cancel"), attempts, strict=True)),
        "last_error": None,
        "hung_reason": None,
        "next_attempt_at": None,
        "resolution": None,
        "sending": None,
    }
    return branch | changes


def _transaction(phase: str, decision: str, branches: list[Json], **changes: Any) -> Json:
    finished = phase in ("confirmed", "cancelled")
    transaction = {
        "id": TRANSACTION_ID,
        "name": "place-order",
        "reference": "order-4711",
        "phase": phase,
        "decision": decision,
        "outcome": phase if finished else None,
        "reason": None,
        "hung": False,
        "hung_since": None,
        "hung_reason": None,
        "try_order": "parallel",
        "undo": "parallel",
        "created_at": "2026-03-02T09:15:04.113402Z",
        "deadline": "2026-03-02T09:15:34.113402Z",
        "decided_at": "2026-03-02T09:15:04.158090Z",
        "finished_at": "2026-03-02T09:15:04.201775Z" if finished else None,
        "next_attempt_at": None,
        "owner": None,
        "branches": branches,
        "masked": False,
    }
    return transaction | changes


_CONFIRMED_BRANCHES: Final = [_branch(each, "confirmed", (1, 1, 0)) for each in (_INVENTORY, _PAYMENT)]
_REFUSAL: Final = {"code": "refused", "branch": "payment", "detail": "insufficient funds"}
_RETRY_AT: Final = "2026-03-02T09:18:11.640218Z"
_STUCK: Final = _branch(
    _SHIPPING,
    "confirming",
    (1, 7, 0),
    last_error="HTTP 503",
    hung_reason="confirm_unanswered",
    next_attempt_at=_RETRY_AT,
)
_RESOLUTION: Final = {
    "as": "confirmed",
    "by": "operator at 10.0.0.7",
    "at": "2026-03-02T09:31:00.004120Z",
    "reason": "shipped by hand, waybill 2291; confirmed with the carrier",
}

CONFIRMED: Final = Example(
    "Confirmed",
    _transaction("confirmed", "confirm", [*_CONFIRMED_BRANCHES, _branch(_SHIPPING, "confirmed", (1, 1, 0))]),
)
CONFIRMING: Final = Example(
    "Decided, being confirmed",
    _transaction("confirming", "confirm", [*_CONFIRMED_BRANCHES, _branch(_SHIPPING, "confirming", (1, 1, 0))]),
)
TRYING: Final = Example(
    "Undecided",
    _transaction(
        "trying",
        "undecided",
        [
            _branch(_INVENTORY, "held", (1, 0, 0)),
            _branch(_PAYMENT, "held", (1, 0, 0)),
            _branch(_SHIPPING, "trying", (1, 0, 0), result=None),
        ],
        decided_at=None,
    ),
)
CANCELLED: Final = Example(
    "Cancelled",
    _transaction(
        "cancelled",
        "cancel",
        [
            _branch(_INVENTORY, "cancelled", (1, 0, 1)),
            _branch(_PAYMENT, "cancelled", (1, 0, 1), result=None, last_error="insufficient funds"),
            _branch(_SHIPPING, "cancelled", (1, 0, 1)),
        ],
        reason=_REFUSAL,
    ),
)
CANCELLING: Final = Example(
    "Cancelled on request",
    _transaction(
        "cancelling",
        "cancel",
        [_branch(each, "cancelling", (1, 0, 1)) for each in (_INVENTORY, _PAYMENT)],
        reason={"code": "requested", "branch": None, "detail": "cancelled by request"},
    ),
)
HUNG: Final = Example(
    "Hung",
    _transaction(
        "confirming",
        "confirm",
        [*_CONFIRMED_BRANCHES, _STUCK],
        hung=True,
        hung_since="2026-03-02T09:16:04.158090Z",
        hung_reason="confirm_unanswered",
        next_attempt_at=_RETRY_AT,
    ),
)
RETRIED: Final = Example(
    "Called again",
    HUNG.value
    | {
        "next_attempt_at": None,
        "branches": [
            *_CONFIRMED_BRANCHES,
            _STUCK | {"next_attempt_at": None, "attempts": _STUCK["attempts"] | {"confirm": 8}},
        ],
    },
)
RESOLVED: Final = Example(
    "Resolved",
    _transaction(
        "confirmed",
        "confirm",
        [
            *_CONFIRMED_BRANCHES,
            _branch(_SHIPPING, "resolved", (1, 7, 0), last_error="HTTP 503", resolution=_RESOLUTION),
        ],
        reason={"code": "operator", "branch": "shipping", "detail": _RESOLUTION["reason"]},
        finished_at=_RESOLUTION["at"],
    ),
)
_MIXED: Final = RESOLVED.value | {
    "outcome": "mixed",
    "branches": [
        *RESOLVED.value["branches"][:2],
        RESOLVED.value["branches"][2] | {"resolution": _RESOLUTION | {"as": "cancelled"}},
    ],
}

TRANSACTIONS: Final = Example("One page", {"items": [CONFIRMED.value], "next_cursor": NEXT_CURSOR})
NO_TRANSACTIONS: Final = Example("Nothing more", {"items": [], "next_cursor": None})
HUNG_PAGE: Final = Example(
    "One hung transaction",
    {
        "items": [HUNG.value],
        "next_cursor": None,
        "totals": [{"participant": "shipping", "reason": "confirm_unanswered", "count": 1}],
    },
)
CALLS: Final = Example(
    "A Try that failed and its repeat",
    {
        "items": [
            {
                "branch": "inventory",
                "operation": "try",
                "attempt": attempt,
                "started_at": f"2026-03-02T09:15:0{3 + attempt}.120771Z",
                "duration_ms": 5.204,
                "answer": result,
                "http_status": status,
                "error": error,
                "response": body,
                "masked": False,
            }
            for attempt, result, status, error, body in (
                (1, "unanswered", 503, "HTTP 503", "upstream restarting"),
                (2, "succeeded", 200, None, '{"hold_id": "inventory-83"}'),
            )
        ],
        "next_cursor": None,
    },
)
COORDINATOR_ID: Final = "5b0f2b7e-6f0a-4c57-9d0e-3f1d3c0c8a11"
DECIDED: Final = Example(
    "Decided", {"decision": "confirm", "recheck_in_s": 0, "finished": False, "coordinator_id": COORDINATOR_ID}
)
UNDECIDED: Final = Example(
    "Ask again", {"decision": "undecided", "recheck_in_s": 12.5, "finished": False, "coordinator_id": COORDINATOR_ID}
)
PARTICIPANT: Final = Example(
    "A participant",
    {
        "name": "inventory",
        "base_url": "http://127.0.0.1:8001/tcc",
        "call_timeout_s": None,
        "concurrency_max": 64,
    },
)
PARTICIPANTS: Final = Example("The registry", {"items": [PARTICIPANT.value]})
KEY_ID: Final = "7Qm2xV9bKd4T"
_KEY: Final = {
    "id": KEY_ID,
    "name": "order-service",
    "roles": ["initiator"],
    "owner": "orders",
    "participant": None,
    "participants": ["inventory", "payment", "shipping"],
    "endpoints": False,
    "created_at": "2026-03-02T09:10:00.000000Z",
    "expires_at": None,
    "revoked_at": None,
    "last_used_at": "2026-03-02T09:15:04.120771Z",
    "previous_expires_at": None,
}
KEYS: Final = Example("One key", {"items": [_KEY]})
KEY_ISSUED: Final = Example(
    "A new key", _KEY | {"last_used_at": None, "key": "hfk_7Qm2xV9bKd4T_" + "x" * 32 + "0AbCdE"}
)
AUDIT: Final = Example(
    "A branch was resolved by hand",
    {
        "items": [
            {
                "id": "0199b2c6-1d02-7b51-8c33-6f0e92a1c4d8",
                "at": "2026-03-02T09:41:20.331904Z",
                "actor": "ada",
                "role": "operator",
                "address": "10.0.0.7",
                "action": "branch.resolve",
                "target": f"transactions/{TRANSACTION_ID}",
                "reason": "shipped by hand",
                "outcome": "done",
                "before": {"phase": "confirming", "decision": "confirm"},
                "after": {"phase": "confirmed", "decision": "confirm"},
                "masked": False,
            }
        ],
        "next_cursor": None,
    },
)
AUDIT_LINES: Final = Example(
    "A refusal",
    '{"id":"0199b2c6-1d02-7b51-8c33-6f0e92a1c4d8","at":"2026-03-02T09:41:20.331904Z","actor":"ada","role":null,'
    '"address":"10.0.0.7","action":"POST /v1/admin/keys","target":"/v1/admin/keys",'
    '"reason":"This needs a key with the role admin.","outcome":"denied","before":null,"after":null,"masked":false}\n',
)
FIRST_SECRET: Final = Example(
    "The first secret",
    {"secret": "whsec_ZXhhbXBsZSwgbm90IGEgc2VjcmV0IG9mIGFueWJvZHk=", "previous_expires_at": None},
)
NEXT_SECRET: Final = Example(
    "A later secret", FIRST_SECRET.value | {"previous_expires_at": "2026-03-03T09:15:04.113402Z"}
)
ALIVE: Final = Example("Alive", {"status": "alive"})
READY: Final = Example("Ready", {"status": "ready"})
METRICS: Final = Example(
    "An excerpt",
    "# HELP holdfast_transactions_begun_total Transactions recorded\n"
    "# TYPE holdfast_transactions_begun_total counter\n"
    "holdfast_transactions_begun_total 1042.0\n",
)


# --- problems --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ProblemExample:
    """What the example of a problem adds to the title and advice of its kind."""

    detail: str | None = None
    members: Mapping[str, Any] | None = None


_NO_ROUTE: Final = (
    "HTTP 404 Not Found: there seems to be no such route: http://127.0.0.1:8001/try; check the participant's base URL"
)
PROBLEMS: Final[Mapping[str, ProblemExample]] = {
    "participant-check-failed": ProblemExample(f"try: {_NO_ROUTE}", {"errors": [{"at": "try", "message": _NO_ROUTE}]}),
    "malformed": ProblemExample(
        "Send JSON with Content-Type: application/json.",
        {"errors": [{"at": "body", "message": "Expecting value: line 1 column 1 (char 0)"}]},
    ),
    "invalid": ProblemExample(
        "body/timeout_s: Input should be greater than 0",
        {"errors": [{"at": "body/timeout_s", "message": "Input should be greater than 0"}]},
    ),
    "unknown-participant": ProblemExample(
        "No participant 'invoicing' is registered. Register it with PUT /v1/participants/invoicing.",
        {"participant": "invoicing"},
    ),
    "endpoint-not-allowed": ProblemExample(
        "https://shipping.example.org is not among the allowed endpoints (http://localhost:*); "
        "add it to HOLDFAST_ALLOWED_ENDPOINTS"
    ),
    "idempotency-key-conflict": ProblemExample(members={"transaction_id": TRANSACTION_ID}),
    "transaction-cancelled": ProblemExample("refused: payment: insufficient funds", {"transaction": CANCELLED.value}),
    "transaction-mixed": ProblemExample(members={"transaction": _MIXED}),
    "already-decided": ProblemExample(members={"transaction": CONFIRMING.value}),
    "already-finished": ProblemExample(members={"transaction": CONFIRMED.value}),
    "not-decided": ProblemExample(members={"transaction": TRYING.value}),
    "branch-finished": ProblemExample(members={"transaction": CONFIRMED.value}),
    "unknown-branch": ProblemExample(members={"transaction": CONFIRMED.value}),
}
"""Slug → what its example adds; the others have nothing to add."""
