"""The tables of the state machine: what a kind of branch can do, which operation a phase asks for, where an answer
leads, and what a decision entails.

A kind is the operations that its branches have: before the decision, on confirm, on cancel, and to withdraw what was
asked before the decision. One that is missing succeeds at once. Everything else about a kind is derived from these, so
that another kind is another line of KINDS, and never a transition of its own. Pure data; only steps.py and branches.py
apply it. Source: docs/reference/patterns.md, section 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from app.protocol.values import BranchPhase, HungReason
from holdfast.wire import Answer, Decision, Kind, Operation


@dataclass(frozen=True, slots=True, kw_only=True)
class Operations:
    """What the branches of a kind are asked for. None: nothing, so that part succeeds at once.

    A branch that can be withdrawn decides: its success is the decision to confirm, its refusal or its withdrawal the
    decision to cancel, and once it was sent, nothing else decides.
    """

    first: Operation | None = None
    confirm: Operation | None = None
    cancel: Operation | None = None
    withdraw: Operation | None = None


KINDS: Final[dict[Kind, Operations]] = {
    Kind.TCC: Operations(first=Operation.TRY, confirm=Operation.CONFIRM, cancel=Operation.CANCEL),
    Kind.COMPENSABLE: Operations(first=Operation.ACTION, cancel=Operation.COMPENSATION),
    Kind.CHECK: Operations(first=Operation.ACTION),
    Kind.PIVOT: Operations(first=Operation.ACTION, withdraw=Operation.CANCEL),
    Kind.RETRYABLE: Operations(confirm=Operation.ACTION),
}
"""Kind of a branch → the operations that it has."""

OPERATIONS: Final = {
    kind: tuple(
        operation for operation in (each.first, each.confirm, each.cancel, each.withdraw) if operation is not None
    )
    for kind, each in KINDS.items()
}
"""Kind → all operations of its branches."""

ANSWERED: Final = {
    (BranchPhase.TRYING, Answer.SUCCEEDED): BranchPhase.HELD,
    (BranchPhase.TRYING, Answer.REFUSED): BranchPhase.REFUSED,
    (BranchPhase.TRYING, Answer.UNANSWERED): BranchPhase.TRYING,
    (BranchPhase.CONFIRMING, Answer.SUCCEEDED): BranchPhase.CONFIRMED,
    (BranchPhase.CONFIRMING, Answer.REFUSED): BranchPhase.CONFIRMING,  # not done: hung at once, and still retried
    (BranchPhase.CONFIRMING, Answer.UNANSWERED): BranchPhase.CONFIRMING,
    (BranchPhase.CANCELLING, Answer.SUCCEEDED): BranchPhase.CANCELLED,
    (BranchPhase.CANCELLING, Answer.REFUSED): BranchPhase.CANCELLING,
    (BranchPhase.CANCELLING, Answer.UNANSWERED): BranchPhase.CANCELLING,
}
"""(phase in which a call was made, answer) → the branch's next phase."""

REFUSED_BECAUSE: Final = {
    Operation.CONFIRM: HungReason.CONFIRM_REFUSED,
    Operation.CANCEL: HungReason.CANCEL_REFUSED,
    Operation.ACTION: HungReason.ACTION_REFUSED,
    Operation.COMPENSATION: HungReason.COMPENSATION_REFUSED,
}
"""Operation after the decision → why its branch hangs once it was refused."""

UNANSWERED_BECAUSE: Final = {
    Operation.TRY: HungReason.TRY_UNANSWERED,
    Operation.CONFIRM: HungReason.CONFIRM_UNANSWERED,
    Operation.CANCEL: HungReason.CANCEL_UNANSWERED,
    Operation.ACTION: HungReason.ACTION_UNANSWERED,
    Operation.COMPENSATION: HungReason.COMPENSATION_UNANSWERED,
}
"""Operation → why its branch hangs once it was unanswered for too long."""


def ready_phase(operations: Operations) -> BranchPhase:
    """The phase in which a branch with these operations has done its part before the decision."""
    return BranchPhase.PENDING if operations.first is None else BranchPhase.HELD


def asks(operations: Operations) -> Mapping[BranchPhase, Operation]:
    """Phase of a branch with these operations → the operation that is outstanding; other phases have none."""
    outstanding = {
        BranchPhase.PENDING: operations.first,
        BranchPhase.TRYING: operations.first,
        BranchPhase.CONFIRMING: operations.confirm,
        BranchPhase.CANCELLING: operations.cancel or operations.withdraw,
    }
    return {phase: operation for phase, operation in outstanding.items() if operation is not None}


def follows(operations: Operations) -> Mapping[tuple[Decision, BranchPhase], BranchPhase]:
    """What a decision entails for a branch with these operations that has no call in progress.

    (decision, phase) → its phase after the decision.
    """
    confirming = BranchPhase.CONFIRMED if operations.confirm is None else BranchPhase.CONFIRMING
    cancelling = BranchPhase.CANCELLED if operations.cancel is None else BranchPhase.CANCELLING
    entailed = {
        (Decision.CONFIRM, ready_phase(operations)): confirming,
        (Decision.CANCEL, BranchPhase.PENDING): BranchPhase.CANCELLED,  # nothing was sent, so nothing is undone
    }
    if operations.first is not None:
        entailed[Decision.CANCEL, BranchPhase.REFUSED] = cancelling
    if operations.first is not None and operations.withdraw is None:
        entailed |= {
            (Decision.CANCEL, BranchPhase.TRYING): cancelling,  # an unanswered first call may have had its effect
            (Decision.CANCEL, BranchPhase.HELD): cancelling,
        }
    return entailed


READY: Final = {kind: ready_phase(operations) for kind, operations in KINDS.items()}
"""Kind → the phase in which a branch has done its part before the decision."""

ASKS: Final = {
    (kind, phase): operation for kind, operations in KINDS.items() for phase, operation in asks(operations).items()
}
"""(kind, phase) of a branch → the operation that is outstanding; others have none."""

FOLLOWS: Final = {
    (kind, decision, phase): after
    for kind, operations in KINDS.items()
    for (decision, phase), after in follows(operations).items()
}
"""(kind, decision, phase of a branch with no call in progress) → its phase after the decision."""
