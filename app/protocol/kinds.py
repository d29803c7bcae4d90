"""The tables of the state machine: what a kind of branch can do, which operation a phase asks for, where an answer
leads, and what a decision entails.

A kind is the set of the operations that its branches have: before the decision (Try), on Confirm and on Cancel. One
that is missing succeeds at once. Everything else about a kind is derived from that set, so that another kind is
another line of KINDS, and never a transition of its own. Pure data; only steps.py and branches.py apply it.
"""

from collections.abc import Mapping, Set
from typing import Final

from app.protocol.values import BranchPhase
from holdfast.wire import Answer, Decision, Kind, Operation

KINDS: Final[dict[Kind, Set[Operation]]] = {
    Kind.TCC: frozenset({Operation.TRY, Operation.CONFIRM, Operation.CANCEL}),
}
"""Kind of a branch → the operations that it has."""

ASKS: Final = {
    BranchPhase.PENDING: Operation.TRY,
    BranchPhase.TRYING: Operation.TRY,
    BranchPhase.CONFIRMING: Operation.CONFIRM,
    BranchPhase.CANCELLING: Operation.CANCEL,
}
"""Phase of a branch → the operation that is outstanding, if its kind has it; other phases have none."""

ANSWERED: Final = {
    (Operation.TRY, Answer.SUCCEEDED): BranchPhase.HELD,
    (Operation.TRY, Answer.REFUSED): BranchPhase.REFUSED,
    (Operation.TRY, Answer.UNANSWERED): BranchPhase.TRYING,
    (Operation.CONFIRM, Answer.SUCCEEDED): BranchPhase.CONFIRMED,
    (Operation.CONFIRM, Answer.REFUSED): BranchPhase.CONFIRMING,  # not done: hung at once, and still retried
    (Operation.CONFIRM, Answer.UNANSWERED): BranchPhase.CONFIRMING,
    (Operation.CANCEL, Answer.SUCCEEDED): BranchPhase.CANCELLED,
    (Operation.CANCEL, Answer.REFUSED): BranchPhase.CANCELLING,
    (Operation.CANCEL, Answer.UNANSWERED): BranchPhase.CANCELLING,
}
"""(operation, answer) → the branch's next phase."""


def ready_phase(operations: Set[Operation]) -> BranchPhase:
    """The phase in which a branch with these operations has done its part before the decision."""
    return BranchPhase.HELD if Operation.TRY in operations else BranchPhase.PENDING


def follows(operations: Set[Operation]) -> Mapping[tuple[Decision, BranchPhase], BranchPhase]:
    """What a decision entails for a branch with these operations that has no call in progress.

    (decision, phase) → its phase after the decision.
    """
    confirming, cancelling = _begun(Operation.CONFIRM, operations), _begun(Operation.CANCEL, operations)
    entailed = {
        (Decision.CONFIRM, ready_phase(operations)): confirming,
        (Decision.CANCEL, BranchPhase.PENDING): BranchPhase.CANCELLED,  # no Try was sent, so no Cancel is needed
    }
    if Operation.TRY in operations:
        entailed |= {
            (Decision.CANCEL, BranchPhase.TRYING): cancelling,  # an unanswered Try may have created a hold
            (Decision.CANCEL, BranchPhase.HELD): cancelling,
            (Decision.CANCEL, BranchPhase.REFUSED): cancelling,
        }
    return entailed


def _begun(operation: Operation, operations: Set[Operation]) -> BranchPhase:
    """The phase in which this operation is outstanding; if it is missing, that of its success."""
    return ANSWERED[operation, Answer.UNANSWERED if operation in operations else Answer.SUCCEEDED]


READY: Final = {kind: ready_phase(operations) for kind, operations in KINDS.items()}
"""Kind → the phase in which a branch has done its part before the decision."""

FOLLOWS: Final = {
    (kind, decision, phase): after
    for kind, operations in KINDS.items()
    for (decision, phase), after in follows(operations).items()
}
"""(kind, decision, phase of a branch with no call in progress) → its phase after the decision."""
