"""THE state machine of a transaction: pure data in, pure data out.

Every transition of a transaction and its branches is in this file and nowhere else. It has no clock, no randomness and
no I/O: `now` is an argument, and the jitter of a back-off is derived from the identity of the call. It must stay
importable with the standard library alone (and the vocabulary of `holdfast.wire`).

    step = advance(transaction, inputs, now, policy)

`step.transaction` is the transaction's new state, `step.calls` are the calls to make, and `step.must_save` says whether
the state must be saved before they are made. Section numbers refer to docs/reference/protocol.md.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final, assert_never

from app.protocol.backoff import back_off_s
from app.protocol.branches import (
    CALLING,
    FOLLOWS_DECISION,
    HUNG,
    MAY_FALL_SILENT,
    NEWLY_REFUSED,
    NOT_FINAL,
    NOT_HUNG,
    NOT_READY,
    REFUSED,
    Branches,
    Facts,
)
from app.protocol.kinds import ANSWERED, ASKS, FOLLOWS
from app.protocol.messages import (
    Answered,
    BranchResolved,
    Call,
    CancelRequested,
    Command,
    Input,
    Objection,
    RetryRequested,
    Step,
)
from app.protocol.policy import Policy
from app.protocol.replacing import replace
from app.protocol.values import (
    FINAL,
    REFUSALS,
    Branch,
    BranchPhase,
    HungReason,
    Reason,
    ReasonCode,
    Resolution,
    Transaction,
)
from holdfast.wire import Answer, Decision, Operation

HOLD_GUARD_MAX_S: Final = 5.0
"""A hold stops counting as safe a tenth of its TTL before it ends, but at most this many seconds before."""
_SILENT_TRIES: Final = frozenset({HungReason.TRY_UNANSWERED, HungReason.UNAUTHORIZED})
RETRY_AFTER_MAX_S: Final = 3600.0
"""Upper bound for `Retry-After`, so that a participant that says "in ten years" doesn't strand a transaction."""


def advance(transaction: Transaction, inputs: Sequence[Input], now: float, policy: Policy) -> Step:
    """The state of `transaction` after `inputs` have arrived by `now`, and what to do next.

    Pure and total: late, duplicate and unexpected inputs have no effect (section 2, rule 7).
    """
    branches = Branches.of(transaction.branches)
    before = transaction if branches is transaction.branches else replace(transaction, branches=branches)
    after = before
    for each in inputs:
        after = _take(after, each, now, policy)
    after = _decide(after, now)
    after = _follow_decision(after, now)
    after, calls = _call(after, now, policy)
    after = _notice_hung(after, now, policy)
    return _step(before, after, calls, now, policy)


def objection(transaction: Transaction, command: Command) -> Objection | None:
    """Why the state of `transaction` doesn't allow `command`, or None if it does."""
    match command:
        case CancelRequested():
            return Objection.ALREADY_DECIDED if transaction.decision is Decision.CONFIRM else None
        case RetryRequested():
            return Objection.ALREADY_FINISHED if transaction.finished else None
        case BranchResolved():
            branch = transaction.branch(command.branch)
            if branch is None:
                return Objection.UNKNOWN_BRANCH
            if branch.final:
                return Objection.BRANCH_FINISHED
            return Objection.NOT_DECIDED if transaction.decision is Decision.UNDECIDED else None
        case _:
            assert_never(command)


def is_at_rest(transaction: Transaction, policy: Policy) -> bool:
    """Whether nobody works on a transaction that was read: recovery claims it when something is due.

    Otherwise its `wake_at` is the end of a lease. No call in progress is ever stored.
    """
    return transaction.finished or transaction.wake_at == min(_due_times(transaction, -math.inf, policy))


def awaited(transaction: Transaction) -> list[Branch]:
    """The branches whose answers the transaction needs next: called, or to be called, and not only after others."""
    branches = Branches.of(transaction.branches)
    may_try = _may_try(transaction)

    def is_awaited(facts: Facts) -> bool:
        if facts.traits & CALLING or facts.due < math.inf:
            return True
        return facts.try_due < math.inf if may_try else bool(facts.traits & FOLLOWS_DECISION)

    return [branches[position] for position in branches.where(is_awaited)]


