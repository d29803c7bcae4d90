"""The tables of the state machine: which operation a phase asks for, where an answer leads, what a decision entails.

TCC is the only kind of branch today. Pure data; only steps.py applies it.
"""

from typing import Final

from app.protocol.values import BranchPhase
from holdfast.wire import Answer, Decision, Operation

FOLLOWS: Final = {
    (Decision.CONFIRM, BranchPhase.HELD): BranchPhase.CONFIRMING,
    (Decision.CANCEL, BranchPhase.PENDING): BranchPhase.CANCELLED,  # no Try was sent, so no Cancel is needed
    (Decision.CANCEL, BranchPhase.TRYING): BranchPhase.CANCELLING,  # an unanswered Try may have created a hold
    (Decision.CANCEL, BranchPhase.HELD): BranchPhase.CANCELLING,
    (Decision.CANCEL, BranchPhase.REFUSED): BranchPhase.CANCELLING,
}
"""(decision, phase of a branch with no call in progress) → its phase after the decision."""

ASKS: Final = {
    BranchPhase.PENDING: Operation.TRY,
    BranchPhase.TRYING: Operation.TRY,
    BranchPhase.CONFIRMING: Operation.CONFIRM,
    BranchPhase.CANCELLING: Operation.CANCEL,
}
"""Phase of a branch → the operation that is outstanding; other phases have none."""

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
