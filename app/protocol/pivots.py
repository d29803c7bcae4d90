"""The pivot of a transaction: when it may leave, and how it is withdrawn (docs/reference/patterns.md, section 3).

Part of the state machine that steps.py drives, pure as it is. What a pivot decides is decided there.
"""

from app.protocol.branches import Branches
from app.protocol.kinds import KINDS
from app.protocol.messages import Answered
from app.protocol.policy import Policy
from app.protocol.replacing import replace
from app.protocol.values import Branch, BranchPhase, Settled, Transaction
from holdfast.wire import Answer, Decision


def sent_pivot(transaction: Transaction) -> Branch | None:
    """The pivot, once it may have been sent: from then on nobody knows better than its participant."""
    branches = Branches.of(transaction.branches)
    if branches.pivot is None or branches[branches.pivot].phase is BranchPhase.PENDING:
        return None
    return branches[branches.pivot]


def pivot_needs_s(transaction: Transaction, policy: Policy) -> float:
    """How much longer all holds must be safe, so that a pivot whose turn it is can be sent."""
    branches = Branches.of(transaction.branches)
    if branches.pivot is None or not branches.is_turn(branches.pivot):
        return 0.0
    return call_timeout_s(branches[branches.pivot], policy)


def call_timeout_s(branch: Branch, policy: Policy) -> float:
    """Time limit of a call to this branch, in seconds."""
    return branch.call_timeout_s or policy.call_timeout_s


def withdraw(transaction: Transaction, now: float) -> Transaction:
    """Past the deadline, a pivot that doesn't answer is asked to make sure that it won't happen."""
    pivot = None if transaction.decision is not Decision.UNDECIDED else sent_pivot(transaction)
    if pivot is None or now < transaction.deadline or not may_be_withdrawn(pivot):
        return transaction
    branches = Branches.of(transaction.branches)
    assert branches.pivot is not None
    after = replace(pivot, phase=BranchPhase.CANCELLING, next_attempt_at=None)
    return replace(transaction, branches=branches.replaced({branches.pivot: after}))


def may_be_withdrawn(pivot: Branch) -> bool:
    """Whether this pivot waits for an answer, has no call in progress, and can be asked to withdraw."""
    offers = pivot.endpoints is None or KINDS[pivot.kind].withdraw in pivot.endpoints
    return offers and pivot.phase is BranchPhase.TRYING and pivot.calling is None and not pivot.cannot_withdraw


def answered_too_late(branch: Branch, answered: Answered) -> Branch:
    """A pivot answers after a person has resolved it. Nothing is decided by that, but it may contradict."""
    assert branch.resolution is not None
    withdraws = answered.operation is KINDS[branch.kind].withdraw
    happened = answered.already if withdraws else answered.answer is Answer.SUCCEEDED
    never = answered.answer is (Answer.SUCCEEDED if withdraws else Answer.REFUSED)
    contradicts = happened if branch.resolution.settled is Settled.CANCELLED else never
    after = replace(branch, calling=None, last_error=answered.error, contradicted=contradicts)
    return replace(after, result=answered.result) if happened else after
