"""Renders values of the protocol as JSON: the resources that clients see, and the lines of an export.

Builds dicts rather than models, because every answer renders a resource. Tests compare their shape with schemas.py.
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from fastapi.responses import Response

from app.auth.keys import Issued
from app.auth.roles import Principal
from app.protocol.kinds import OPERATIONS
from app.protocol.values import LATEST_S, Branch, CallRecord, Resolution, Transaction
from app.storage.api_keys import StoredKey
from app.storage.audit import StoredEntry
from app.storage.participants import RegisteredParticipant
from app.storage.queries import HungTotal

_ON_ONE_LINE = bytes.maketrans(b"\r\n", b"  ")


def rfc3339(at: float | None) -> str | None:
    """Seconds since the epoch in RFC 3339 format: UTC, with microseconds.

    What no date can hold is shown as the nearest that one can, so that a list doesn't fail for one row.
    """
    if at is None:
        return None
    nearest = max(0.0, min(LATEST_S, at))  # in this order NaN is LATEST_S
    return datetime.fromtimestamp(nearest, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def transaction_json(transaction: Transaction, *, masked: bool = False) -> dict[str, Any]:
    """The transaction resource (TransactionBody). `masked` is without payloads, results and error texts."""
    reason = transaction.reason
    return {
        "id": transaction.id,
        "name": transaction.name,
        "reference": transaction.reference,
        "phase": transaction.phase,
        "decision": transaction.decision,
        "outcome": transaction.outcome,
        "reason": reason
        and {"code": reason.code, "branch": reason.branch, "detail": None if masked else reason.detail},
        "hung": transaction.hung_since is not None,
        "hung_since": rfc3339(transaction.hung_since),
        "hung_reason": transaction.hung_reason,
        "try_order": transaction.try_order,
        "undo": transaction.undo,
        "created_at": rfc3339(transaction.created_at),
        "deadline": rfc3339(transaction.deadline),
        "decided_at": rfc3339(transaction.decided_at),
        "finished_at": rfc3339(transaction.finished_at),
        "next_attempt_at": rfc3339(transaction.next_attempt_at),
        "owner": transaction.owner,
        "branches": [_branch_json(branch, masked) for branch in transaction.branches],
        "masked": masked,
    }


def transaction_for(principal: Principal, transaction: Transaction) -> dict[str, Any]:
    """The transaction resource as this one may see it."""
    return transaction_json(transaction, masked=not principal.reads_payloads(transaction.owner))


def call_json(call: CallRecord, *, masked: bool = False) -> dict[str, Any]:
    """One call of the history (CallBody). `masked` is without the error and the response."""
    return {
        "branch": call.branch,
        "operation": call.operation,
        "attempt": call.attempt,
        "started_at": rfc3339(call.started_at),
        "duration_ms": call.duration_ms,
        "answer": call.answer,
        "http_status": call.http_status,
        "error": None if masked else call.error,
        "response": None if masked else call.response,
        "masked": masked,
    }


def participant_json(participant: RegisteredParticipant) -> dict[str, Any]:
    """One entry of the registry (ParticipantBody)."""
    return {
        "name": participant.name,
        "base_url": participant.base_url,
        "call_timeout_s": participant.call_timeout_s,
        "concurrency_max": participant.concurrency_max,
        **({} if participant.kinds is None else {"kinds": participant.kinds}),
    }


def totals_json(totals: Sequence[HungTotal]) -> list[dict[str, Any]]:
    """The number of hung branches by participant and reason (HungTotalBody)."""
    return [{"participant": each.participant, "reason": each.reason, "count": each.count} for each in totals]


def key_json(key: StoredKey) -> dict[str, Any]:
    """An API key (KeyBody)."""
    return {
        "id": key.id,
        "name": key.name,
        "roles": key.roles,
        "owner": key.owner,
        "participant": key.participant,
        "participants": key.participants,
        "endpoints": key.endpoints,
        "created_at": rfc3339(key.created_at),
        "expires_at": rfc3339(key.expires_at),
        "revoked_at": rfc3339(key.revoked_at),
        "last_used_at": rfc3339(key.last_used_at),
        "previous_expires_at": rfc3339(key.previous_until),
    }


def issued_json(issued: Issued) -> dict[str, Any]:
    """A key that was created or rotated just now (IssuedKeyBody)."""
    return key_json(issued.stored) | {"key": issued.shown.text}


def audit_json(stored: StoredEntry, *, masked: bool) -> dict[str, Any]:
    """One entry of the record (AuditEntryBody). `masked` is without what was changed."""
    entry = stored.entry
    return {
        "id": stored.id,
        "at": rfc3339(entry.at),
        "actor": entry.asker.actor,
        "role": entry.asker.role,
        "address": entry.asker.address,
        "action": entry.action,
        "target": entry.target,
        "reason": entry.reason,
        "outcome": entry.outcome,
        "before": None if masked or entry.before is None else msgspec.Raw(entry.before.encode()),
        "after": None if masked or entry.after is None else msgspec.Raw(entry.after.encode()),
        "masked": masked,
    }


def _branch_json(branch: Branch, masked: bool) -> dict[str, Any]:
    resolution = branch.resolution
    return {
        "name": branch.name,
        "participant": branch.participant,
        "kind": branch.kind,
        "after": branch.after,
        "endpoints": branch.endpoints,
        "call_timeout_s": branch.endpoints and branch.call_timeout_s,
        "phase": branch.phase,
        "payload": None if masked else msgspec.Raw(branch.payload),
        "result": None if masked or not branch.result else msgspec.Raw(branch.result),
        "attempts": {operation: branch.attempts(operation) for operation in OPERATIONS[branch.kind]},
        "last_error": None if masked else branch.last_error,
        "hung_reason": branch.hung_reason,
        "next_attempt_at": rfc3339(branch.next_attempt_at),
        "resolution": resolution and _resolution_json(resolution),
        "sending": branch.intent and _resolution_json(branch.intent),
    }


def _resolution_json(resolution: Resolution) -> dict[str, Any]:
    return {
        "as": resolution.settled,
        "by": resolution.by,
        "at": rfc3339(resolution.at),
        "reason": resolution.reason,
    }


def to_json(content: dict[str, Any]) -> bytes:
    """The JSON text, in which payloads and results are as they were sent."""
    return msgspec.json.encode(content)


def json_response(content: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """An answer of application/json."""
    return Response(to_json(content), status, headers, "application/json")


def exported(transaction: Transaction, calls: Iterable[CallRecord]) -> Iterator[bytes]:
    """The transaction resource with its calls as a JSON object, in pieces, because there may be very many calls.

    On one line: a payload or result may have line breaks between its members.
    """
    yield to_json(transaction_json(transaction)).removesuffix(b"}").translate(_ON_ONE_LINE) + b',"calls":['
    for place, call in enumerate(calls):
        yield (b"," if place else b"") + to_json(call_json(call))
    yield b"]}"
