"""The rules of docs/reference/protocol.md, section 2, each as one function of one step of the machine.

A function raises AssertionError when the step breaks its rule. They compare the step with the ghost (what really
happened), so that a machine that deceives itself is found out too.
"""

import math
from collections.abc import Callable, Sequence
from typing import Final

from app.protocol import steps
from app.protocol.kinds import KINDS
from app.protocol.messages import BranchResolved, CancelRequested, Input, RetryRequested
from app.protocol.policy import Policy
from app.protocol.values import FINAL, Branch, BranchPhase, HungReason, Outcome, ReasonCode, Transaction, TryOrder
from holdfast.wire import Answer, Decision, Operation
from tests.protocol.ghost import PHASE_TWO, PHASES_TWO, BranchGhost, Edge, Ghost, hear

RETRY_AFTER_MAX_S: Final = 3600.0
REFUSED: Final = {
    Decision.CONFIRM: HungReason.CONFIRM_REFUSED,
    Decision.CANCEL: HungReason.CANCEL_REFUSED,
}
UNANSWERED: Final = {
    Decision.CONFIRM: HungReason.CONFIRM_UNANSWERED,
    Decision.CANCEL: HungReason.CANCEL_UNANSWERED,
}


class Violation(Exception):
    """A step that breaks a rule."""

    def __init__(self, invariant: str, edge: Edge, detail: str) -> None:
        super().__init__(f"{invariant}: {detail}\n{describe(edge)}")
        self.invariant = invariant


def advance(ghost: Ghost, before: Transaction, inputs: Sequence[Input], now: float, policy: Policy) -> Edge:
    """Take one step and check it against every rule."""
    heard = hear(ghost, before, tuple(inputs), now, policy)
    step = steps.advance(before, inputs, now, policy)
    stale = len(heard.effective) != len(inputs)
    edge = Edge(
        ghost=ghost,
        heard=heard.ghost,
        before=before,
        inputs=tuple(inputs),
        counted=heard.counted,
        resolved=heard.resolved,
        now=now,
        policy=policy,
        step=step,
        unstale=steps.advance(before, heard.effective, now, policy) if stale else step,
    )
    for invariant in INVARIANTS:
        try:
            invariant(edge)
        except AssertionError as e:
            raise Violation(invariant.__name__, edge, str(e)) from e
    return edge


def describe(edge: Edge) -> str:
    """The step in words, for whoever has to find out what went wrong."""
    lines = [f"at {edge.now} ({edge.before.try_order}, deadline {edge.before.deadline}): {edge.before.decision}"]
    lines += [f"  before {b!r}\n         {g!r}" for b, g in zip(edge.before.branches, edge.ghost.branches, strict=True)]
    lines += [f"  input  {each!r}" for each in edge.inputs]
    lines += [f"  after  {b!r}" for b in edge.after.branches]
    lines += [f"  call   {c.branch.name} {c.operation} {c.attempt}" for c in edge.step.calls]
    step = edge.step
    lines += [f"  {edge.after.decision} must_save={step.must_save} rests={step.rests} wake_at={step.wake_at}"]
    return "\n".join(lines)


# --- rules 1 and 2: save before act ------------------------------------------------------------------------------


def the_record_is_durable_before_the_first_try(edge: Edge) -> None:
    for call in edge.step.calls:
        if call.operation is Operation.TRY:
            recorded = edge.ghost.branches[edge.index(call.branch.name)].recorded
            assert recorded or edge.step.must_save, f"{call.branch.name}: the record says that no Try was sent"


def the_decision_is_durable_before_phase_two(edge: Edge) -> None:
    durable = edge.after.decision if edge.step.must_save else edge.ghost.decided
    for call in edge.step.calls:
        if call.operation in PHASE_TWO:
            assert durable is PHASE_TWO[call.operation], f"{call.operation} leaves while {durable} is durable"


def what_others_must_know_is_saved(edge: Edge) -> None:
    """A decision, the end, a resolution and a new hang are saved at once; a rest saves all there is."""
    before, after = edge.before, edge.after
    if edge.step.must_save:
        return
    assert after.decision is before.decision
    assert after.finished == before.finished
    for old, new in zip(before.branches, after.branches, strict=True):
        assert old.resolution == new.resolution
        assert old.hung_reason is new.hung_reason
        assert (old.phase is BranchPhase.PENDING) == (new.phase is BranchPhase.PENDING)
    assert not edge.step.rests or after == before


