"""THE state machine of a transaction: pure data in, pure data out.

Every transition of a transaction and its branches begins in this file. What concerns only pivots, results, intents or
what hangs is in a file of its own beside it. None has a clock, randomness or I/O: `now` is an argument, and the jitter
of a back-off is derived from the identity of the call. All of it must stay importable with the standard library alone
(and the vocabulary of `holdfast.wire`).

    step = advance(transaction, inputs, now, policy)

`step.transaction` is the transaction's new state, `step.calls` are the calls to make, and `step.must_save` says whether
the state must be saved before they are made. Section numbers refer to docs/reference/protocol.md.
"""

import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Final, assert_never

from app.protocol.backoff import back_off_s
from app.protocol.branches import (
    CALLING,
    FOLLOWS_DECISION,
    HUNG,
    INTENDED,
    NOT_FINAL,
    NOT_HUNG,
    NOT_READY,
    REFUSED,
    SECOND_PHASES,
    Branches,
    Facts,
    changed,
    has_its_turn,
)
from app.protocol.hung import hung_at, is_overdue, is_silent, no_longer_silent, notice_hung, silence_of
from app.protocol.intents import DECIDES, PHASE_OF, sent_in_vain, turned
from app.protocol.kinds import ANSWERED, ASKS, FOLLOWS, KINDS
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
from app.protocol.pivots import answered_too_late, call_timeout_s, may_be_withdrawn, pivot_needs_s, sent_pivot, withdraw
from app.protocol.policy import Policy
from app.protocol.replacing import replace
from app.protocol.results import results_for, too_long_for
from app.protocol.values import (
    FINAL,
    LATEST_S,
    REFUSALS,
    Branch,
    BranchPhase,
    HungReason,
    Reason,
    ReasonCode,
    Resolution,
    Settled,
    Transaction,
)
from holdfast.wire import Decision, Kind, Operation

HOLD_GUARD_MAX_S: Final = 5.0
"""A hold stops counting as safe a tenth of its TTL before it ends, but at most this many seconds before."""
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
    after = _decide(after, now, policy)
    after = withdraw(after, now)
    after = _follow_decision(after, now)
    after = _turn_to_intents(after)
    after, calls = _call(after, now, policy)
    after = notice_hung(after, now, policy)
    return _step(before, after, calls, now, policy)


