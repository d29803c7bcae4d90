"""Request and response bodies as pydantic models. rendering.py builds the actual answers.

Unknown members and wrong types in a request are errors; nothing is coerced. No database access and no decisions here.
"""

import hashlib
import json
from collections import Counter
from datetime import datetime
from typing import Annotated, Any, Final, Literal, Self

from fastapi import Path
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    Strict,
    model_validator,
)

from app.api.branch_order import endpoints_fault
from app.api.examples import TRANSACTION_ID
from app.api.pagination import CURSOR_CHARS_MAX
from app.auth.roles import Role
from app.calling.registration import CALL_TIMEOUT_MAX_S, Label, ParticipantName, one_line
from app.engine.coordinator import Begin
from app.protocol.identity import Identity, identity_of
from app.protocol.values import (
    LATEST_S,
    Branch,
    BranchPhase,
    HungReason,
    Outcome,
    Phase,
    ReasonCode,
    TryOrder,
    Undo,
)
from app.settings import BRANCHES_LIMIT, Settings
from app.storage.audit import AuditFilter
from holdfast.json_text import EMPTY_OBJECT
from holdfast.wire import Answer, Decision, Kind, Operation

REASON_CHARS_MAX: Final = 2000
PREVIOUS_TTL_DEFAULT_S: Final = 86_400.0
PREVIOUS_TTL_MAX_S: Final = 30 * 86_400.0


def _on_one_line(text: Any) -> Any:
    return " ".join(text.splitlines()).strip() if isinstance(text, str) else text


TransactionId = Annotated[str, Path(description="the transaction's `id`", examples=[TRANSACTION_ID])]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class EndpointsBody(_Body):
    """The URLs of a branch that names no registered participant, by operation. The kind says which it needs."""

    try_url: str | None = Field(default=None, alias="try", examples=["http://127.0.0.1:9000/auth"])
    confirm: str | None = Field(default=None, examples=["http://127.0.0.1:9000/capture"])
    cancel: str | None = Field(default=None, examples=["http://127.0.0.1:9000/void"])
    action: str | None = Field(default=None, examples=["http://127.0.0.1:9000/orders"])
    compensation: str | None = Field(default=None, examples=["http://127.0.0.1:9000/orders/undo"])

    @property
    def urls(self) -> dict[Operation, str]:
        """The URLs that are given."""
        given = self.model_dump(by_alias=True, exclude_none=True)
        return {Operation(operation): url for operation, url in given.items()}


class BranchRequest(_Body):
    """One branch: either a registered participant or URLs. `payload` is JSON text, which nothing here looks into."""

    name: ParticipantName | None = Field(
        default=None, description="unique in the transaction; defaults to the participant", examples=["card"]
    )
    participant: ParticipantName | None = Field(
        default=None, description="the name of a registered participant", examples=["inventory"]
    )
    kind: Annotated[Kind, Strict(strict=False)] = Field(
        default=Kind.TCC, description="what it can do before the decision, after it, and to undo"
    )
    after: list[ParticipantName] = Field(
        default=[],
        max_length=BRANCHES_LIMIT,
        description="names of branches: its first call leaves when they have done their part, and with their results",
        examples=[["create-order"]],
    )
    endpoints: EndpointsBody | None = Field(default=None, description="the URLs of a branch without a participant")
    call_timeout_s: float | None = Field(
        default=None,
        gt=0,
        le=CALL_TIMEOUT_MAX_S,
        description="time limit of a call to `endpoints`, in seconds; defaults to HOLDFAST_CALL_TIMEOUT_S",
        examples=[20],
    )
    payload: Any = Field(
        default_factory=lambda: EMPTY_OBJECT, description="any JSON; every call of this branch carries it as it is"
    )

    @model_validator(mode="after")
    def _one_way_to_reach_it(self) -> Self:
        if (self.participant is None) == (self.endpoints is None):
            raise ValueError("give either participant or endpoints, not both")
        if self.participant is None and self.name is None:
            raise ValueError("a branch with endpoints needs a name")
        if self.participant is not None and self.call_timeout_s is not None:
            raise ValueError("call_timeout_s is for endpoints; a participant has its own in the registry")
        if self.endpoints is not None and (fault := endpoints_fault(self.kind, self.endpoints.urls)):
            raise ValueError(f"branch {self.branch_name}: {fault}")
        return self

    @property
    def branch_name(self) -> str:
        name = self.name or self.participant
        assert name is not None
        return name