def the_decision_never_changes(edge: Edge) -> None:
    for earlier in (edge.before.decision, edge.ghost.decided, edge.ghost.phase_two):
        assert earlier in (Decision.UNDECIDED, edge.after.decision), f"{earlier} became {edge.after.decision}"
    if edge.before.decision is not Decision.UNDECIDED:
        assert edge.after.decided_at == edge.before.decided_at
        assert edge.before.reason in (None, edge.after.reason)


def never_confirm_and_cancel(edge: Edge) -> None:
    sent = {PHASE_TWO[c.operation] for c in edge.step.calls if c.operation in PHASE_TWO}
    sent |= {edge.ghost.phase_two} - {Decision.UNDECIDED}
    assert len(sent) <= 1, "both Confirm and Cancel were sent"


# --- rule 3: when to confirm -------------------------------------------------------------------------------------


def confirm_needs_every_hold(edge: Edge) -> None:
    if edge.decides and edge.after.decision is Decision.CONFIRM:
        for branch, ghost in zip(edge.before.branches, edge.heard.branches, strict=True):
            assert _is_ready(branch, ghost), f"{branch.name} does not hold"


def confirm_is_decided_before_the_deadline(edge: Edge) -> None:
    if edge.decides and edge.after.decision is Decision.CONFIRM:
        assert edge.now < edge.before.deadline


def confirm_is_decided_while_every_hold_is_safe(edge: Edge) -> None:
    if edge.decides and edge.after.decision is Decision.CONFIRM:
        for ghost in edge.heard.branches:
            assert ghost.safe_until is None or edge.now < ghost.safe_until


def a_decision_to_confirm_has_its_limit(edge: Edge) -> None:
    """It must be durable while it is right: before the deadline, and while every hold is safe. No other has one."""
    not_after = math.inf
    if edge.decides and edge.after.decision is Decision.CONFIRM:
        holds = [g.safe_until for g in edge.heard.branches if g.safe_until is not None]
        not_after = min([edge.before.deadline, *holds])
        assert edge.step.must_save, "it is made without being saved"
    assert math.isclose(edge.step.not_after, not_after), f"it may be saved until {edge.step.not_after}"


def what_came_too_late_is_not_decided_again(edge: Edge) -> None:
    """Whoever could not save a step in time makes it again, from the same inputs: all rules hold for that one, too."""
    not_after = edge.step.not_after
    if not_after < math.inf:
        again = steps.advance(edge.before, edge.inputs, not_after, edge.policy)
        assert again.transaction.decision is Decision.CANCEL, "it is confirmed all the same"
        assert again.not_after == math.inf, "it could be too late once more"
        advance(edge.ghost, edge.before, edge.inputs, not_after, edge.policy)


def nothing_stays_undecided_without_need(edge: Edge) -> None:
    if edge.after.decision is not Decision.UNDECIDED:
        return
    assert edge.now < edge.before.deadline, "the deadline has passed"
    branches = zip(edge.before.branches, edge.heard.branches, strict=True)
    assert not all(_is_ready(branch, ghost) for branch, ghost in branches), "every branch holds"
    holds = [g.safe_until for g in edge.heard.branches]
    assert all(h is None or edge.now < h for h in holds), "a hold is no longer safe"


def a_decision_has_its_reason(edge: Edge) -> None:
    if not edge.decides or edge.after.decision is Decision.CONFIRM:
        return
    reason = edge.after.reason
    assert reason is not None
    at = edge.index(reason.branch) if reason.branch else None
    match reason.code:
        case ReasonCode.REFUSED:
            answer = edge.counted.get(-1 if at is None else at)
            assert answer is not None, "nobody refused"
            assert (answer.operation, answer.answer) == (Operation.TRY, Answer.REFUSED), "it did not refuse"
        case ReasonCode.TIMED_OUT:
            assert edge.now >= edge.before.deadline, "there was time left"
        case ReasonCode.HOLD_EXPIRED:
            safe_until = None if at is None else edge.heard.branches[at].safe_until
            assert safe_until is not None, "it holds nothing"
            assert safe_until <= edge.now + 1e-6, "the hold was safe"
        case ReasonCode.REQUESTED | ReasonCode.OPERATOR:
            assert any(isinstance(i, CancelRequested) and i.code is reason.code for i in edge.inputs)


# --- rule 4: who gets a Cancel -----------------------------------------------------------------------------------