def was_interrupted(transaction: Transaction) -> bool:
    """Whether a process worked on this unfinished transaction, as it is stored, and left it in the middle of a call.

    Otherwise it waits: each of the next calls has its time.
    """
    facts = Branches.of(transaction.branches).facts
    if transaction.decision is Decision.UNDECIDED:
        return facts.try_due == -math.inf
    return facts.due == -math.inf or bool(facts.traits & FOLLOWS_DECISION)


def broken(transaction: Transaction, now: float, policy: Policy) -> Transaction:
    """The transaction set aside after a broken invariant: listed as hung, and retried later.

    Not before a lease has passed: one of its calls may still be in progress, and no Cancel may overtake it.
    """
    branches = [b if b.final else replace(b, hung_reason=HungReason.INTERNAL_ERROR) for b in transaction.branches]
    hung_since = now if transaction.hung_since is None else transaction.hung_since
    return replace(
        transaction,
        branches=tuple(branches),
        hung_since=hung_since,
        wake_at=now + max(policy.retry_cap_s, policy.lease_s),
    )


# --- inputs ----------------------------------------------------------------------------------------------------------


def _take(transaction: Transaction, each: Input, now: float, policy: Policy) -> Transaction:
    match each:
        case Answered():
            return _answered(transaction, each, now, policy)
        case CancelRequested():
            if transaction.decision is not Decision.UNDECIDED:
                return transaction
            return _decided(transaction, Decision.CANCEL, Reason(code=each.code, detail=each.detail), now)
        case RetryRequested():
            return _changed(transaction, range(len(transaction.branches)), _due_at_once)
        case BranchResolved():
            return transaction if objection(transaction, each) else _resolved(transaction, each, now)
        case _:
            assert_never(each)


def _answered(transaction: Transaction, answered: Answered, now: float, policy: Policy) -> Transaction:
    branches = Branches.of(transaction.branches)
    position = branches.position(answered.branch)
    if position is None:
        return transaction
    branch = branches[position]
    if branch.calling is not answered.operation or branch.attempts(answered.operation) != answered.attempt:
        return transaction  # an answer to a call that is no longer expected
    assert ASKS[branch.phase] is answered.operation, f"{branch.phase} does not ask for {answered.operation}"
    phase = ANSWERED[answered.operation, answered.answer]
    said: dict[str, Any] = {
        "phase": phase,
        "calling": None,
        "last_answer": branch.last_answer if answered.in_progress else answered.answer,
        "last_error": answered.error,
        "next_attempt_at": None,
    }
    if phase is BranchPhase.HELD:
        hold_until = _hold_until(transaction, branch, answered, policy)
        held = _no_longer_silent(replace(branch, **said))
        after = replace(held, result=answered.result, failures=0, hold_until=hold_until)
    elif phase in FINAL:
        after = replace(branch, **said, failures=0, hung_reason=None)
    elif phase in ASKS:
        after = _asked_in_vain(transaction, replace(branch, **said), answered, now, policy)
    else:
        after = replace(branch, **said)
    transaction = replace(transaction, branches=branches.replaced({position: after}))
    if phase is BranchPhase.HELD and answered.too_long and transaction.decision is Decision.UNDECIDED:
        reason = Reason(code=ReasonCode.RESULT_TOO_LONG, branch=branch.name, detail=answered.error)
        return _decided(transaction, Decision.CANCEL, reason, now)
    return transaction


def _asked_in_vain(transaction: Transaction, branch: Branch, answered: Answered, now: float, policy: Policy) -> Branch:
    """The branch waits before it is asked again. Each "still working" makes the pause longer, but is no failure."""
    times = branch.attempts(answered.operation) if answered.in_progress else branch.failures + 1
    wait_s = max(
        back_off_s(transaction.id, branch, times, policy), min(answered.retry_after_s or 0.0, RETRY_AFTER_MAX_S)
    )
    after = replace(branch, next_attempt_at=now + wait_s)
    if answered.in_progress:
        return after
    if transaction.decision is Decision.UNDECIDED:
        is_silent = branch.hung_reason is not HungReason.UNAUTHORIZED and _is_silent(branch, times, now, policy)
        reason = HungReason.TRY_UNANSWERED if is_silent else branch.hung_reason
        return replace(after, failures=times, hung_reason=HungReason.UNAUTHORIZED if answered.unauthorized else reason)
    counts = answered.unauthorized and answered.operation is not Operation.TRY and branch.hung_reason not in REFUSALS
    return replace(after, failures=times, hung_reason=HungReason.UNAUTHORIZED if counts else branch.hung_reason)


