"""What goes in and out of the API, as pydantic models, and how protocol values are shown.

Unknown members of a body are errors and so are wrong types; nothing is coerced. Reads no database, decides nothing.
"""

import base64
import binascii
import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from app.coordinator import Begin
from app.lists import HungTotal
from app.models import NAME_CHARS_MAX, CallRecord, RegisteredParticipant
from app.settings import BRANCHES_LIMIT, ParticipantName, Settings
from app.transaction import (
    Branch,
    BranchPhase,
    Endpoints,
    HungReason,
    Outcome,
    Phase,
    ReasonCode,
    Transaction,
    TryOrder,
)
from holdfast.wire import Answer, Decision, Operation, is_portable

CURSOR_CHARS_MAX: Final = 200
REASON_CHARS_MAX: Final = 2000
_ID: Final = re.compile(r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$")


def _portable(value: Any) -> Any:
    if not is_portable(value):
        raise ValueError("must nest at most 100 levels deep and hold no NaN, no infinity and no lone surrogate")
    return value


def _one_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must have no control characters")
    return text


def _on_one_line(text: Any) -> Any:
    return " ".join(text.splitlines()).strip() if isinstance(text, str) else text


Label = Annotated[str, Field(min_length=1, max_length=NAME_CHARS_MAX), AfterValidator(_one_line)]
Json = Annotated[Any, AfterValidator(_portable)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class EndpointsBody(_Body):
    """The three URLs of a branch that names no registered participant."""

    try_url: str = Field(alias="try", examples=["http://127.0.0.1:9000/auth"])
    confirm_url: str = Field(alias="confirm", examples=["http://127.0.0.1:9000/capture"])
    cancel_url: str = Field(alias="cancel", examples=["http://127.0.0.1:9000/void"])


class BranchRequest(_Body):
    """One branch: a registered participant, or URLs; never both."""

    name: ParticipantName | None = Field(default=None, description="unique in the transaction; default: participant")
    participant: ParticipantName | None = None
    endpoints: EndpointsBody | None = None
    payload: Json = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_way_to_reach_it(self) -> Self:
        if (self.participant is None) == (self.endpoints is None):
            raise ValueError("give either participant or endpoints, not both and not neither")
        if self.participant is None and self.name is None:
            raise ValueError("a branch given by endpoints needs a name")
        return self

    @property
    def branch_name(self) -> str:
        name = self.name or self.participant
        assert name is not None
        return name


class BeginRequest(_Body):
    """What an initiator asks for; docs/protocol.md, section 3."""

    name: Label | None = Field(default=None, description="what kind of transaction this is")
    reference: Label | None = Field(default=None, description="a business key")
    timeout_s: float | None = Field(default=None, gt=0, allow_inf_nan=False, description="time to a decision")
    try_order: Literal["parallel", "sequential"] = "parallel"
    answer_at: Literal["end", "decision", "record"] = "end"
    branches: list[BranchRequest] = Field(min_length=1, max_length=BRANCHES_LIMIT)

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [branch.branch_name for branch in self.branches]
        twice = sorted(name for name, times in Counter(names).items() if times > 1)
        if twice:
            raise ValueError(f"branch names must be unique in the transaction; given twice: {', '.join(twice)}")
        return self

    def fault(self, settings: Settings) -> str | None:
        """What this coordinator's limits have against the request, in a sentence; None when nothing."""
        if len(self.branches) > settings.branches_max:
            return f"branches: {len(self.branches)} are too many; at most {settings.branches_max}"
        if self.timeout_s is not None and self.timeout_s > settings.timeout_max_s:
            return f"timeout_s: {self.timeout_s:g} is too long; at most {settings.timeout_max_s:g}"
        return None

    def begin(self, settings: Settings, *, idempotency_key: str | None, traceparent: str | None) -> Begin:
        """The request as the coordinator takes it."""
        return Begin(
            branches=tuple(_branch(branch) for branch in self.branches),
            timeout_s=settings.timeout_default_s if self.timeout_s is None else self.timeout_s,
            name=self.name,
            reference=self.reference,
            try_order=TryOrder(self.try_order),
            traceparent=traceparent,
            idempotency_key=idempotency_key,
            request_hash=self._hash() if idempotency_key else None,
        )

    def _hash(self) -> str:
        """The same for the same request, however its JSON was written, and when members have been added since."""
        canonical = json.dumps(
            self.model_dump(mode="json", by_alias=True, exclude_defaults=True), sort_keys=True, separators=(",", ":")
        )
        return hashlib.sha256(canonical.encode()).hexdigest()


class ResolveRequest(_Body):
    """A person settled a branch by hand."""

    settled: Literal["confirmed", "cancelled"] = Field(alias="as")
    reason: Annotated[str, BeforeValidator(_on_one_line), AfterValidator(_one_line)] = Field(
        min_length=1, max_length=REASON_CHARS_MAX, description="why, for the record"
    )


class _Query(BaseModel):
    """Query parameters; one that there is not is an error, because a misspelled filter would show everything."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(default=50, ge=1, le=500)
    cursor: str | None = Field(
        default=None, max_length=CURSOR_CHARS_MAX, description="`next_cursor` of the page before"
    )


class TransactionsQuery(_Query):
    """Which transactions to list; every filter that is given must match."""

    phase: Phase | None = None
    name: Label | None = None
    reference: Label | None = None
    participant: ParticipantName | None = None
    hung: bool | None = None


class HungQuery(_Query):
    """Which hung transactions to list."""

    participant: ParticipantName | None = None
    name: Label | None = None
    older_than_s: float | None = Field(default=None, ge=0, allow_inf_nan=False)


class CallsQuery(_Query):
    """Which calls of a transaction to list."""

    limit: int = Field(default=500, ge=1, le=500)


class ReasonBody(BaseModel):
    code: ReasonCode
    branch: str | None
    detail: str | None


class AttemptsBody(BaseModel):
    try_attempts: int = Field(alias="try")
    confirm_attempts: int = Field(alias="confirm")
    cancel_attempts: int = Field(alias="cancel")


class ResolutionBody(BaseModel):
    settled: Literal["confirmed", "cancelled"] = Field(alias="as")
    by: str
    at: datetime
    reason: str


class BranchBody(BaseModel):
    """One branch, as clients see it."""

    name: str
    participant: str | None
    endpoints: EndpointsBody | None
    phase: BranchPhase
    payload: Any
    result: Any
    attempts: AttemptsBody
    last_error: str | None
    hung_reason: HungReason | None
    next_attempt_at: datetime | None
    resolution: ResolutionBody | None


class TransactionBody(BaseModel):
    """The transaction resource; docs/protocol.md, section 3."""

    id: str
    name: str | None
    reference: str | None
    phase: Phase
    decision: Decision
    outcome: Outcome | None
    reason: ReasonBody | None
    hung: bool
    hung_since: datetime | None
    hung_reason: HungReason | None
    try_order: TryOrder
    created_at: datetime
    deadline: datetime
    decided_at: datetime | None
    finished_at: datetime | None
    next_attempt_at: datetime | None
    branches: list[BranchBody]


class TransactionPage(BaseModel):
    items: list[TransactionBody]
    next_cursor: str | None


class HungTotalBody(BaseModel):
    participant: str | None
    reason: HungReason
    count: int


class HungPage(BaseModel):
    items: list[TransactionBody]
    next_cursor: str | None
    totals: list[HungTotalBody]


class CallBody(BaseModel):
    branch: str
    operation: Operation
    attempt: int
    started_at: datetime
    duration_ms: float
    answer: Answer
    http_status: int | None
    error: str | None
    response: str | None


class CallPage(BaseModel):
    items: list[CallBody]
    next_cursor: str | None


class DecisionBody(BaseModel):
    decision: Decision
    recheck_in_s: float = Field(description="0 once it is decided")


class ParticipantBody(BaseModel):
    name: str
    base_url: str
    call_timeout_s: float | None
    concurrency_max: int


class ParticipantPage(BaseModel):
    items: list[ParticipantBody]


class StatusBody(BaseModel):
    status: str


# --- rendering ---------------------------------------------------------------------------------------------------
# Dicts, not models: the resource is rendered for every answer, and its shape is held by the tests of the schema.


def rfc3339(at: float | None) -> str | None:
    """Seconds since the epoch as RFC 3339 in UTC, with microseconds."""
    if at is None:
        return None
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def transaction_json(it: Transaction) -> dict[str, Any]:
    """The transaction resource (TransactionBody)."""
    return {
        "id": it.id,
        "name": it.name,
        "reference": it.reference,
        "phase": it.phase,
        "decision": it.decision,
        "outcome": it.outcome,
        "reason": it.reason and {"code": it.reason.code, "branch": it.reason.branch, "detail": it.reason.detail},
        "hung": it.hung_since is not None,
        "hung_since": rfc3339(it.hung_since),
        "hung_reason": it.hung_reason,
        "try_order": it.try_order,
        "created_at": rfc3339(it.created_at),
        "deadline": rfc3339(it.deadline),
        "decided_at": rfc3339(it.decided_at),
        "finished_at": rfc3339(it.finished_at),
        "next_attempt_at": rfc3339(it.next_attempt_at),
        "branches": [_branch_json(branch) for branch in it.branches],
    }


def call_json(it: CallRecord) -> dict[str, Any]:
    """One call of the history (CallBody)."""
    return {
        "branch": it.branch,
        "operation": it.operation,
        "attempt": it.attempt,
        "started_at": rfc3339(it.started_at),
        "duration_ms": it.duration_ms,
        "answer": it.answer,
        "http_status": it.http_status,
        "error": it.error,
        "response": it.response,
    }


def participant_json(it: RegisteredParticipant) -> dict[str, Any]:
    """One entry of the registry (ParticipantBody)."""
    return {
        "name": it.name,
        "base_url": it.base_url,
        "call_timeout_s": it.call_timeout_s,
        "concurrency_max": it.concurrency_max,
    }


def totals_json(totals: Sequence[HungTotal]) -> list[dict[str, Any]]:
    """How many branches hang, by participant and reason (HungTotalBody)."""
    return [{"participant": it.participant, "reason": it.reason, "count": it.count} for it in totals]


def _branch_json(it: Branch) -> dict[str, Any]:
    ends, resolution = it.endpoints, it.resolution
    return {
        "name": it.name,
        "participant": it.participant,
        "endpoints": ends and {"try": ends.try_url, "confirm": ends.confirm_url, "cancel": ends.cancel_url},
        "phase": it.phase,
        "payload": it.payload,
        "result": it.result,
        "attempts": {"try": it.try_attempts, "confirm": it.confirm_attempts, "cancel": it.cancel_attempts},
        "last_error": it.last_error,
        "hung_reason": it.hung_reason,
        "next_attempt_at": rfc3339(it.next_attempt_at),
        "resolution": resolution
        and {
            "as": resolution.settled,
            "by": resolution.by,
            "at": rfc3339(resolution.at),
            "reason": resolution.reason,
        },
    }


def _branch(it: BranchRequest) -> Branch:
    endpoints = None
    if it.endpoints is not None:
        urls = it.endpoints
        endpoints = Endpoints(try_url=urls.try_url, confirm_url=urls.confirm_url, cancel_url=urls.cancel_url)
    return Branch(name=it.branch_name, participant=it.participant, endpoints=endpoints, payload=it.payload)


# --- cursors -----------------------------------------------------------------------------------------------------


def is_id(text: str) -> bool:
    """Whether `text` has the form of a transaction's id."""
    return _ID.fullmatch(text) is not None


def cursor_of(*parts: str | float) -> str:
    """An opaque cursor that says where a page ended."""
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode().rstrip("=")


def parse_cursor(cursor: str, *types: type) -> tuple[Any, ...]:
    """The parts of a cursor. Raises ValueError when it is none of ours."""
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        parts = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (ValueError, binascii.Error, RecursionError) as error:
        raise ValueError("not a cursor") from error
    if not isinstance(parts, list) or [type(part) for part in parts] != list(types) or not is_portable(parts):
        raise ValueError("not a cursor")
    if any(isinstance(part, int) and not 0 <= part < 2**63 for part in parts):
        raise ValueError("not a cursor")
    if any(isinstance(part, str) and not is_id(part) for part in parts):
        raise ValueError("not a cursor")
    return tuple(parts)