def objection(transaction: Transaction, command: Command) -> Objection | None:
    """Why the state of `transaction` doesn't allow `command`, or None if it does."""
    match command:
        case CancelRequested():
            if transaction.decision is Decision.UNDECIDED and sent_pivot(transaction) is not None:
                return Objection.PIVOT_SENT
            return Objection.ALREADY_DECIDED if transaction.decision is Decision.CONFIRM else None
        case RetryRequested():
            return Objection.ALREADY_FINISHED if transaction.finished else None
        case BranchResolved():
            branch = transaction.branch(command.branch)
            if branch is None:
                return Objection.UNKNOWN_BRANCH
            if branch.final:
                return Objection.BRANCH_FINISHED
            if transaction.decision is Decision.UNDECIDED:
                is_open = branch.phase in (BranchPhase.TRYING, BranchPhase.CANCELLING)  # else its own answer decides
                decides = branch is sent_pivot(transaction) and is_open and not command.send
                return None if decides else Objection.NOT_DECIDED
            operations = KINDS[branch.kind]
            sent = operations.confirm if command.settled is Settled.CONFIRMED else operations.cancel
            return Objection.NOTHING_TO_SEND if command.send and sent is None else None
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
        return min(facts.try_due, facts.due) == -math.inf
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
            if transaction.decision is not Decision.UNDECIDED or sent_pivot(transaction) is not None:
                return transaction
            return _decided(transaction, Decision.CANCEL, Reason(code=each.code, detail=each.detail), now)
        case RetryRequested():
            return changed(transaction, range(len(transaction.branches)), _due_at_once)
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
    if branch.phase is BranchPhase.RESOLVED:
        after = answered_too_late(branch, answered)
        return replace(transaction, branches=branches.replaced({position: after}))
    assert ASKS[branch.kind, branch.phase] is answered.operation, f"{branch.phase} doesn't ask for {answered.operation}"
    phase = _phase_after(transaction, branch, answered)
    said: dict[str, Any] = {
        "phase": phase,
        "calling": None,
        "last_answer": branch.last_answer if answered.in_progress else answered.answer,
        "last_error": answered.error,
        "next_attempt_at": None,
    }
    if phase is BranchPhase.HELD:
        hold_until = _hold_until(transaction, branch, answered, policy)
        held = no_longer_silent(replace(branch, **said))
        after = replace(held, result=answered.result, failures=0, hold_until=hold_until)
    elif phase in FINAL:
        after = replace(branch, **said, failures=0, hung_reason=None, intent=None)
        settled = Settled.CONFIRMED if phase is BranchPhase.CONFIRMED else Settled.CANCELLED
        is_sent = branch.phase is PHASE_OF[settled] and DECIDES[settled] is not transaction.decision
        if branch.intent is not None and is_sent:  # whatever else was wanted since it left
            return _settled(transaction, position, after, replace(branch.intent, settled=settled, at=now))
        if branch.kind is Kind.RETRYABLE:
            after = replace(after, result=answered.result)
    elif (branch.kind, phase) in ASKS:
        after = _asked_in_vain(transaction, replace(branch, **said), answered, now, policy)
    else:
        after = replace(branch, **said)
    transaction = replace(transaction, branches=branches.replaced({position: after}))
    if phase is BranchPhase.HELD or (phase in FINAL and branch.kind is Kind.RETRYABLE):
        return _within_messages(transaction, position, answered, now, policy)
    return transaction


def _phase_after(transaction: Transaction, branch: Branch, answered: Answered) -> BranchPhase:
    """Where this answer leads. A withdrawal that comes too late is the success of what it was to prevent."""
    if transaction.decision is Decision.UNDECIDED and branch.phase is BranchPhase.CANCELLING:
        if answered.already:
            return BranchPhase.HELD
        if answered.no_route and branch.participant is not None:
            return BranchPhase.TRYING
    return ANSWERED[branch.phase if branch.phase in SECOND_PHASES else BranchPhase.TRYING, answered.answer]


def _within_messages(
    transaction: Transaction, position: int, answered: Answered, now: float, policy: Policy
) -> Transaction:
    """A result that its messages can't carry cancels, unless that is impossible: then they do without it."""
    branches = Branches.of(transaction.branches)
    branch = branches[position]
    error = too_long_for(branches, position, policy)
    if answered.too_long:
        error = answered.error or "the result is too long"
    if error is None:
        return transaction
    if branch.kind in (Kind.PIVOT, Kind.RETRYABLE):
        after = replace(branch, result=None, last_error=error)
        return replace(transaction, branches=branches.replaced({position: after}))
    if transaction.decision is not Decision.UNDECIDED:
        return transaction
    return _decided(
        transaction, Decision.CANCEL, Reason(code=ReasonCode.RESULT_TOO_LONG, branch=branch.name, detail=error), now
    )