def _hold_until(transaction: Transaction, branch: Branch, answered: Answered, policy: Policy) -> float:
    """When the hold stops counting as safe, measured from before the first Try was sent (section 2, rule 3)."""
    assert branch.tried_at is not None
    ttl_s = transaction.deadline - branch.tried_at + policy.hold_margin_s
    if answered.hold_ttl_s is not None:
        ttl_s = min(ttl_s, answered.hold_ttl_s)
    return branch.tried_at + ttl_s - min(ttl_s / 10, HOLD_GUARD_MAX_S, policy.hold_margin_s)


def _due_at_once(branch: Branch) -> Branch:
    if branch.phase not in ASKS:
        return branch
    return replace(branch, failures=0, next_attempt_at=None)


def _resolved(transaction: Transaction, command: BranchResolved, now: float) -> Transaction:
    resolution = Resolution(settled=command.settled, by=command.by, at=now, reason=command.reason)
    branches = Branches.of(transaction.branches)
    position = branches.position(command.branch)
    assert position is not None, "a branch that isn't there is objected to"
    after = replace(
        branches[position],
        phase=BranchPhase.RESOLVED,
        resolution=resolution,
        calling=None,
        next_attempt_at=None,
        hung_reason=None,
    )
    reason = transaction.reason or Reason(code=ReasonCode.OPERATOR, branch=command.branch, detail=command.reason)
    return replace(transaction, branches=branches.replaced({position: after}), reason=reason)


# --- the decision ----------------------------------------------------------------------------------------------------


def _decide(transaction: Transaction, now: float) -> Transaction:
    if transaction.decision is not Decision.UNDECIDED:
        return transaction
    branches = Branches.of(transaction.branches)
    if (position := branches.first(REFUSED)) is not None:
        refused = branches[position]
        reason = Reason(code=ReasonCode.REFUSED, branch=refused.name, detail=refused.last_error)
        return _decided(transaction, Decision.CANCEL, reason, now)
    if now >= transaction.deadline:
        return _decided(transaction, Decision.CANCEL, _timed_out(transaction), now)
    if branches.facts.hold_until <= now:
        expired = branches[branches.where(lambda facts: facts.hold_until <= now)[0]]
        reason = Reason(
            code=ReasonCode.HOLD_EXPIRED,
            branch=expired.name,
            detail="the participant's hold expired before confirm could be decided",
        )
        return _decided(transaction, Decision.CANCEL, reason, now)
    if not branches.facts.traits & NOT_READY:
        return _decided(transaction, Decision.CONFIRM, None, now)
    return transaction


def _timed_out(transaction: Transaction) -> Reason:
    branches = Branches.of(transaction.branches)
    position = branches.first(NOT_READY)
    if position is None:
        detail = "every branch held, but confirm could not be decided before the deadline"
        return Reason(code=ReasonCode.TIMED_OUT, detail=detail)
    missing = branches[position]
    detail = missing.last_error or "the Try was not answered by the deadline"
    return Reason(code=ReasonCode.TIMED_OUT, branch=missing.name, detail=detail)


def _decided(transaction: Transaction, decision: Decision, reason: Reason | None, now: float) -> Transaction:
    assert transaction.decision is Decision.UNDECIDED, "a decision never changes"
    hung = Branches.of(transaction.branches).where(lambda facts: facts.traits & HUNG)
    after = _changed(transaction, hung, _no_longer_silent)
    return replace(after, decision=decision, reason=reason, decided_at=now)


def _follow_decision(transaction: Transaction, now: float) -> Transaction:
    if transaction.decision is Decision.UNDECIDED or transaction.finished:
        return transaction
    free = Branches.of(transaction.branches).where(lambda facts: facts.traits & FOLLOWS_DECISION)
    after = _changed(transaction, free, partial(_follow, transaction.decision))
    if not Branches.of(after.branches).facts.traits & NOT_FINAL:
        return replace(after, finished_at=now)
    return after


