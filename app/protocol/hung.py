"""Which branches need an operator's attention, and why.

Part of the state machine that steps.py drives, pure as it is.
"""

from typing import Final

from app.protocol.branches import (
    HUNG,
    MAY_FALL_SILENT,
    NEWLY_REFUSED,
    SECOND_PHASES,
    Branches,
    Facts,
    changed,
)
from app.protocol.intents import PHASE_OF
from app.protocol.kinds import ASKS, KINDS, REFUSED_BECAUSE, UNANSWERED_BECAUSE
from app.protocol.messages import Answered
from app.protocol.policy import Policy
from app.protocol.replacing import replace
from app.protocol.values import Branch, HungReason, Transaction
from holdfast.wire import Answer, Decision, Kind, Operation

_SILENT_BEFORE_THE_DECISION: Final = frozenset(
    {
        HungReason.TRY_UNANSWERED,
        HungReason.ACTION_UNANSWERED,
        HungReason.PIVOT_UNANSWERED,
        HungReason.UNAUTHORIZED,
    }
)


def notice_hung(transaction: Transaction, now: float, policy: Policy) -> Transaction:
    """The transaction is hung as long as a branch is."""
    after = (
        transaction if transaction.decision is Decision.UNDECIDED else _notice_hung_branches(transaction, now, policy)
    )
    if not Branches.of(after.branches).facts.traits & HUNG:
        return after if after.hung_since is None else replace(after, hung_since=None)
    return replace(after, hung_since=now) if after.hung_since is None else after


def _notice_hung_branches(transaction: Transaction, now: float, policy: Policy) -> Transaction:
    overdue = hung_at(transaction, policy) <= now

    def needs_attention(facts: Facts) -> bool:
        silent = facts.traits & MAY_FALL_SILENT and (overdue or facts.failures >= policy.hung_attempts)
        return bool(facts.traits & NEWLY_REFUSED or silent)

    noticed = Branches.of(transaction.branches).where(needs_attention)
    return changed(transaction, noticed, _hung)


def _hung(branch: Branch) -> Branch:
    """Mark a branch that needs an operator's attention. The mark stays until the branch is final."""
    operation = ASKS[branch.kind, branch.phase]
    if branch.phase not in SECOND_PHASES:  # its own first call is still in progress
        operation = KINDS[branch.kind].cancel or operation
    if branch.last_answer is Answer.REFUSED:  # to a call of this phase: an earlier one's answer is cleared with it
        return replace(branch, hung_reason=REFUSED_BECAUSE[operation])
    return replace(branch, hung_reason=silence_of(branch, operation))


def silence_of(branch: Branch, operation: Operation | None = None) -> HungReason:
    """Why a branch hangs that isn't answered; by default it is the outstanding operation that isn't."""
    if branch.kind is Kind.PIVOT:
        return HungReason.PIVOT_UNANSWERED
    if branch.intent is not None and branch.phase is PHASE_OF[branch.intent.settled]:
        return HungReason.SEND_UNANSWERED
    return UNANSWERED_BECAUSE[operation or ASKS[branch.kind, branch.phase]]


def is_silent(branch: Branch, failures: int, now: float, policy: Policy) -> bool:
    """Whether the first calls of this branch have failed often and for long, so that a person should look at it."""
    assert branch.tried_at is not None, "a first call has failed"
    return failures >= policy.hung_attempts and now >= branch.tried_at + policy.hung_after_s


def is_overdue(branch: Branch, failures: int, now: float, policy: Policy, answered: Answered) -> bool:
    """Whether a branch that waited for its turn has failed often, or for long. "Still working" counts for time only."""
    assert branch.asked_at is not None, "it was asked"
    often = failures >= policy.hung_attempts and not answered.in_progress
    return often or now >= branch.asked_at + policy.hung_after_s


def no_longer_silent(branch: Branch) -> Branch:
    """Silence to a first call is no reason to be hung once the branch holds, or the transaction is decided."""
    return replace(branch, hung_reason=None) if branch.hung_reason in _SILENT_BEFORE_THE_DECISION else branch


def hung_at(transaction: Transaction, policy: Policy) -> float:
    """When a decided transaction's branches become hung by silence."""
    assert transaction.decided_at is not None
    return transaction.decided_at + policy.hung_after_s