def cancel_reaches_every_branch_ever_tried(edge: Edge) -> None:
    for i, (old, new) in enumerate(zip(edge.before.branches, edge.after.branches, strict=True)):
        if new.phase is BranchPhase.CANCELLED and old.phase is not BranchPhase.CANCELLED:
            done = _acknowledged(edge, i, Operation.CANCEL)
            undoable = edge.ghost.branches[i].tried and _has(new, Operation.CANCEL)
            assert done or not undoable, f"{new.name} was tried and not cancelled"
            assert edge.after.decision is Decision.CANCEL


def a_branch_never_tried_gets_no_cancel(edge: Edge) -> None:
    for call in edge.step.calls:
        if call.operation is Operation.CANCEL:
            assert edge.ghost.branches[edge.index(call.branch.name)].tried, call.branch.name


def confirmed_means_acknowledged(edge: Edge) -> None:
    for i, (old, new) in enumerate(zip(edge.before.branches, edge.after.branches, strict=True)):
        if new.phase is BranchPhase.CONFIRMED and old.phase is not BranchPhase.CONFIRMED:
            done = _acknowledged(edge, i, Operation.CONFIRM) or not _has(new, Operation.CONFIRM)
            assert done, f"{new.name} did not say that it has confirmed"


# --- rules 5 and 6: who is asked, and when -----------------------------------------------------------------------


def no_cancel_while_the_own_try_is_under_way(edge: Edge) -> None:
    for call in edge.step.calls:
        under_way = edge.heard.branches[edge.index(call.branch.name)].under_way
        if call.operation is Operation.CANCEL and under_way is not None:
            assert under_way[0] is not Operation.TRY, call.branch.name


def a_branch_is_asked_what_its_kind_has(edge: Edge) -> None:
    for call in edge.step.calls:
        assert _has(call.branch, call.operation), f"{call.branch.name} of kind {call.branch.kind}: {call.operation}"


def nothing_under_way_is_asked_twice(edge: Edge) -> None:
    for call in edge.step.calls:
        assert edge.heard.branches[edge.index(call.branch.name)].under_way is None, call.branch.name
    names = [call.branch.name for call in edge.step.calls]
    assert len(names) == len(set(names))


def what_is_under_way_is_known(edge: Edge) -> None:
    asked = {call.branch.name: (call.operation, call.attempt) for call in edge.step.calls}
    for branch, ghost in zip(edge.after.branches, edge.heard.branches, strict=True):
        under_way = asked.get(branch.name, ghost.under_way)
        assert branch.calling is (under_way[0] if under_way else None), branch.name
        assert under_way is None or branch.attempts(under_way[0]) == under_way[1], branch.name


def a_refusal_decides_at_once(edge: Edge) -> None:
    if any((a.operation, a.answer) == (Operation.TRY, Answer.REFUSED) for a in edge.counted.values()):
        assert edge.after.decision is Decision.CANCEL


def a_lost_result_cancels(edge: Edge) -> None:
    """Confirm and Cancel carry the result: what is too long for that can't be confirmed."""
    if any(a.operation is Operation.TRY and a.too_long for a in edge.counted.values()):
        assert edge.after.decision is Decision.CANCEL


def a_try_leaves_only_while_undecided_and_in_time(edge: Edge) -> None:
    for call in edge.step.calls:
        if call.operation is Operation.TRY:
            assert edge.after.decision is Decision.UNDECIDED
            assert edge.now < edge.before.deadline
            assert edge.heard.branches[edge.index(call.branch.name)].safe_until is None, "it holds already"


def a_try_waits_for_the_holds_that_it_comes_after(edge: Edge) -> None:
    for call in edge.step.calls:
        if call.operation is Operation.TRY:
            assert _is_its_turn(edge, edge.index(call.branch.name)), call.branch.name


def nothing_waits_for_another_branch(edge: Edge) -> None:
    """A branch that is to be asked is asked in this step, unless its own failures make it wait."""
    for i, branch in enumerate(edge.after.branches):
        if branch.calling is None and _to_be_asked(edge, i):
            pauses = edge.heard.branches[i].pauses and not edge.decides
            assert pauses, f"{branch.name} is not asked, and has not failed"
            assert branch.next_attempt_at is not None, f"{branch.name} is not asked, and not due ever"
            assert branch.next_attempt_at > edge.now, f"{branch.name} is due and not asked"