class BeginRequest(_Body):
    """What an initiator asks for; docs/reference/protocol.md, section 3. bodies.read_begin reads it."""

    _sent: bytes = PrivateAttr(default=b"")

    name: Label | None = Field(
        default=None, description="what kind of transaction this is; searchable", examples=["place-order"]
    )
    reference: Label | None = Field(
        default=None, description="a business key, such as an order number; searchable", examples=["order-4711"]
    )
    timeout_s: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="time to the decision, in seconds", examples=[30]
    )
    try_order: Literal["parallel", "sequential"] = Field(
        default="parallel", description="`sequential`: each first call leaves when the one before it holds"
    )
    undo: Literal["parallel", "reverse"] = Field(
        default="parallel", description="`reverse`: a branch is undone only when all that came after it is final"
    )
    answer_at: Literal["end", "decision", "record"] = Field(default="end", description="what the request waits for")
    branches: list[BranchRequest] = Field(min_length=1, max_length=BRANCHES_LIMIT)

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [branch.branch_name for branch in self.branches]
        twice = sorted(name for name, times in Counter(names).items() if times > 1)
        if twice:
            raise ValueError(
                f"branch names must be unique in the transaction; give each its own name: {', '.join(twice)}"
            )
        return self

    def fault(self, settings: Settings, now: float) -> str | None:
        """Which limit of this coordinator the request exceeds, as a message for the client; None if none."""
        if len(self.branches) > settings.branches_max:
            return f"branches: {len(self.branches)} given, at most {settings.branches_max} (HOLDFAST_BRANCHES_MAX)"
        if self.timeout_s is not None and self.timeout_s > settings.timeout_max_s:
            most = f"{settings.timeout_max_s:.12g} (HOLDFAST_TIMEOUT_MAX_S)"
            return f"timeout_s: {self.timeout_s:.12g} given, at most {most}"
        if now + self._timeout_s(settings) > LATEST_S:
            return "timeout_s: the deadline must be before the year 9999"
        return None

    def begin(
        self, settings: Settings, *, idempotency_key: str | None, traceparent: str | None, owner: str | None
    ) -> Begin:
        """The request in the form that the coordinator takes."""
        return Begin(
            branches=tuple(_branch(branch) for branch in self.branches),
            timeout_s=self._timeout_s(settings),
            name=self.name,
            reference=self.reference,
            try_order=TryOrder(self.try_order),
            undo=Undo(self.undo),
            traceparent=traceparent,
            owner=owner,
            idempotency_key=idempotency_key,
            identity=self._identity() if idempotency_key else None,
        )

    @property
    def is_plain(self) -> bool:
        """Whether it is TCC as version 0.2 knows it."""
        return self.undo == "parallel" and all(b.kind is Kind.TCC and not b.after for b in self.branches)

    def _timeout_s(self, settings: Settings) -> float:
        return settings.timeout_default_s if self.timeout_s is None else self.timeout_s

    def sent_as(self, body: bytes) -> Self:
        """Remember the bytes of the request, which tell whether another one is the same."""
        self._sent = body
        return self

    def _identity(self) -> Identity:
        envelope = self.model_dump(
            mode="json", by_alias=True, exclude_defaults=True, exclude={"branches": {"__all__": {"payload"}}}
        )
        payloads = [branch.payload for branch in self.branches]
        return identity_of(self._sent, _canonical(envelope), payloads, earlier=self._earlier_hash)

    def _earlier_hash(self) -> str:
        """What version 0.1 recorded; empty if it refused such a request.

        It parsed payloads, so numbers that are one double are equal.
        """
        document = self.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        for branch, request in zip(document["branches"], self.branches, strict=True):
            try:
                branch["payload"] = json.loads(request.payload)
            except ValueError:  # an integer of thousands of digits, which it refused (sys.set_int_max_str_digits)
                return ""
            if branch["payload"] == {}:  # the default was left out
                del branch["payload"]
        return hashlib.sha256(_canonical(document).encode()).hexdigest()


