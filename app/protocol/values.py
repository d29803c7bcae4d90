"""The values of a transaction: what the state machine works on, the database keeps and the API shows.

Frozen data and properties derived from it. No transitions (steps.py owns them all) and no I/O.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Final, assert_never
from urllib.parse import urlsplit

from app.protocol.replacing import replace
from holdfast.json_text import NULL, JsonText
from holdfast.wire import Answer, Decision, Kind, Operation

LATEST_S: Final = 253_370_764_800.0
"""The beginning of the year 9999, in seconds since the epoch: no deadline is later, because dates end soon after."""


class Phase(StrEnum):
    """Where a transaction stands; follows from its decision and whether all branches are final."""

    TRYING = "trying"  # after a crash recovery repeats the Trys, or cancels after the deadline
    CONFIRMING = "confirming"  # after a crash recovery repeats unacknowledged Confirms
    CANCELLING = "cancelling"  # after a crash recovery repeats unacknowledged Cancels
    CONFIRMED = "confirmed"  # final
    CANCELLED = "cancelled"  # final


class BranchPhase(StrEnum):
    """Where a branch stands. Its first call is the Try or the action before the decision."""

    PENDING = "pending"  # no first call was sent; recovery sends it, or cancels without a call
    TRYING = "trying"  # a first call may have been sent; recovery repeats it with the same identity
    HELD = "held"  # a crash may lose this; then it is `trying` again, and the first call is repeated
    REFUSED = "refused"  # becomes cancelling or cancelled in the same step
    CONFIRMING = "confirming"  # recovery repeats the Confirm, or a retryable step's action
    CONFIRMED = "confirmed"  # final
    CANCELLING = "cancelling"  # recovery repeats the Cancel or compensation; undecided: a pivot is being withdrawn
    CANCELLED = "cancelled"  # final
    RESOLVED = "resolved"  # final: an operator settled it by hand


FINAL: Final = frozenset({BranchPhase.CONFIRMED, BranchPhase.CANCELLED, BranchPhase.RESOLVED})


PHASE_OF: Final = {
    (Decision.UNDECIDED, False): Phase.TRYING,
    (Decision.CONFIRM, False): Phase.CONFIRMING,
    (Decision.CONFIRM, True): Phase.CONFIRMED,
    (Decision.CANCEL, False): Phase.CANCELLING,
    (Decision.CANCEL, True): Phase.CANCELLED,
}
"""(decision, all branches final) → phase of the transaction."""


class TryOrder(StrEnum):
    """Whether all first calls start at once, or each when the one before it holds."""

    PARALLEL = "parallel"
    SEQUENTIAL = "sequential"


class Undo(StrEnum):
    """Whether what a cancel undoes is undone all at once, or each branch when those after it are final."""

    PARALLEL = "parallel"
    REVERSE = "reverse"


class ReasonCode(StrEnum):
    """Why a transaction was cancelled, or has the outcome that it has."""

    REFUSED = "refused"
    TIMED_OUT = "timed_out"
    HOLD_EXPIRED = "hold_expired"
    RESULT_TOO_LONG = "result_too_long"
    REQUESTED = "requested"
    OPERATOR = "operator"


class HungReason(StrEnum):
    """Why a branch needs an operator's attention."""

    TRY_UNANSWERED = "try_unanswered"  # only while undecided, until it holds
    ACTION_UNANSWERED = "action_unanswered"  # before the decision as a Try's; a retryable step's until it is done
    PIVOT_UNANSWERED = "pivot_unanswered"  # nothing else decides; only while undecided
    UNAUTHORIZED = "unauthorized"  # the participant doesn't accept who calls; a Try's ends as try_unanswered does
    CONFIRM_REFUSED = "confirm_refused"
    CONFIRM_UNANSWERED = "confirm_unanswered"
    CANCEL_REFUSED = "cancel_refused"
    CANCEL_UNANSWERED = "cancel_unanswered"
    ACTION_REFUSED = "action_refused"  # by a retryable step
    COMPENSATION_REFUSED = "compensation_refused"
    COMPENSATION_UNANSWERED = "compensation_unanswered"
    SEND_UNANSWERED = "send_unanswered"  # what a person wants to be sent has not been carried out
    INTERNAL_ERROR = "internal_error"  # a broken invariant of the coordinator; its log says which