def a_failure_backs_off(edge: Edge) -> None:
    """Full jitter within the ceiling of so many failures; `Retry-After` is honoured up to its maximum."""
    policy = edge.policy
    for i, answer in edge.counted.items():
        branch, times = edge.after.branches[i], edge.heard.branches[i].failures
        if answer.in_progress:
            times = edge.before.branches[i].attempts(answer.operation)
        if answer.answer is Answer.SUCCEEDED or times == 0 or edge.decides or branch.phase in FINAL:
            continue
        if answer.operation is Operation.TRY and edge.after.decision is not Decision.UNDECIDED:
            continue
        retried = any(isinstance(each, RetryRequested) for each in edge.inputs)
        assert branch.calling is None or retried, f"{branch.name} is asked again without a pause"
        if retried or branch.next_attempt_at is None:
            continue
        wait_s = branch.next_attempt_at - edge.now
        asked_s = min(answer.retry_after_s or 0.0, RETRY_AFTER_MAX_S)
        ceiling_s = max(asked_s, min(policy.retry_cap_s, policy.retry_base_s * 2.0 ** min(times - 1, 60)))
        assert asked_s - 1e-6 <= wait_s <= ceiling_s + 1e-6, f"{branch.name} waits {wait_s} s"


def a_retry_asks_everyone_now(edge: Edge) -> None:
    if edge.inputs and isinstance(edge.inputs[-1], RetryRequested):
        for i, branch in enumerate(edge.after.branches):
            if _to_be_asked(edge, i) or branch.calling:
                assert branch.calling is not None, f"{branch.name} is not asked"
                assert branch.failures == 0, f"{branch.name}: the back-off goes on"


def a_call_says_the_right_thing(edge: Edge) -> None:
    for call in edge.step.calls:
        i = edge.index(call.branch.name)
        before, after = edge.before.branches[i], edge.after.branches[i]
        assert call.transaction_id == edge.before.id
        assert call.attempt == before.attempts(call.operation) + 1
        assert (call.branch.participant, call.branch.endpoints) == (after.participant, after.endpoints)
        assert call.branch.payload == after.payload
        if call.operation is Operation.TRY:
            assert call.deadline == edge.before.deadline
            assert call.hold_ttl_s is not None
            left_s = edge.before.deadline - edge.now + edge.policy.hold_margin_s
            assert abs(call.hold_ttl_s - left_s) <= 0.001
        else:
            assert call.deadline is None
            assert call.hold_ttl_s is None
            answer = edge.counted.get(i)
            tried = answer is not None and answer.operation is Operation.TRY and answer.answer is Answer.SUCCEEDED
            assert call.branch.result == (answer.result if answer and tried else before.result)


# --- rule 7: stale answers ---------------------------------------------------------------------------------------


def stale_answers_change_nothing(edge: Edge) -> None:
    assert edge.step == edge.unstale


# --- rule 9: nothing vanishes ------------------------------------------------------------------------------------


def finished_means_that_every_branch_is_final(edge: Edge) -> None:
    after = edge.after
    final = all(b.phase in FINAL for b in after.branches)
    assert after.finished == final
    assert not after.finished or after.decision is not Decision.UNDECIDED
    assert (after.wake_at is None) == after.finished, "an unfinished transaction without wake_at is lost"
    for branch in after.branches:
        allowed = {
            Decision.UNDECIDED: {BranchPhase.PENDING, BranchPhase.TRYING, BranchPhase.HELD},
            Decision.CONFIRM: {BranchPhase.CONFIRMING, BranchPhase.CONFIRMED, BranchPhase.RESOLVED},
            Decision.CANCEL: {BranchPhase.TRYING, BranchPhase.CANCELLING, BranchPhase.CANCELLED, BranchPhase.RESOLVED},
        }
        assert branch.phase in allowed[after.decision], f"{branch.phase} under {after.decision}"
        assert branch.phase is not BranchPhase.TRYING or after.decision is Decision.UNDECIDED or branch.calling


def the_end_is_the_end(edge: Edge) -> None:
    if edge.after.finished:
        assert edge.step.calls == ()
        assert edge.step.rests
        assert edge.step.must_save != edge.before.finished
    if edge.before.finished:
        assert edge.after == edge.before


def a_final_branch_stays_as_it_is(edge: Edge) -> None:
    for old, new in zip(edge.before.branches, edge.after.branches, strict=True):
        assert old.phase not in FINAL or new == old