class ResolveRequest(_Body):
    """How a branch was settled by hand."""

    settled: Literal["confirmed", "cancelled"] = Field(alias="as", description="how you settled the branch")
    reason: Annotated[str, BeforeValidator(_on_one_line), AfterValidator(one_line)] = Field(
        min_length=1, max_length=REASON_CHARS_MAX, description="why, for the record", examples=["shipped by hand"]
    )
    send: bool = Field(
        default=False,
        description="the coordinator makes the call for it, instead of the ordinary one, until it is answered",
    )


class _Query(BaseModel):
    """Query parameters. Unknown ones are errors, because a misspelled filter would list everything."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(default=50, ge=1, le=500, description="the most items on the page")
    cursor: str | None = Field(
        default=None,
        max_length=CURSOR_CHARS_MAX,
        description="`next_cursor` of the previous page, with the same filters",
    )


class TransactionsQuery(_Query):
    """Which transactions to list. Every given filter must match."""

    phase: Phase | None = Field(default=None, description="where the transaction stands")
    outcome: Outcome | None = Field(
        default=None, description="how it ended: `mixed` if a person resolved a branch against the decision"
    )
    name: Label | None = Field(default=None, description="the kind that it was begun with", examples=["place-order"])
    reference: Label | None = Field(default=None, description="the business key", examples=["order-4711"])
    participant: ParticipantName | None = Field(
        default=None, description="a participant of one of its branches", examples=["inventory"]
    )
    hung: bool | None = Field(default=None, description="only hung transactions, or only those that aren't")


class SecretRequest(_Body):
    """How long the secret that the participant has stays valid beside the new one."""

    previous_ttl_s: float = Field(
        default=PREVIOUS_TTL_DEFAULT_S,
        ge=0,
        le=PREVIOUS_TTL_MAX_S,
        allow_inf_nan=False,
        description="seconds for which calls are signed with the earlier secret, too; 0 ends it at once",
    )


class HungQuery(_Query):
    """Which hung transactions to list."""

    participant: ParticipantName | None = Field(
        default=None, description="the participant of a hung branch", examples=["shipping"]
    )
    name: Label | None = Field(default=None, description="the kind that it was begun with", examples=["place-order"])
    older_than_s: float | None = Field(
        default=None, ge=0, allow_inf_nan=False, description="hung for at least this many seconds", examples=[300]
    )


class CallsQuery(_Query):
    """Which calls of a transaction to list."""

    limit: int = Field(default=500, ge=1, le=500, description="the most items on the page")


class RotateRequest(_Body):
    """How long the secret before stays valid."""

    previous_ttl_s: float = Field(
        default=0.0,
        ge=0,
        le=PREVIOUS_TTL_MAX_S,
        description="time for which the present secret stays valid, in seconds",
        examples=[3600],
    )


class AuditExportQuery(BaseModel):
    """Which entries of the record to show. Every given filter must match."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    actor: Label | None = Field(default=None, description="the name of the key", examples=["ada"])
    action: Label | None = Field(default=None, description="what was done", examples=["branch.resolve"])
    target: Label | None = Field(
        default=None, description="what it was done to", examples=[f"transactions/{TRANSACTION_ID}"]
    )
    outcome: Literal["done", "denied"] | None = Field(default=None, description="whether it was refused")
    since: AwareDatetime | None = Field(default=None, alias="from", description="at this time or later")
    until: AwareDatetime | None = Field(default=None, alias="to", description="before this time")

    @property
    def wanted(self) -> AuditFilter:
        return AuditFilter(
            actor=self.actor,
            action=self.action,
            target=self.target,
            outcome=self.outcome,
            since=None if self.since is None else self.since.timestamp(),
            until=None if self.until is None else self.until.timestamp(),
        )