REFUSALS: Final = frozenset(
    {
        HungReason.CONFIRM_REFUSED,
        HungReason.CANCEL_REFUSED,
        HungReason.ACTION_REFUSED,
        HungReason.COMPENSATION_REFUSED,
    }
)
"""The participant refused what was decided; later silence doesn't change this reason."""


FAILURES: Final = frozenset({Answer.REFUSED, Answer.UNANSWERED})


class Settled(StrEnum):
    """How an operator settled a branch."""

    CONFIRMED = "confirmed"
    CANCELLED = "cancelled"


class Outcome(StrEnum):
    """How a transaction ended; `mixed` only if a person resolved a branch against the decision, or a pivot wrongly."""

    CONFIRMED = "confirmed"
    CANCELLED = "cancelled"
    MIXED = "mixed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why a transaction ended as it did; `detail` is the participant's or operator's text."""

    code: ReasonCode
    branch: str | None = None
    detail: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """Who settled a branch by hand, as what, when (seconds since the epoch) and why."""

    settled: Settled
    by: str
    at: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """One participant's part of a transaction. `payload` and `result` are JSON texts that nothing here looks into.

    `endpoints` are the URLs of a branch without a registered participant, by operation. `call_timeout_s` is the time
    limit of a call to them, and of a pivot's; None means the coordinator's default.

    `after` names the branches whose results its calls carry. Its first call leaves when those that it `waits_for` have
    done their part, and it is undone when those of `undone_after` are final: both follow from the order (`in_order`).
    `failures` counts failed calls since the phase began, and `last_answer` is the last answer since then; "still
    working" is left out of both. `tried_at` is the time before the first Try or action was sent, from which a hold's
    TTL is measured, and `asked_at` that of the first call after the decision, of a branch that waited for its turn.
    `hold_until` is when its effect stops counting as safe; LATEST_S if it doesn't end by itself. `intent` is a
    resolution that a person wants to be made by a call. `cannot_withdraw`: its participant has no route for that.
    `contradicted`: a person resolved it, and then it answered otherwise. `calling` is the operation in progress; it is
    never stored, because nothing is in progress after a crash.
    """

    name: str
    participant: str | None = None
    endpoints: Mapping[Operation, str] | None = None
    call_timeout_s: float | None = None
    kind: Kind = Kind.TCC
    after: tuple[str, ...] = ()
    waits_for: tuple[str, ...] = ()
    undone_after: tuple[str, ...] = ()
    payload: JsonText = NULL
    phase: BranchPhase = BranchPhase.PENDING
    result: JsonText | None = None
    try_attempts: int = 0
    confirm_attempts: int = 0
    cancel_attempts: int = 0
    failures: int = 0
    next_attempt_at: float | None = None
    tried_at: float | None = None
    asked_at: float | None = None
    hold_until: float | None = None
    last_answer: Answer | None = None
    last_error: str | None = None
    hung_reason: HungReason | None = None
    resolution: Resolution | None = None
    intent: Resolution | None = None
    cannot_withdraw: bool = False
    contradicted: bool = False
    calling: Operation | None = None

    @property
    def final(self) -> bool:
        return self.phase in FINAL

    @property
    def asked_of(self) -> str:
        """Who is called: a participant by its name, inline endpoints by their host."""
        return urlsplit(next(iter(self.endpoints.values()))).netloc if self.endpoints else str(self.participant)

    @property
    def is_delayed(self) -> bool:
        """Whether a call of the present phase, which is a Confirm or Cancel, has failed, and none has succeeded yet."""
        return self.phase in (BranchPhase.CONFIRMING, BranchPhase.CANCELLING) and self.last_answer in FAILURES

    @property
    def was_held(self) -> bool:
        """Whether an answer of the participant said that its Try or action succeeded."""
        return self.hold_until is not None

    def attempts(self, operation: Operation) -> int:
        """How many calls of this operation were started."""
        match operation:
            case Operation.ACTION if self.kind is Kind.RETRYABLE:
                return self.confirm_attempts
            case Operation.TRY | Operation.ACTION:
                return self.try_attempts
            case Operation.CONFIRM:
                return self.confirm_attempts
            case Operation.CANCEL | Operation.COMPENSATION:
                return self.cancel_attempts
            case _:
                assert_never(operation)