def _asked_in_vain(transaction: Transaction, branch: Branch, answered: Answered, now: float, policy: Policy) -> Branch:
    """The branch waits before it is asked again. Each "still working" makes the pause longer, but is no failure."""
    times = branch.attempts(answered.operation) if answered.in_progress else branch.failures + 1
    wait_s = max(
        back_off_s(transaction.id, branch, times, policy), min(answered.retry_after_s or 0.0, RETRY_AFTER_MAX_S)
    )
    after = replace(branch, next_attempt_at=now + wait_s)
    if branch.intent is not None and branch.phase is PHASE_OF[branch.intent.settled]:
        return sent_in_vain(transaction, after, answered)
    waits_for_ever = branch.kind is Kind.PIVOT and now >= transaction.deadline  # no deadline ends that it works on
    if transaction.decision is Decision.UNDECIDED and answered.in_progress and waits_for_ever:
        is_new = is_silent(branch, policy.hung_attempts, now, policy) and branch.hung_reason is None
        return replace(after, hung_reason=HungReason.PIVOT_UNANSWERED) if is_new else after
    if transaction.decision is Decision.UNDECIDED and not answered.in_progress:
        is_new = branch.hung_reason is not HungReason.UNAUTHORIZED and is_silent(branch, times, now, policy)
        reason = silence_of(branch) if is_new else branch.hung_reason
        has_no_route = branch.phase is BranchPhase.TRYING and answered.operation is KINDS[branch.kind].withdraw
        return replace(
            after,
            failures=times,
            hung_reason=HungReason.UNAUTHORIZED if answered.unauthorized else reason,
            cannot_withdraw=branch.cannot_withdraw or has_no_route,
        )
    if has_its_turn(branch) and branch.hung_reason is None and is_overdue(branch, times, now, policy, answered):
        after = replace(after, hung_reason=silence_of(branch))
    if answered.in_progress:
        return after
    counts = answered.unauthorized and branch.phase in SECOND_PHASES and branch.hung_reason not in REFUSALS
    return replace(after, failures=times, hung_reason=HungReason.UNAUTHORIZED if counts else after.hung_reason)


def _hold_until(transaction: Transaction, branch: Branch, answered: Answered, policy: Policy) -> float:
    """When the hold stops counting as safe, measured from before the first Try was sent (section 2, rule 3).

    Only a Try's success is a hold; what an action has done doesn't end by itself.
    """
    if KINDS[branch.kind].first is not Operation.TRY:
        return LATEST_S
    assert branch.tried_at is not None
    ttl_s = transaction.deadline - branch.tried_at + policy.hold_margin_s
    if answered.hold_ttl_s is not None:
        ttl_s = min(ttl_s, answered.hold_ttl_s)
    return branch.tried_at + ttl_s - min(ttl_s / 10, HOLD_GUARD_MAX_S, policy.hold_margin_s)


def _due_at_once(branch: Branch) -> Branch:
    if (branch.kind, branch.phase) not in ASKS:
        return branch
    return replace(branch, failures=0, next_attempt_at=None)


def _resolved(transaction: Transaction, command: BranchResolved, now: float) -> Transaction:
    resolution = Resolution(settled=command.settled, by=command.by, at=now, reason=command.reason)
    branches = Branches.of(transaction.branches)
    position = branches.position(command.branch)
    assert position is not None, "a branch that isn't there is objected to"
    branch = branches[position]
    if command.send and branch.intent is None and DECIDES[command.settled] is transaction.decision:
        return replace(transaction, branches=branches.replaced({position: _due_at_once(branch)}))
    if command.send:
        intended = replace(branch, intent=resolution)
        return replace(transaction, branches=branches.replaced({position: intended}))
    if transaction.decision is not Decision.UNDECIDED:  # a pivot's late answer may contradict; no other one counts
        branch = replace(branch, calling=None)
    return _settled(transaction, position, branch, resolution)


def _settled(transaction: Transaction, position: int, branch: Branch, resolution: Resolution) -> Transaction:
    """The branch is resolved, by hand or by a call that a person wanted."""
    after = replace(
        branch,
        phase=BranchPhase.RESOLVED,
        resolution=resolution,
        intent=None,
        next_attempt_at=None,
        hung_reason=None,
    )
    branches = Branches.of(transaction.branches).replaced({position: after})
    reason = transaction.reason or Reason(code=ReasonCode.OPERATOR, branch=branch.name, detail=resolution.reason)
    return replace(transaction, branches=branches, reason=reason)


# --- the decision ----------------------------------------------------------------------------------------------------