class AuditQuery(AuditExportQuery, _Query):
    """Which entries of the record to list."""


class ReasonBody(BaseModel):
    code: ReasonCode
    branch: str | None
    detail: str | None


class ResolutionBody(BaseModel):
    settled: Literal["confirmed", "cancelled"] = Field(alias="as")
    by: str
    at: datetime
    reason: str


class BranchBody(BaseModel):
    """The state of a branch."""

    name: str
    participant: str | None
    kind: Kind
    after: list[str]
    endpoints: dict[Operation, str] | None = Field(description="its URLs, by operation")
    call_timeout_s: float | None
    phase: BranchPhase
    payload: Any
    result: Any
    attempts: dict[Operation, int] = Field(description="how many calls of each operation that its kind has were made")
    last_error: str | None
    hung_reason: HungReason | None
    next_attempt_at: datetime | None
    resolution: ResolutionBody | None
    sending: ResolutionBody | None = Field(description="a resolution with `send`, until the participant answers")


class TransactionBody(BaseModel):
    """The transaction resource; docs/reference/protocol.md, section 3."""

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
    undo: Undo
    created_at: datetime
    deadline: datetime
    decided_at: datetime | None
    finished_at: datetime | None
    next_attempt_at: datetime | None
    owner: str | None = Field(description="the owner of the API key that began it")
    branches: list[BranchBody]
    masked: bool = Field(description="payloads, results and error texts are null: this key may not see them")


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
    masked: bool = Field(description="error and response are null: this key may not see them")


class CallPage(BaseModel):
    items: list[CallBody]
    next_cursor: str | None


class DecisionBody(BaseModel):
    decision: Decision
    recheck_in_s: float = Field(description="when to ask again, in seconds; 0 once it is decided")
    finished: bool = Field(description="whether the transaction is finished: no call will follow")
    coordinator_id: str = Field(description="the coordinator that answers; its Trys carry the same id")


class ParticipantBody(BaseModel):
    name: str
    base_url: str
    call_timeout_s: float | None
    concurrency_max: int
    kinds: list[Kind] | None = Field(
        default=None, description="the kinds of branches that it takes; left out if it doesn't say"
    )


class ParticipantPage(BaseModel):
    items: list[ParticipantBody]


class KeyBody(BaseModel):
    """An API key, without its secret."""

    id: str
    name: str
    roles: list[Role]
    owner: str
    participant: str | None
    participants: list[str] | None
    endpoints: bool
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    previous_expires_at: datetime | None = Field(description="when the secret before the last rotation ends")


class IssuedKeyBody(KeyBody):
    key: str = Field(description="the key in full, shown this once")


class KeyPage(BaseModel):
    items: list[KeyBody]


class AuditEntryBody(BaseModel):
    """Something that somebody did, or wasn't allowed to."""

    id: str
    at: datetime
    actor: str | None = Field(description="the name of the key; null without one")
    role: str | None
    address: str | None
    action: str
    target: str
    reason: str | None
    outcome: Literal["done", "denied"]
    before: Any
    after: Any
    masked: bool = Field(description="before and after are null: this key may not see them")


class AuditPage(BaseModel):
    items: list[AuditEntryBody]
    next_cursor: str | None


class SecretBody(BaseModel):
    secret: str = Field(description="`whsec_` and base64; it can't be shown again")
    previous_expires_at: datetime | None = Field(
        description="until when calls are signed with the earlier secret, too; null if there is none"
    )


class StatusBody(BaseModel):
    status: str


def _canonical(document: Any) -> str:
    """Equal for equal requests; members added in later versions have defaults, which are left out."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"))


def _branch(request: BranchRequest) -> Branch:
    return Branch(
        name=request.branch_name,
        participant=request.participant,
        endpoints=None if request.endpoints is None else request.endpoints.urls,
        call_timeout_s=request.call_timeout_s,
        kind=request.kind,
        after=tuple(request.after),
        payload=request.payload,
    )