def _follow(decision: Decision, branch: Branch) -> Branch:
    """A branch moves on to Confirm or Cancel once its own Try call has finished (section 2, rule 6)."""
    to = FOLLOWS.get((branch.kind, decision, branch.phase))
    if to is None or branch.calling is not None:
        return branch
    hung_reason = None if to in FINAL else branch.hung_reason
    return replace(branch, phase=to, failures=0, next_attempt_at=None, last_answer=None, hung_reason=hung_reason)


# --- calls -----------------------------------------------------------------------------------------------------------


def _call(transaction: Transaction, now: float, policy: Policy) -> tuple[Transaction, tuple[Call, ...]]:
    branches = Branches.of(transaction.branches)
    asked: dict[int, Branch] = {}
    for position in _due(transaction, now):
        branch = branches[position]
        asked[position] = _asking(branch, ASKS[branch.phase], now)
    if not asked:
        return transaction, ()
    after = replace(transaction, branches=branches.replaced(asked))
    return after, tuple(_call_of(transaction, branch, now, policy) for branch in asked.values())


def _due(transaction: Transaction, now: float) -> list[int]:
    """The positions of the branches to call: one that has an operation outstanding, if it is due and its turn."""
    branches = Branches.of(transaction.branches)
    due = branches.where(lambda facts: facts.due <= now)
    if _may_try(transaction):
        due += branches.where(lambda facts: facts.try_due <= now)
    return sorted(due)


def _next_due(transaction: Transaction) -> float:
    """When the next call of a branch without one in progress is due."""
    facts = Branches.of(transaction.branches).facts
    return min(facts.due, facts.try_due) if _may_try(transaction) else facts.due


def _may_try(transaction: Transaction) -> bool:
    return transaction.decision is Decision.UNDECIDED


def _asking(branch: Branch, operation: Operation, now: float) -> Branch:
    asked: dict[str, Any]
    match operation:
        case Operation.TRY:
            tried_at = now if branch.tried_at is None else branch.tried_at
            asked = {"phase": BranchPhase.TRYING, "try_attempts": branch.try_attempts + 1, "tried_at": tried_at}
        case Operation.CONFIRM:
            asked = {"confirm_attempts": branch.confirm_attempts + 1}
        case _:
            asked = {"cancel_attempts": branch.cancel_attempts + 1}
    return replace(branch, **asked, calling=operation, next_attempt_at=None)


def _milliseconds_up(seconds: float) -> float:
    """Rounded up, because a participant must not hold for less time than the coordinator counts on."""
    return math.ceil(seconds * 1000) / 1000


def _call_of(transaction: Transaction, branch: Branch, now: float, policy: Policy) -> Call:
    assert branch.calling is not None
    is_try = branch.calling is Operation.TRY
    return Call(
        transaction_id=transaction.id,
        branch=branch,
        operation=branch.calling,
        attempt=branch.attempts(branch.calling),
        traceparent=transaction.traceparent,
        hold_ttl_s=_milliseconds_up(transaction.deadline - now + policy.hold_margin_s) if is_try else None,
        deadline=transaction.deadline if is_try else None,
    )


# --- hung ------------------------------------------------------------------------------------------------------------


def _notice_hung(transaction: Transaction, now: float, policy: Policy) -> Transaction:
    """The transaction is hung as long as a branch is."""
    after = (
        transaction if transaction.decision is Decision.UNDECIDED else _notice_hung_branches(transaction, now, policy)
    )
    if not Branches.of(after.branches).facts.traits & HUNG:
        return after if after.hung_since is None else replace(after, hung_since=None)
    return replace(after, hung_since=now) if after.hung_since is None else after


def _notice_hung_branches(transaction: Transaction, now: float, policy: Policy) -> Transaction:
    overdue = _hung_at(transaction, policy) <= now

    def needs_attention(facts: Facts) -> bool:
        silent = facts.traits & MAY_FALL_SILENT and (overdue or facts.failures >= policy.hung_attempts)
        return bool(facts.traits & NEWLY_REFUSED or silent)

    noticed = Branches.of(transaction.branches).where(needs_attention)
    confirming = transaction.decision is Decision.CONFIRM
    return _changed(transaction, noticed, lambda branch: _hung(branch, confirming=confirming))


