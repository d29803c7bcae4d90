"""Maps rows of `transactions` to values of the protocol, and back. No SQL and no transitions."""

from collections.abc import Callable, Mapping
from typing import Any

from pydantic_core import from_json, to_json

from app.protocol.values import (
    Branch,
    BranchPhase,
    Endpoints,
    HungReason,
    Outcome,
    Reason,
    ReasonCode,
    Resolution,
    Settled,
    Transaction,
    TryOrder,
)
from app.storage.errors import UnreadableRowError
from holdfast.wire import Answer, Decision


def definition_of(transaction: Transaction) -> str:
    """The JSON document of everything that never changes and isn't searched."""
    branches = [_definition(branch) for branch in transaction.branches]
    return to_json({"traceparent": transaction.traceparent, "branches": branches}).decode()


def changing_columns(transaction: Transaction) -> dict[str, Any]:
    """The columns that a save writes, except the version."""
    return {
        "phase": transaction.phase.value,
        "decision": transaction.decision.value,
        "decided_at": transaction.decided_at,
        "finished_at": transaction.finished_at,
        "hung_since": transaction.hung_since,
        "wake_at": transaction.wake_at,
        "resolved_at": max((b.resolution.at for b in transaction.branches if b.resolution), default=None),
        "is_mixed": True if transaction.outcome is Outcome.MIXED else None,
        "state": to_json(_state(transaction)).decode(),
    }


def transaction_of(row: Mapping[Any, Any]) -> Transaction:
    """The transaction that a row represents, with no calls in progress. Raises UnreadableRowError."""
    try:
        return _transaction(row)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise UnreadableRowError(f"{row['id']}: {type(error).__name__}: {error}") from error


def _transaction(row: Mapping[Any, Any]) -> Transaction:
    definition, state = from_json(row["definition"]), from_json(row["state"])
    reason = state.get("reason")
    return Transaction(
        id=row["id"],
        version=row["version"],
        created_at=row["created_at"],
        deadline=row["deadline"],
        name=row["name"],
        reference=row["reference"],
        try_order=TryOrder(row["try_order"]),
        traceparent=definition["traceparent"],
        decision=Decision(row["decision"]),
        reason=Reason(code=ReasonCode(reason["code"]), branch=reason["branch"], detail=reason["detail"])
        if reason
        else None,
        decided_at=row["decided_at"],
        finished_at=row["finished_at"],
        hung_since=row["hung_since"],
        wake_at=row["wake_at"],
        branches=tuple(
            _branch(defined, branch) for defined, branch in zip(definition["branches"], state["branches"], strict=True)
        ),
    )


def _definition(branch: Branch) -> dict[str, Any]:
    endpoints = branch.endpoints
    return {
        "name": branch.name,
        "participant": branch.participant,
        "endpoints": [endpoints.try_url, endpoints.confirm_url, endpoints.cancel_url] if endpoints else None,
        "payload": branch.payload,
    }


def _state(transaction: Transaction) -> dict[str, Any]:
    reason = transaction.reason
    return {
        "reason": {"code": reason.code, "branch": reason.branch, "detail": reason.detail} if reason else None,
        "branches": [_branch_state(branch) for branch in transaction.branches],
    }


_COUNTERS = ("try_attempts", "confirm_attempts", "cancel_attempts", "failures")
_STATE_FIELDS = (
    "phase",
    "result",
    "next_attempt_at",
    "tried_at",
    "hold_until",
    "last_answer",
    "last_error",
    "hung_reason",
)
_STATE_TYPES: dict[str, Callable[[Any], Any]] = {"phase": BranchPhase, "last_answer": Answer, "hung_reason": HungReason}


def _branch_state(branch: Branch) -> dict[str, Any]:
    """The fields that have a value. `calling` is left out, because no call is in progress after a crash."""
    state = {field: value for field in _STATE_FIELDS if (value := getattr(branch, field)) is not None}
    state |= {field: value for field in _COUNTERS if (value := getattr(branch, field))}
    if branch.resolution is not None:
        resolution = branch.resolution
        state["resolution"] = {
            "settled": resolution.settled,
            "by": resolution.by,
            "at": resolution.at,
            "reason": resolution.reason,
        }
    return state


def _branch(definition: dict[str, Any], state: dict[str, Any]) -> Branch:
    endpoints = definition["endpoints"]
    fields: dict[str, Any] = {
        field: _STATE_TYPES.get(field, _as_is)(value) for field, value in state.items() if field != "resolution"
    }
    resolution = state.get("resolution")
    return Branch(
        name=definition["name"],
        participant=definition["participant"],
        endpoints=Endpoints(try_url=endpoints[0], confirm_url=endpoints[1], cancel_url=endpoints[2])
        if endpoints
        else None,
        payload=definition["payload"],
        resolution=Resolution(**resolution | {"settled": Settled(resolution["settled"])}) if resolution else None,
        **fields,
    )


def _as_is(value: Any) -> Any:
    return value
