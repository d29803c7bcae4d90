"""The tables of the state machine: which operation a phase asks for, what an answer makes of it, and what follows
from the decision.

TCC is the one kind of branch today. Pure data: steps.py applies it and nothing else does.
"""

from typing import Final

from app.protocol.values import BranchPhase
from holdfast.wire import Answer, Decision, Operation

FOLLOWS: Final = {
    (Decision.CONFIRM, BranchPhase.HELD): BranchPhase.CONFIRMING,
    (Decision.CANCEL, BranchPhase.PENDING): BranchPhase.CANCELLED,  # no Try was sent: no call
    (Decision.CANCEL, BranchPhase.TRYING): BranchPhase.CANCELLING,  # an unanswered Try may have held
    (Decision.CANCEL, BranchPhase.HELD): BranchPhase.CANCELLING,
    (Decision.CANCEL, BranchPhase.REFUSED): BranchPhase.CANCELLING,
}
"""(decision, phase of a branch with no call under way) → what the branch becomes once that is decided."""

ASKS: Final = {
    BranchPhase.PENDING: Operation.TRY,
    BranchPhase.TRYING: Operation.TRY,
    BranchPhase.CONFIRMING: Operation.CONFIRM,
    BranchPhase.CANCELLING: Operation.CANCEL,
}
"""Phase of a branch → the operation that it waits for; the others wait for nothing."""

ANSWERED: Final = {
    (Operation.TRY, Answer.SUCCEEDED): BranchPhase.HELD,
    (Operation.TRY, Answer.REFUSED): BranchPhase.REFUSED,
    (Operation.TRY, Answer.UNANSWERED): BranchPhase.TRYING,
    (Operation.CONFIRM, Answer.SUCCEEDED): BranchPhase.CONFIRMED,
    (Operation.CONFIRM, Answer.REFUSED): BranchPhase.CONFIRMING,  # not done: hung at once, and repeated
    (Operation.CONFIRM, Answer.UNANSWERED): BranchPhase.CONFIRMING,
    (Operation.CANCEL, Answer.SUCCEEDED): BranchPhase.CANCELLED,
    (Operation.CANCEL, Answer.REFUSED): BranchPhase.CANCELLING,
    (Operation.CANCEL, Answer.UNANSWERED): BranchPhase.CANCELLING,
}
"""(operation, answer) → phase of the branch that was asked."""