def _decide(transaction: Transaction, now: float, policy: Policy) -> Transaction:
    if transaction.decision is not Decision.UNDECIDED:
        return transaction
    if (pivot := sent_pivot(transaction)) is not None:
        return _decide_by_pivot(transaction, pivot, now)
    branches = Branches.of(transaction.branches)
    if (position := branches.first(REFUSED)) is not None:
        refused = branches[position]
        reason = Reason(code=ReasonCode.REFUSED, branch=refused.name, detail=refused.last_error)
        return _decided(transaction, Decision.CANCEL, reason, now)
    if now >= transaction.deadline:
        return _decided(transaction, Decision.CANCEL, _timed_out(transaction), now)
    needed_s = pivot_needs_s(transaction, policy)
    if branches.facts.hold_until - needed_s <= now:
        expired = branches[branches.where(lambda facts: facts.hold_until - needed_s <= now)[0]]
        reason = Reason(
            code=ReasonCode.HOLD_EXPIRED,
            branch=expired.name,
            detail="the participant's hold expired before confirm could be decided",
        )
        return _decided(transaction, Decision.CANCEL, reason, now)
    if not branches.facts.traits & NOT_READY:
        return _decided(transaction, Decision.CONFIRM, None, now)
    return transaction


def _decide_by_pivot(transaction: Transaction, pivot: Branch, now: float) -> Transaction:
    """Its success or refusal is the decision, and so are its withdrawal and what a person says of it."""
    match pivot.phase:
        case BranchPhase.HELD:
            return _decided(transaction, Decision.CONFIRM, None, now)
        case BranchPhase.REFUSED:
            reason = Reason(code=ReasonCode.REFUSED, branch=pivot.name, detail=pivot.last_error)
            return _decided(transaction, Decision.CANCEL, reason, now)
        case BranchPhase.CANCELLED:
            detail = pivot.last_error or "the action was not answered by the deadline, and was withdrawn"
            reason = Reason(code=ReasonCode.TIMED_OUT, branch=pivot.name, detail=detail)
            return _decided(transaction, Decision.CANCEL, reason, now)
        case BranchPhase.RESOLVED:
            assert pivot.resolution is not None
            return _decided(transaction, DECIDES[pivot.resolution.settled], transaction.reason, now)
        case _:
            return transaction


def _timed_out(transaction: Transaction) -> Reason:
    branches = Branches.of(transaction.branches)
    position = branches.first(NOT_READY)
    if position is None:
        detail = "every branch held, but confirm could not be decided before the deadline"
        return Reason(code=ReasonCode.TIMED_OUT, detail=detail)
    missing = branches[position]
    operation = ASKS[missing.kind, missing.phase]
    what = "the Try" if operation is Operation.TRY else f"the {operation}"
    detail = missing.last_error or f"{what} was not answered by the deadline"
    return Reason(code=ReasonCode.TIMED_OUT, branch=missing.name, detail=detail)


def _decided(transaction: Transaction, decision: Decision, reason: Reason | None, now: float) -> Transaction:
    assert transaction.decision is Decision.UNDECIDED, "a decision never changes"
    hung = Branches.of(transaction.branches).where(lambda facts: facts.traits & HUNG)
    after = changed(transaction, hung, no_longer_silent)
    return replace(after, decision=decision, reason=reason, decided_at=now)


def _follow_decision(transaction: Transaction, now: float) -> Transaction:
    if transaction.decision is Decision.UNDECIDED or transaction.finished:
        return transaction
    free = Branches.of(transaction.branches).where(lambda facts: facts.traits & FOLLOWS_DECISION)
    after = changed(transaction, free, partial(_follow, transaction.decision))
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


def _turn_to_intents(transaction: Transaction) -> Transaction:
    """A branch that a person wants to be resolved by a call is asked for that, once its own call has finished."""
    branches = Branches.of(transaction.branches)
    if not branches.facts.traits & INTENDED:
        return transaction
    intended = branches.where(lambda facts: facts.traits & INTENDED)
    return changed(transaction, intended, partial(turned, transaction.decision))


# --- calls -----------------------------------------------------------------------------------------------------------