def in_order(branches: tuple[Branch, ...], try_order: TryOrder, undo: Undo = Undo.PARALLEL) -> tuple[Branch, ...]:
    """The branches with what each of them waits for, before the decision and to be undone.

    `sequential` is a chain, each branch after the one before it. A pivot waits for all that comes before the decision.
    """
    chained = try_order is TryOrder.SEQUENTIAL
    if not chained and not any(branch.after or branch.kind is Kind.PIVOT for branch in branches):
        return branches
    ahead = {branch.name: branch.after for branch in branches}
    if chained:
        ahead = {after.name: (before.name,) for before, after in pairwise(branches)}
    successors: dict[str, list[str]] = {}
    if undo is Undo.REVERSE:
        for name, predecessors in ahead.items():
            for predecessor in predecessors:
                successors.setdefault(predecessor, []).append(name)
    first = tuple(branch.name for branch in branches if branch.kind not in (Kind.PIVOT, Kind.RETRYABLE))
    return tuple(
        replace(branch, waits_for=first)  # what follows it has not been sent when it is withdrawn
        if branch.kind is Kind.PIVOT
        else replace(branch, waits_for=ahead.get(branch.name, ()), undone_after=tuple(successors.get(branch.name, ())))
        for branch in branches
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Transaction:
    """One global transaction. Times are seconds since the epoch on the coordinator's clock.

    `traceparent` is the initiator's (W3C Trace Context), and participants are called in that trace. `owner` is that of
    the API key that began it. A save expects to
    find `version` in the database. `wake_at` is when the lease ends, or when the next step is due: from then on any
    replica may take the transaction over. None when finished.
    """

    id: str
    created_at: float
    deadline: float
    branches: tuple[Branch, ...]
    name: str | None = None
    reference: str | None = None
    try_order: TryOrder = TryOrder.PARALLEL
    undo: Undo = Undo.PARALLEL
    traceparent: str | None = None
    owner: str | None = None
    version: int = 0
    decision: Decision = Decision.UNDECIDED
    reason: Reason | None = None
    decided_at: float | None = None
    finished_at: float | None = None
    hung_since: float | None = None
    wake_at: float | None = None

    @property
    def finished(self) -> bool:
        return self.finished_at is not None

    @property
    def phase(self) -> Phase:
        return PHASE_OF[self.decision, self.finished]

    @property
    def outcome(self) -> Outcome | None:
        if not self.finished:
            return None
        settled = {b.resolution.settled.value for b in self.branches if b.resolution}
        as_decided = self.phase.value
        is_mixed = settled - {as_decided} or any(b.contradicted for b in self.branches)
        return Outcome.MIXED if is_mixed else Outcome(as_decided)

    @property
    def is_delayed(self) -> bool:
        """Whether the end may be far off: decided, and a call after that has failed in a branch that isn't final."""
        return self.decision is not Decision.UNDECIDED and any(b.is_delayed for b in self.branches)

    @property
    def document_bytes(self) -> int:
        """About how much memory its payloads and results take, in bytes."""
        return self.result_bytes + sum(len(b.payload) for b in self.branches)

    @property
    def result_bytes(self) -> int:
        """About how much memory its results take, in bytes."""
        return sum(len(b.result) for b in self.branches if b.result is not None)

    @property
    def hung_reason(self) -> HungReason | None:
        """The reason of the first hung branch; refusals come before silence."""
        reasons = [b.hung_reason for b in self.branches if b.hung_reason]
        return next((r for r in reasons if r in REFUSALS), reasons[0] if reasons else None)

    @property
    def next_attempt_at(self) -> float | None:
        due = [b.next_attempt_at for b in self.branches if b.next_attempt_at is not None and not b.final]
        return min(due, default=None)

    def branch(self, name: str) -> Branch | None:
        return next((b for b in self.branches if b.name == name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRecord:
    """One call to a participant in the history. `started_at` is in seconds since the epoch."""

    transaction_id: str
    branch: str
    operation: Operation
    attempt: int
    started_at: float
    duration_ms: float
    answer: Answer
    http_status: int | None = None
    error: str | None = None
    response: str | None = None