def only_a_person_resolves(edge: Edge) -> None:
    for i, (old, new) in enumerate(zip(edge.before.branches, edge.after.branches, strict=True)):
        assert (new.phase is BranchPhase.RESOLVED) == (new.resolution is not None)
        if i in edge.resolved:
            said = [each for each in edge.inputs if isinstance(each, BranchResolved) and each.branch == old.name]
            assert new.resolution is not None
            assert any(
                (s.settled, s.by, s.reason) == (new.resolution.settled, new.resolution.by, new.resolution.reason)
                for s in said
            )
            assert new.resolution.at == edge.now
        else:
            assert new.resolution == old.resolution


def mixed_means_resolved_against_the_decision(edge: Edge) -> None:
    after = edge.after
    if not after.finished:
        assert after.outcome is None
        return
    decided = {Decision.CONFIRM: "confirmed", Decision.CANCEL: "cancelled"}[after.decision]
    against = any(b.resolution is not None and b.resolution.settled.value != decided for b in after.branches)
    assert after.outcome is (Outcome.MIXED if against else Outcome(decided))


def the_lease_is_kept(edge: Edge) -> None:
    """The loop promises to be back at `step.wake_at`: before what is saved as `wake_at`, and in the future."""
    step, after = edge.step, edge.after
    if after.finished:
        return
    assert after.wake_at is not None
    assert step.wake_at > edge.now
    assert step.must_save or after.wake_at == edge.before.wake_at, "a promise that was not saved"
    if step.rests:
        assert step.wake_at == after.wake_at
        assert step.calls == ()
        assert all(b.calling is None for b in after.branches), "it rests while calls are under way"
        assert steps.is_at_rest(after, edge.policy), "others would take it for owned"
    else:
        assert step.wake_at < after.wake_at


def the_loop_wakes_in_time(edge: Edge) -> None:
    after, wake_at = edge.after, edge.step.wake_at
    if after.finished:
        return
    due = [b.next_attempt_at for i, b in enumerate(after.branches) if b.calling is None and _to_be_asked(edge, i)]
    if after.decision is Decision.UNDECIDED:
        due += [after.deadline, *(g.safe_until for g in edge.heard.branches)]
    elif any(b.phase not in FINAL and not b.hung_reason for b in after.branches):
        assert after.decided_at is not None
        due.append(after.decided_at + edge.policy.hung_after_s)
    assert wake_at <= min((d for d in due if d is not None), default=wake_at) + 1e-6


# --- delayed -----------------------------------------------------------------------------------------------------


def delayed_means_that_a_call_after_the_decision_failed(edge: Edge) -> None:
    """A participant that is still working has not failed; whoever failed is delayed until it is final."""
    for i, (old, new) in enumerate(zip(edge.before.branches, edge.after.branches, strict=True)):
        answer = edge.counted.get(i)
        failed = (
            answer is not None
            and answer.operation in PHASE_TWO
            and answer.answer is not Answer.SUCCEEDED
            and not answer.in_progress
        )
        assert new.is_delayed == (new.phase not in FINAL and (failed or old.is_delayed)), new.name
    assert edge.after.is_delayed == any(b.is_delayed for b in edge.after.branches)


# --- hung --------------------------------------------------------------------------------------------------------


def hung_is_noticed(edge: Edge) -> None:
    """After so many failures, so long after the decision, or at a refusal in phase two; and for no other reason.

    Before the decision after so many failures in so long a time, until the branch holds. At once, before and after it,
    when the participant doesn't accept who calls.
    """
    after = edge.after
    overdue = after.decided_at is not None and edge.now >= after.decided_at + edge.policy.hung_after_s
    for i, branch in enumerate(after.branches):
        ghost = BranchGhost() if edge.decides else edge.heard.branches[i]
        many = branch.phase in PHASES_TWO and ghost.failures >= edge.policy.hung_attempts
        expected = edge.before.branches[i].hung_reason
        counted = edge.counted.get(i)
        denied = counted is not None and counted.unauthorized
        undecided = edge.before.decision is Decision.UNDECIDED
        if expected is HungReason.TRY_UNANSWERED or (expected is HungReason.UNAUTHORIZED and undecided):
            denied = denied or (expected is HungReason.UNAUTHORIZED and branch.phase is not BranchPhase.HELD)
            expected = None
        if branch.phase in FINAL:
            expected = None
        elif after.decision is Decision.UNDECIDED:
            silent = HungReason.TRY_UNANSWERED if ghost.silent else expected
            expected = HungReason.UNAUTHORIZED if denied else silent
        elif ghost.refused:
            expected = REFUSED[after.decision]
        elif denied and not undecided and counted and counted.operation in PHASE_TWO:
            expected = expected if expected in REFUSED.values() else HungReason.UNAUTHORIZED
        elif (overdue or many) and expected not in (*REFUSED.values(), HungReason.UNAUTHORIZED):
            expected = UNANSWERED[after.decision]
        assert branch.hung_reason is expected, f"{branch.name}: {branch.hung_reason}, and not {expected}"