def _call(transaction: Transaction, now: float, policy: Policy) -> tuple[Transaction, tuple[Call, ...]]:
    branches = Branches.of(transaction.branches)
    asked: dict[int, Branch] = {}
    for position in _due(transaction, now):
        branch = branches[position]
        asked[position] = _asking(branch, ASKS[branch.kind, branch.phase], now)
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
    match branch.phase:
        case BranchPhase.CONFIRMING:
            asked = {"confirm_attempts": branch.confirm_attempts + 1}
        case BranchPhase.CANCELLING:
            asked = {"cancel_attempts": branch.cancel_attempts + 1}
        case _:
            tried_at = now if branch.tried_at is None else branch.tried_at
            asked = {"phase": BranchPhase.TRYING, "try_attempts": branch.try_attempts + 1, "tried_at": tried_at}
    if branch.asked_at is None and has_its_turn(branch):
        asked["asked_at"] = now
    return replace(branch, **asked, calling=operation, next_attempt_at=None)


def _milliseconds_up(seconds: float) -> float:
    """Rounded up, because a participant must not hold for less time than the coordinator counts on."""
    return math.ceil(seconds * 1000) / 1000


def _call_of(transaction: Transaction, branch: Branch, now: float, policy: Policy) -> Call:
    assert branch.calling is not None
    is_try = branch.calling is Operation.TRY
    deadline = transaction.deadline if branch.phase is BranchPhase.TRYING else None
    if branch.kind is Kind.PIVOT:
        deadline = now + call_timeout_s(branch, policy)  # the holds are safe until then
    return Call(
        transaction_id=transaction.id,
        branch=branch,
        operation=branch.calling,
        attempt=branch.attempts(branch.calling),
        traceparent=transaction.traceparent,
        hold_ttl_s=_milliseconds_up(transaction.deadline - now + policy.hold_margin_s) if is_try else None,
        deadline=deadline,
        results=results_for(transaction, branch) if branch.after else None,
    )


# --- what the loop must do -------------------------------------------------------------------------------------------


def _step(before: Transaction, after: Transaction, calls: tuple[Call, ...], now: float, policy: Policy) -> Step:
    not_after = _not_after(before, after, policy)
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
    carries_results = any(call.results is not None for call in calls)
    must_save = repeats or lease_ends or carries_results or _others_must_know(before, after)
    if must_save:
        after = replace(after, wake_at=now + policy.lease_s)
    assert after.wake_at is not None
    wake_at = min(due_at, after.wake_at - renew_before_s)
    return Step(transaction=after, calls=calls, must_save=must_save, rests=False, wake_at=wake_at, not_after=not_after)


def _not_after(before: Transaction, after: Transaction, policy: Policy) -> float:
    """From when on this step would be too late: a decision to confirm, or a pivot that leaves, at its limits."""
    hold_until = Branches.of(after.branches).facts.hold_until
    pivot = sent_pivot(after)
    if pivot is not None:
        leaves = after.decision is Decision.UNDECIDED and sent_pivot(before) is None
        return min(after.deadline, hold_until - call_timeout_s(pivot, policy)) if leaves else math.inf
    if before.decision is after.decision or after.decision is not Decision.CONFIRM:
        return math.inf
    return min(after.deadline, hold_until)


def _due_times(transaction: Transaction, now: float, policy: Policy) -> Iterable[float]:
    """When something is due even if no answer arrives."""
    facts = Branches.of(transaction.branches).facts
    yield _next_due(transaction)
    if transaction.decision is Decision.UNDECIDED:
        pivot = sent_pivot(transaction)
        if pivot is None:
            yield transaction.deadline
            yield facts.hold_until
        elif may_be_withdrawn(pivot):
            yield transaction.deadline
    elif facts.traits & NOT_HUNG:
        yield hung_at(transaction, policy)
    if facts.traits & CALLING:
        yield now + policy.lease_s


def _others_must_know(before: Transaction, after: Transaction) -> bool:
    """A crash may lose an answer, because the call can be repeated. It may not lose any of these."""
    if before.decision is not after.decision:
        return True
    return Branches.of(before.branches).news != Branches.of(after.branches).news
