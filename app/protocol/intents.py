"""Resolutions that an operator wants the coordinator to make by a call (docs/reference/patterns.md, section 4).

Part of the state machine that steps.py drives, pure as it is.
"""

from typing import Final

from app.protocol.branches import SECOND_PHASES
from app.protocol.kinds import REFUSED_BECAUSE
from app.protocol.messages import Answered
from app.protocol.replacing import replace
from app.protocol.values import Branch, BranchPhase, HungReason, Resolution, Settled, Transaction
from holdfast.wire import Answer, Decision

PHASE_OF: Final = {Settled.CONFIRMED: BranchPhase.CONFIRMING, Settled.CANCELLED: BranchPhase.CANCELLING}
"""How a person wants a branch to be settled → the phase in which the call for that is made."""
DECIDES: Final = {Settled.CONFIRMED: Decision.CONFIRM, Settled.CANCELLED: Decision.CANCEL}
"""Likewise → the decision of which that would be the ordinary call."""


def turned(decision: Decision, branch: Branch) -> Branch:
    """The branch in the phase that a person wants, or back in that of the decision, unless a call is in progress."""
    if branch.intent is None or branch.calling is not None or branch.phase not in SECOND_PHASES:
        return branch
    phase, settled = PHASE_OF[branch.intent.settled], branch.intent.settled
    intent = None if DECIDES[settled] is decision else branch.intent
    if branch.phase is phase and branch.intent is intent:
        return branch
    return _anew(branch, phase, intent)


def sent_in_vain(transaction: Transaction, branch: Branch, answered: Answered) -> Branch:
    """What a person wants to be sent was not carried out: it hangs at once, because somebody is watching.

    If the opposite was done already, nothing has changed, and the ordinary call goes on.
    """
    if answered.already:
        ordinary = BranchPhase.CONFIRMING if transaction.decision is Decision.CONFIRM else BranchPhase.CANCELLING
        return _anew(branch, ordinary, None)
    if answered.in_progress:
        return branch
    return replace(branch, failures=branch.failures + 1, hung_reason=_why_in_vain(answered))


def _anew(branch: Branch, phase: BranchPhase, intent: Resolution | None) -> Branch:
    """The branch in another phase, in which nothing has been asked yet."""
    return replace(
        branch,
        phase=phase,
        intent=intent,
        failures=0,
        next_attempt_at=None,
        last_answer=None,
        asked_at=None,
        hung_reason=branch.hung_reason if intent is not None else None,  # what hung was the call that is given up
    )


def _why_in_vain(answered: Answered) -> HungReason:
    if answered.unauthorized:
        return HungReason.UNAUTHORIZED
    return REFUSED_BECAUSE[answered.operation] if answered.answer is Answer.REFUSED else HungReason.SEND_UNANSWERED
