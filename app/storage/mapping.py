"""Maps rows of `transactions` to values of the protocol, and back. No SQL and no transitions."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

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
    in_order,
)
from app.storage.errors import UnreadableRowError
from holdfast.json_text import JsonText
from holdfast.wire import Answer, Decision


class _BranchDefinition(msgspec.Struct, kw_only=True):
    name: str
    participant: str | None
    endpoints: tuple[str, str, str] | None
    payload: msgspec.Raw


class _Definition(msgspec.Struct, kw_only=True):
    traceparent: str | None
    branches: list[_BranchDefinition]


class _ReasonState(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    code: ReasonCode
    branch: str | None
    detail: str | None


class _ResolutionState(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    settled: Settled
    by: str
    at: float
    reason: str


class _BranchState(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """What has a value. `calling` is left out, because no call is in progress after a crash."""

    phase: BranchPhase
    result: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    try_attempts: int = 0
    confirm_attempts: int = 0
    cancel_attempts: int = 0
    failures: int = 0
    next_attempt_at: float | None = None
    tried_at: float | None = None
    hold_until: float | None = None
    last_answer: Answer | None = None
    last_error: str | None = None
    hung_reason: HungReason | None = None
    resolution: _ResolutionState | None = None


class _State(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    reason: _ReasonState | None
    branches: list[_BranchState]


FORMAT: Final = 1
"""The format in which this version writes rows. A change that a version in use can't read has a number of its own."""
FORMATS: Final = frozenset({FORMAT})
"""The formats that this version can read."""
_SCALARS: Final = tuple(field for field in _BranchState.__struct_fields__ if field not in ("result", "resolution"))
_DEFINITION: Final = msgspec.json.Decoder(_Definition)
_STATE: Final = msgspec.json.Decoder(_State)
_ENCODER: Final = msgspec.json.Encoder()


def definition_of(transaction: Transaction) -> str:
    """The JSON document of everything that never changes and isn't searched."""
    branches = [_definition(branch) for branch in transaction.branches]
    return _ENCODER.encode(_Definition(traceparent=transaction.traceparent, branches=branches)).decode()


def payloads_of(definition: str) -> list[JsonText]:
    """The payloads of the branches in a `definition`, in order."""
    return [_text(branch.payload) for branch in _DEFINITION.decode(definition).branches]


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
        "state": _ENCODER.encode(_state(transaction)).decode(),
    }


def transaction_of(row: Mapping[Any, Any]) -> Transaction:
    """The transaction that a row represents, with no calls in progress. Raises UnreadableRowError."""
    try:
        return _transaction(row)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise UnreadableRowError(f"{row['id']}: {type(error).__name__}: {error}") from error


def _transaction(row: Mapping[Any, Any]) -> Transaction:
    if row["format"] not in FORMATS:
        raise ValueError(f"format {row['format']} is newer than this version")
    definition, state = _DEFINITION.decode(row["definition"]), _STATE.decode(row["state"])
    reason, try_order = state.reason, TryOrder(row["try_order"])
    branches = tuple(
        _branch(defined, branch) for defined, branch in zip(definition.branches, state.branches, strict=True)
    )
    return Transaction(
        id=row["id"],
        version=row["version"],
        created_at=row["created_at"],
        deadline=row["deadline"],
        name=row["name"],
        reference=row["reference"],
        try_order=try_order,
        traceparent=definition.traceparent,
        decision=Decision(row["decision"]),
        reason=Reason(code=reason.code, branch=reason.branch, detail=reason.detail) if reason else None,
        decided_at=row["decided_at"],
        finished_at=row["finished_at"],
        hung_since=row["hung_since"],
        wake_at=row["wake_at"],
        branches=in_order(branches, try_order),
    )


def _definition(branch: Branch) -> _BranchDefinition:
    endpoints = branch.endpoints
    return _BranchDefinition(
        name=branch.name,
        participant=branch.participant,
        endpoints=(endpoints.try_url, endpoints.confirm_url, endpoints.cancel_url) if endpoints else None,
        payload=msgspec.Raw(branch.payload),
    )


def _state(transaction: Transaction) -> _State:
    reason = transaction.reason
    return _State(
        reason=_ReasonState(code=reason.code, branch=reason.branch, detail=reason.detail) if reason else None,
        branches=[_branch_state(branch) for branch in transaction.branches],
    )


def _branch_state(branch: Branch) -> _BranchState:
    resolution = branch.resolution
    return _BranchState(
        **{field: getattr(branch, field) for field in _SCALARS},
        result=msgspec.UNSET if branch.result is None else msgspec.Raw(branch.result),
        resolution=_ResolutionState(
            settled=resolution.settled, by=resolution.by, at=resolution.at, reason=resolution.reason
        )
        if resolution
        else None,
    )


def _branch(definition: _BranchDefinition, state: _BranchState) -> Branch:
    endpoints, resolution = definition.endpoints, state.resolution
    return Branch(
        name=definition.name,
        participant=definition.participant,
        endpoints=Endpoints(try_url=endpoints[0], confirm_url=endpoints[1], cancel_url=endpoints[2])
        if endpoints
        else None,
        payload=_text(definition.payload),
        result=None if state.result is msgspec.UNSET else _text(state.result),
        resolution=Resolution(settled=resolution.settled, by=resolution.by, at=resolution.at, reason=resolution.reason)
        if resolution
        else None,
        **{field: getattr(state, field) for field in _SCALARS},
    )


def _text(raw: msgspec.Raw) -> JsonText:
    return JsonText(bytes(raw).decode())