def _hung(branch: Branch, *, confirming: bool) -> Branch:
    """Mark a branch that needs an operator's attention. The mark stays until the branch is final."""
    if branch.last_answer is Answer.REFUSED:  # to a Confirm or Cancel: a Try's answer is cleared with its phase
        reason = HungReason.CONFIRM_REFUSED if confirming else HungReason.CANCEL_REFUSED
    else:
        reason = HungReason.CONFIRM_UNANSWERED if confirming else HungReason.CANCEL_UNANSWERED
    return replace(branch, hung_reason=reason)


def _is_silent(branch: Branch, failures: int, now: float, policy: Policy) -> bool:
    """Whether the Trys of this branch have failed often and for long, so that a person should look at it."""
    assert branch.tried_at is not None, "a Try has failed"
    return failures >= policy.hung_attempts and now >= branch.tried_at + policy.hung_after_s


def _no_longer_silent(branch: Branch) -> Branch:
    """Silence to a Try is no reason to be hung once the branch holds, or the transaction is decided."""
    return replace(branch, hung_reason=None) if branch.hung_reason in _SILENT_TRIES else branch


def _hung_at(transaction: Transaction, policy: Policy) -> float:
    assert transaction.decided_at is not None
    return transaction.decided_at + policy.hung_after_s


# --- what the loop must do -------------------------------------------------------------------------------------------


def _step(before: Transaction, after: Transaction, calls: tuple[Call, ...], now: float, policy: Policy) -> Step:
    not_after = _not_after(before, after)
    if after.finished:
        after = replace(after, wake_at=None)
        must_save = not before.finished
        return Step(transaction=after, calls=(), must_save=must_save, rests=True, wake_at=now, not_after=not_after)
    due_at = min(_due_times(after, now, policy))
    assert due_at < math.inf, "an unfinished transaction has something due"
    under_way = Branches.of(after.branches).facts.traits & CALLING
    if not under_way and due_at - now > policy.linger_s:
        after = replace(after, wake_at=due_at)
        must_save = after != before
        return Step(transaction=after, calls=(), must_save=must_save, rests=True, wake_at=due_at, not_after=not_after)
    renew_before_s = policy.lease_s / 3
    repeats = any(
        call.attempt > 1 for call in calls
    )  # a replica that lost its lease finds out before it repeats a call
    lease_ends = before.wake_at is None or before.wake_at - now <= renew_before_s
    must_save = repeats or lease_ends or _others_must_know(before, after)
    if must_save:
        after = replace(after, wake_at=now + policy.lease_s)
    assert after.wake_at is not None
    wake_at = min(due_at, after.wake_at - renew_before_s)
    return Step(transaction=after, calls=calls, must_save=must_save, rests=False, wake_at=wake_at, not_after=not_after)


def _not_after(before: Transaction, after: Transaction) -> float:
    """From when on this step would be too late: a decision to confirm, at the limits that it was made within."""
    if before.decision is after.decision or after.decision is not Decision.CONFIRM:
        return math.inf
    return min(after.deadline, Branches.of(after.branches).facts.hold_until)


def _due_times(transaction: Transaction, now: float, policy: Policy) -> Iterable[float]:
    """When something is due even if no answer arrives."""
    facts = Branches.of(transaction.branches).facts
    yield _next_due(transaction)
    if transaction.decision is Decision.UNDECIDED:
        yield transaction.deadline
        yield facts.hold_until
    elif facts.traits & NOT_HUNG:
        yield _hung_at(transaction, policy)
    if facts.traits & CALLING:
        yield now + policy.lease_s


def _others_must_know(before: Transaction, after: Transaction) -> bool:
    """A crash may lose an answer, because the call can be repeated. It may not lose any of these."""
    if before.decision is not after.decision:
        return True
    return Branches.of(before.branches).news != Branches.of(after.branches).news


def _changed(transaction: Transaction, positions: Iterable[int], change: Callable[[Branch], Branch]) -> Transaction:
    """The transaction with the branches at these positions changed."""
    branches = Branches.of(transaction.branches)
    changes = {i: branch for i in positions if (branch := change(branches[i])) is not branches[i]}
    return replace(transaction, branches=branches.replaced(changes)) if changes else transaction