def hung_stays_until_the_branch_is_final(edge: Edge) -> None:
    for old, new in zip(edge.before.branches, edge.after.branches, strict=True):
        before_the_decision = edge.before.decision is Decision.UNDECIDED and old.hung_reason is HungReason.UNAUTHORIZED
        may_end = new.phase in FINAL or old.hung_reason is HungReason.TRY_UNANSWERED or before_the_decision
        assert not old.hung_reason or new.hung_reason or may_end, new.name
    hangs = any(b.hung_reason for b in edge.after.branches)
    assert (edge.after.hung_since is not None) == hangs
    if hangs and edge.before.hung_since is not None:
        assert edge.after.hung_since == edge.before.hung_since


# --- helpers -----------------------------------------------------------------------------------------------------


def _acknowledged(edge: Edge, index: int, operation: Operation) -> bool:
    answer = edge.counted.get(index)
    return answer is not None and answer.operation is operation and answer.answer is Answer.SUCCEEDED


def _to_be_asked(edge: Edge, index: int) -> bool:
    """Whether the branch has something left to be asked, by what really happened."""
    after, branch = edge.after, edge.after.branches[index]
    if branch.phase in FINAL:
        return False
    if after.decision is not Decision.UNDECIDED:
        return True
    return not _is_ready(branch, edge.heard.branches[index]) and _is_its_turn(edge, index)


def _is_its_turn(edge: Edge, index: int) -> bool:
    """Whether all that the branch comes after, also by way of others, has done its part before the decision."""
    branches, ghosts = edge.before.branches, edge.heard.branches
    ahead = set(range(index)) if edge.before.try_order is TryOrder.SEQUENTIAL else set[int]()
    found = [index]
    while found:
        found = [edge.index(name) for i in found for name in branches[i].after]
        ahead.update(found)
    return all(_is_ready(branches[i], ghosts[i]) for i in ahead)


def _is_ready(branch: Branch, ghost: BranchGhost) -> bool:
    """Whether it holds, or has nothing to do before the decision."""
    return ghost.safe_until is not None or not _has(branch, Operation.TRY)


def _has(branch: Branch, operation: Operation) -> bool:
    return operation in KINDS[branch.kind]


INVARIANTS: Final[tuple[Callable[[Edge], None], ...]] = (
    the_record_is_durable_before_the_first_try,
    the_decision_is_durable_before_phase_two,
    the_decision_never_changes,
    never_confirm_and_cancel,
    confirm_needs_every_hold,
    confirm_is_decided_before_the_deadline,
    confirm_is_decided_while_every_hold_is_safe,
    a_decision_to_confirm_has_its_limit,
    what_came_too_late_is_not_decided_again,
    cancel_reaches_every_branch_ever_tried,
    a_branch_never_tried_gets_no_cancel,
    confirmed_means_acknowledged,
    no_cancel_while_the_own_try_is_under_way,
    a_branch_is_asked_what_its_kind_has,
    nothing_under_way_is_asked_twice,
    a_refusal_decides_at_once,
    a_lost_result_cancels,
    a_try_leaves_only_while_undecided_and_in_time,
    a_try_waits_for_the_holds_that_it_comes_after,
    stale_answers_change_nothing,
    a_decision_has_its_reason,
    nothing_stays_undecided_without_need,
    what_is_under_way_is_known,
    a_failure_backs_off,
    a_retry_asks_everyone_now,
    nothing_waits_for_another_branch,
    a_call_says_the_right_thing,
    finished_means_that_every_branch_is_final,
    the_end_is_the_end,
    a_final_branch_stays_as_it_is,
    only_a_person_resolves,
    mixed_means_resolved_against_the_decision,
    delayed_means_that_a_call_after_the_decision_failed,
    hung_stays_until_the_branch_is_final,
    hung_is_noticed,
    what_others_must_know_is_saved,
    the_lease_is_kept,
    the_loop_wakes_in_time,
)
