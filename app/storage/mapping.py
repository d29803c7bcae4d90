"""Maps rows of `transactions` and `branches` to values of the protocol, and back. No SQL and no transitions."""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any, Final

import msgspec

from app.protocol.values import (
    Branch,
    BranchPhase,
    HungReason,
    Outcome,
    Reason,
    ReasonCode,
    Resolution,
    Settled,
    Transaction,
    TryOrder,
    Undo,
    in_order,
)
from app.storage.errors import UnreadableRowError
from holdfast.json_text import JsonText
from holdfast.wire import Answer, Decision, Kind, Operation


class _Definition(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What a version before doesn't know it ignores, so only what it can do without may be added without a FORMAT."""

    endpoints: tuple[str, str, str] | None
    """The URLs of try, confirm and cancel."""
    payload: msgspec.Raw
    call_timeout_s: float | None = None
    kind: Kind = Kind.TCC
    after: tuple[str, ...] = ()
    urls: dict[Operation, str] | None = None
    """The URLs of a branch of another kind."""


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
    asked_at: float | None = None
    intent: _ResolutionState | None = None
    cannot_withdraw: bool = False
    contradicted: bool = False


class _Progress(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """`branches` by position; those at the end that nothing has happened to yet are left out."""

    reason: _ReasonState | None
    branches: list[_BranchState]


TCC_FORMAT: Final = 1
"""The format of plain TCC. A change that a version in use can't read has a number of its own."""
KINDS_FORMAT: Final = 2
"""The format of a transaction that has branches of other kinds, or an order that version 0.2 doesn't know."""
FORMATS: Final = frozenset({TCC_FORMAT, KINDS_FORMAT})
"""The formats that this version can read."""
_TCC: Final = (Operation.TRY, Operation.CONFIRM, Operation.CANCEL)
_STRUCTURED: Final = frozenset({"result", "resolution", "intent"})
_SCALARS: Final = tuple(field for field in _BranchState.__struct_fields__ if field not in _STRUCTURED)
_UNTOUCHED: Final = _BranchState(phase=BranchPhase.PENDING)
_DEFINITION: Final = msgspec.json.Decoder(_Definition)
_PROGRESS: Final = msgspec.json.Decoder(_Progress)
_ENCODER: Final = msgspec.json.Encoder()


def branch_rows(transaction: Transaction) -> list[dict[str, Any]]:
    """The rows of `branches` of a new transaction."""
    return [
        {
            "transaction_id": transaction.id,
            "position": position,
            "name": branch.name,
            "participant": branch.participant,
            "definition": _definition(branch),
        }
        for position, branch in enumerate(transaction.branches)
    ]


def format_of(transaction: Transaction) -> int:
    """The format of the documents of this transaction."""
    is_plain = all(branch.kind is Kind.TCC and not branch.after for branch in transaction.branches)
    return TCC_FORMAT if is_plain and transaction.undo is Undo.PARALLEL else KINDS_FORMAT


def payload_of(definition: str) -> JsonText:
    """The payload in a branch's `definition`."""
    return _text(_DEFINITION.decode(definition).payload)


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
        "progress": _ENCODER.encode(_progress(transaction)).decode(),
    }


def transaction_of(row: Mapping[Any, Any], branch_rows: Sequence[Any]) -> Transaction:
    """The transaction that a row and those of its branches, in order, represent, with no calls in progress.

    Raises UnreadableRowError.
    """
    try:
        return _transaction(row, branch_rows)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise UnreadableRowError(f"{row['id']}: {type(error).__name__}: {error}") from error


def _transaction(row: Mapping[Any, Any], branch_rows: Sequence[Any]) -> Transaction:
    if row["format"] not in FORMATS:
        raise ValueError(f"format {row['format']} is newer than this version")
    progress = _PROGRESS.decode(row["progress"])
    reason, try_order, undo = progress.reason, TryOrder(row["try_order"]), Undo(row["undo"])
    if len(progress.branches) > len(branch_rows):
        raise ValueError(f"progress of {len(progress.branches)} branches, of which {len(branch_rows)} exist")
    states = zip_longest(branch_rows, progress.branches, fillvalue=_UNTOUCHED)
    branches = tuple(_branch(branch_row, state) for branch_row, state in states)
    return Transaction(
        id=row["id"],
        version=row["version"],
        created_at=row["created_at"],
        deadline=row["deadline"],
        name=row["name"],
        reference=row["reference"],
        try_order=try_order,
        undo=undo,
        traceparent=row["traceparent"],
        owner=row["owner"],
        decision=Decision(row["decision"]),
        reason=Reason(code=reason.code, branch=reason.branch, detail=reason.detail) if reason else None,
        decided_at=row["decided_at"],
        finished_at=row["finished_at"],
        hung_since=row["hung_since"],
        wake_at=row["wake_at"],
        branches=in_order(branches, try_order, undo),
    )


def _definition(branch: Branch) -> str:
    """The JSON document of what never changes in a branch and isn't searched."""
    is_tcc, endpoints = branch.kind is Kind.TCC, branch.endpoints
    definition = _Definition(
        endpoints=(endpoints[_TCC[0]], endpoints[_TCC[1]], endpoints[_TCC[2]]) if endpoints and is_tcc else None,
        payload=msgspec.Raw(branch.payload),
        call_timeout_s=branch.call_timeout_s,
        kind=branch.kind,
        after=branch.after,
        urls=dict(endpoints) if endpoints and not is_tcc else None,
    )
    return _ENCODER.encode(definition).decode()


def _progress(transaction: Transaction) -> _Progress:
    reason, branches = transaction.reason, [_branch_state(branch) for branch in transaction.branches]
    while branches and branches[-1] == _UNTOUCHED:
        branches.pop()
    return _Progress(
        reason=_ReasonState(code=reason.code, branch=reason.branch, detail=reason.detail) if reason else None,
        branches=branches,
    )


def _branch_state(branch: Branch) -> _BranchState:
    return _BranchState(
        **{field: getattr(branch, field) for field in _SCALARS},
        result=msgspec.UNSET if branch.result is None else msgspec.Raw(branch.result),
        resolution=_resolution_state(branch.resolution),
        intent=_resolution_state(branch.intent),
    )


def _resolution_state(resolution: Resolution | None) -> _ResolutionState | None:
    if resolution is None:
        return None
    return _ResolutionState(settled=resolution.settled, by=resolution.by, at=resolution.at, reason=resolution.reason)


def _resolution(state: _ResolutionState | None) -> Resolution | None:
    if state is None:
        return None
    return Resolution(settled=state.settled, by=state.by, at=state.at, reason=state.reason)


def _branch(row: Any, state: _BranchState) -> Branch:
    definition = _DEFINITION.decode(row.definition)
    urls = definition.urls
    if definition.endpoints is not None:
        urls = dict(zip(_TCC, definition.endpoints, strict=True))
    return Branch(
        name=row.name,
        participant=row.participant,
        endpoints=urls,
        call_timeout_s=definition.call_timeout_s,
        kind=definition.kind,
        after=definition.after,
        payload=_text(definition.payload),
        result=None if state.result is msgspec.UNSET else _text(state.result),
        resolution=_resolution(state.resolution),
        intent=_resolution(state.intent),
        **{field: getattr(state, field) for field in _SCALARS},
    )


def _text(raw: msgspec.Raw) -> JsonText:
    return JsonText(bytes(raw).decode())
