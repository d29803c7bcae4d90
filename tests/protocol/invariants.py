"""The rules of docs/reference/protocol.md, section 2, each as one function of one step of the machine.

A function raises AssertionError when the step breaks its rule. They compare the step with the ghost (what really
happened), so that a machine that deceives itself is found out too.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final, assert_never

from app.protocol import steps
from app.protocol.messages import BranchResolved, Call, CancelRequested, Input, RetryRequested
from app.protocol.policy import Policy
from app.protocol.values import FINAL, Branch, BranchPhase, HungReason, Outcome, ReasonCode, Settled, Transaction, Undo
from holdfast.json_text import JsonText
from holdfast.wire import Answer, Decision, Kind, Operation
from tests.protocol.ghost import (
    AFTER,
    ENDS,
    PARTS,
    PHASES_TWO,
    BranchGhost,
    Edge,
    Ghost,
    Part,
    ahead_of,
    comes_first,
    hear,
    is_over,
    is_ready,
    offers_cancel,
    part_of,
    pivot_of,
    sent_pivot,
    verdict_of,
)

RETRY_AFTER_MAX_S: Final = 3600.0
REFUSED: Final = {
    Operation.CONFIRM: HungReason.CONFIRM_REFUSED,
    Operation.CANCEL: HungReason.CANCEL_REFUSED,
    Operation.ACTION: HungReason.ACTION_REFUSED,
    Operation.COMPENSATION: HungReason.COMPENSATION_REFUSED,
}
UNANSWERED: Final = {
    Operation.TRY: HungReason.TRY_UNANSWERED,
    Operation.CONFIRM: HungReason.CONFIRM_UNANSWERED,
    Operation.CANCEL: HungReason.CANCEL_UNANSWERED,
    Operation.ACTION: HungReason.ACTION_UNANSWERED,
    Operation.COMPENSATION: HungReason.COMPENSATION_UNANSWERED,
}
SILENT_FIRST: Final = {
    Kind.TCC: HungReason.TRY_UNANSWERED,
    Kind.COMPENSABLE: HungReason.ACTION_UNANSWERED,
    Kind.CHECK: HungReason.ACTION_UNANSWERED,
    Kind.PIVOT: HungReason.PIVOT_UNANSWERED,
}
ALLOWED: Final = {
    Decision.UNDECIDED: {BranchPhase.PENDING, BranchPhase.TRYING, BranchPhase.HELD},
    Decision.CONFIRM: {BranchPhase.CONFIRMING, BranchPhase.CONFIRMED, BranchPhase.RESOLVED},
    Decision.CANCEL: {BranchPhase.TRYING, BranchPhase.CANCELLING, BranchPhase.CANCELLED, BranchPhase.RESOLVED},
}
LATE: Final = ("contradicted", "result", "last_error")


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
        late=heard.late,
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
    for i, part, call in _calls(edge):
        if part is Part.FIRST:
            recorded = edge.ghost.branches[i].recorded
            assert recorded or edge.step.must_save, f"{call.branch.name}: the record says that nothing was sent"


def the_decision_is_durable_before_phase_two(edge: Edge) -> None:
    """A call for the opposite is one that a person wants, and that is durable, too."""
    durable = edge.after.decision if edge.step.must_save else edge.ghost.decided
    for i, part, call in _calls(edge):
        if part not in AFTER:
            continue
        assert durable is not Decision.UNDECIDED, f"{call.operation} leaves, and no decision is durable"
        if durable is not AFTER[part]:
            assert edge.heard.branches[i].intent is ENDS[part], f"{call.operation} leaves while {durable} is durable"
            stored = edge.before.branches[i].intent
            is_stored = stored is not None and stored.settled is ENDS[part]
            assert edge.step.must_save or is_stored, f"{call.operation} leaves, and no record says that it was wanted"


def what_others_must_know_is_saved(edge: Edge) -> None:
    """A decision, the end, a resolution, a wish and a new hang are saved at once; a rest saves all there is."""
    before, after = edge.before, edge.after
    if edge.step.must_save:
        return
    assert after.decision is before.decision
    assert after.finished == before.finished
    for old, new in zip(before.branches, after.branches, strict=True):
        assert old.resolution == new.resolution
        assert old.intent == new.intent
        assert old.contradicted == new.contradicted
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
    sent = {AFTER[p] for i, p, _ in _calls(edge) if p in AFTER and edge.heard.branches[i].intent is not ENDS[p]}
    sent |= {edge.ghost.phase_two} - {Decision.UNDECIDED}
    assert len(sent) <= 1, "both Confirm and Cancel were sent"


def results_are_durable_before_they_are_told(edge: Edge) -> None:
    """A call of a branch that names others carries what they answered, as the record has it."""
    for i, _, call in _calls(edge):
        branch = edge.before.branches[i]
        if not branch.after:
            assert call.results is None, f"{branch.name} comes after none, and is told results"
            continue
        assert call.results is not None, f"{branch.name} is told no results"
        assert list(call.results) == list(branch.after)
        for name, result in call.results.items():
            ghost = edge.heard.branches[edge.index(name)]
            assert result == _told(edge, name), f"{branch.name} is told {result} of {name}"
            assert edge.step.must_save or ghost.kept == ghost.result, f"{name}'s result is told and not saved"


# --- rule 3: when to confirm -------------------------------------------------------------------------------------


def confirm_needs_every_hold(edge: Edge) -> None:
    """Unless a person says of a pivot that it was done: then all others hold."""
    if edge.decides and edge.after.decision is Decision.CONFIRM:
        for i, (branch, ghost) in enumerate(zip(edge.before.branches, edge.heard.branches, strict=True)):
            assert is_ready(branch, ghost) or i in edge.resolved, f"{branch.name} does not hold"


def confirm_is_decided_before_the_deadline(edge: Edge) -> None:
    if edge.decides and edge.after.decision is Decision.CONFIRM and _sent_pivot(edge) is None:
        assert edge.now < edge.before.deadline


def confirm_is_decided_while_every_hold_is_safe(edge: Edge) -> None:
    if edge.decides and edge.after.decision is Decision.CONFIRM and _sent_pivot(edge) is None:
        for ghost in edge.heard.branches:
            assert ghost.safe_until is None or edge.now < ghost.safe_until


def a_decision_to_confirm_has_its_limit(edge: Edge) -> None:
    """It must be durable while it is right: before the deadline, and while every hold is safe. No other has one.

    So must the record that a pivot was sent, while there is time for its call.
    """
    not_after = math.inf
    holds = [g.safe_until for g in edge.heard.branches if g.safe_until is not None]
    leaves = next(
        (call.branch for i, _, call in _first_calls(edge) if edge.before.branches[i].kind is Kind.PIVOT), None
    )
    if edge.decides and edge.after.decision is Decision.CONFIRM and _sent_pivot(edge) is None:
        not_after = min([edge.before.deadline, *holds])
        assert edge.step.must_save, "it is made without being saved"
    elif leaves is not None:
        needed_s = _time_limit_s(edge, leaves)
        not_after = min([edge.before.deadline, *(h - needed_s for h in holds)])
        assert edge.step.must_save, "it leaves without being recorded"
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
    if edge.after.decision is not Decision.UNDECIDED or _sent_pivot(edge) is not None:
        return
    assert edge.now < edge.before.deadline, "the deadline has passed"
    pairs = list(zip(edge.before.branches, edge.heard.branches, strict=True))
    assert not all(is_ready(branch, ghost) for branch, ghost in pairs), "every branch holds"
    pivot = pivot_of(edge.before)
    may_leave = pivot is not None and all(is_ready(b, g) for b, g in pairs if comes_first(b))
    needed_s = _time_limit_s(edge, edge.before.branches[pivot]) if pivot is not None and may_leave else 0.0
    holds = [g.safe_until for _, g in pairs]
    assert all(h is None or edge.now < h - needed_s for h in holds), "a hold is no longer safe"


def a_decision_has_its_reason(edge: Edge) -> None:
    reason, settled = edge.after.reason, _sent_pivot(edge) in edge.resolved
    if not edge.decides or (edge.after.decision is Decision.CONFIRM and not settled):
        return
    assert reason is not None
    at = edge.index(reason.branch) if reason.branch else None
    match reason.code:
        case ReasonCode.REFUSED:
            answer = edge.counted.get(-1 if at is None else at)
            assert at is not None
            assert answer is not None, "nobody refused"
            assert (edge.part(at), answer.answer) == (Part.FIRST, Answer.REFUSED), "it did not refuse"
        case ReasonCode.TIMED_OUT:
            assert edge.now >= edge.before.deadline, "there was time left"
        case ReasonCode.HOLD_EXPIRED:
            safe_until = None if at is None else edge.heard.branches[at].safe_until
            assert safe_until is not None, "it holds nothing"
            pivot = pivot_of(edge.before)
            needed_s = 0.0 if pivot is None else _time_limit_s(edge, edge.before.branches[pivot])
            assert safe_until - needed_s <= edge.now + 1e-6, "the hold was safe"
        case ReasonCode.OPERATOR if settled:
            assert at == _sent_pivot(edge)
        case ReasonCode.REQUESTED | ReasonCode.OPERATOR:
            assert any(isinstance(i, CancelRequested) and i.code is reason.code for i in edge.inputs)
        case ReasonCode.RESULT_TOO_LONG:
            assert at is not None
            assert _is_too_long(edge, at), "its result can be told"
        case _:
            assert_never(reason.code)


# --- the pivot ---------------------------------------------------------------------------------------------------


def only_its_own_answer_or_a_person_decides_over_a_sent_pivot(edge: Edge) -> None:
    pivot = _sent_pivot(edge)
    if pivot is None or edge.before.decision is not Decision.UNDECIDED:
        return
    verdict = verdict_of(edge.counted.get(pivot))
    if pivot in edge.resolved:
        said = next(e for e in edge.inputs if isinstance(e, BranchResolved) and edge.index(e.branch) == pivot)
        verdict = {Settled.CONFIRMED: Decision.CONFIRM, Settled.CANCELLED: Decision.CANCEL}[said.settled]
    assert edge.after.decision is (verdict or Decision.UNDECIDED), f"the pivot says {verdict}"


def a_pivot_leaves_when_all_others_hold_for_long_enough(edge: Edge) -> None:
    for i, part, call in _first_calls(edge):
        if part is Part.FIRST and call.branch.kind is Kind.PIVOT:
            needed_s = _time_limit_s(edge, call.branch)
            for branch, ghost in zip(edge.before.branches, edge.heard.branches, strict=True):
                if comes_first(branch):
                    assert ghost.safe_until is not None, f"{branch.name} does not hold"
                    assert edge.now + needed_s < ghost.safe_until, f"{branch.name} may end while {i} is called"


def past_the_deadline_a_pivot_is_only_withdrawn(edge: Edge) -> None:
    for i, part, call in _calls(edge):
        if call.branch.kind is Kind.PIVOT:
            withdraws = edge.now >= edge.before.deadline and offers_cancel(call.branch, edge.heard.branches[i])
            assert part is (Part.WITHDRAW if withdraws else Part.FIRST), f"{call.operation} is sent"
            assert edge.after.decision is Decision.UNDECIDED, "it is decided"
            assert edge.heard.branches[i].tried or part is Part.FIRST, "what was never sent is withdrawn"


def a_late_answer_of_a_resolved_pivot_may_contradict(edge: Edge) -> None:
    for i, (old, new) in enumerate(zip(edge.before.branches, edge.after.branches, strict=True)):
        verdict = verdict_of(edge.late.get(i))
        if verdict is None:
            assert new.contradicted == old.contradicted
        else:
            assert new.resolution is not None
            agrees = new.resolution.settled is ENDS[Part.CONFIRM if verdict is Decision.CONFIRM else Part.UNDO]
            assert new.contradicted != agrees, f"{new.name} says {verdict}"


# --- rule 4: who gets a Cancel -----------------------------------------------------------------------------------


def cancel_reaches_every_branch_ever_tried(edge: Edge) -> None:
    """And no other decision does. A pivot is cancelled if it says so, a check when there is no more to be asked."""
    for i, (old, new) in enumerate(zip(edge.before.branches, edge.after.branches, strict=True)):
        if new.phase is BranchPhase.CANCELLED and old.phase is not BranchPhase.CANCELLED:
            undoable = edge.ghost.branches[i].tried and Part.UNDO in PARTS[new.kind]
            assert _acknowledged(edge, i, Part.UNDO) or not undoable, f"{new.name} was tried and not undone"
            assert edge.after.decision is Decision.CANCEL


def a_branch_never_tried_gets_no_cancel(edge: Edge) -> None:
    for i, part, call in _calls(edge):
        if part in (Part.UNDO, Part.WITHDRAW):
            assert edge.ghost.branches[i].tried, call.branch.name


def confirmed_means_acknowledged(edge: Edge) -> None:
    for i, (old, new) in enumerate(zip(edge.before.branches, edge.after.branches, strict=True)):
        if new.phase is BranchPhase.CONFIRMED and old.phase is not BranchPhase.CONFIRMED:
            done = _acknowledged(edge, i, Part.CONFIRM) or Part.CONFIRM not in PARTS[new.kind]
            assert done, f"{new.name} did not say that it has confirmed"
            assert edge.after.decision is Decision.CONFIRM


# --- rules 5 and 6: who is asked, and when -----------------------------------------------------------------------


def no_cancel_while_the_own_try_is_under_way(edge: Edge) -> None:
    for i, part, call in _calls(edge):
        under_way = edge.heard.branches[i].under_way
        if part in (Part.UNDO, Part.WITHDRAW) and under_way is not None:
            assert part_of(call.branch.kind, under_way[0]) is not Part.FIRST, call.branch.name


def a_branch_is_asked_what_its_kind_has(edge: Edge) -> None:
    for _, part, call in _calls(edge):
        assert part is not None, f"{call.branch.name} of kind {call.branch.kind}: {call.operation}"


def nothing_under_way_is_asked_twice(edge: Edge) -> None:
    for i, _, call in _calls(edge):
        assert edge.heard.branches[i].under_way is None, call.branch.name
    names = [call.branch.name for call in edge.step.calls]
    assert len(names) == len(set(names))


def what_is_under_way_is_known(edge: Edge) -> None:
    asked = {call.branch.name: (call.operation, call.attempt) for call in edge.step.calls}
    for branch, ghost in zip(edge.after.branches, edge.heard.branches, strict=True):
        under_way = asked.get(branch.name, ghost.under_way)
        assert branch.calling is (under_way[0] if under_way else None), branch.name
        assert under_way is None or branch.attempts(under_way[0]) == under_way[1], branch.name


def a_refusal_decides_at_once(edge: Edge) -> None:
    if any(edge.part(i) is Part.FIRST and a.answer is Answer.REFUSED for i, a in edge.counted.items()):
        assert edge.after.decision is Decision.CANCEL


def a_lost_result_cancels(edge: Edge) -> None:
    """Later calls carry the result: what is too long for them can't be confirmed. Nothing can be done about a pivot's.

    Nor about a retryable step's: both go without.
    """
    for i, answer in edge.counted.items():
        if answer.answer is Answer.SUCCEEDED and _is_too_long(edge, i):
            if edge.part(i) is Part.FIRST and comes_first(edge.before.branches[i]):
                assert edge.after.decision is Decision.CANCEL
            elif edge.before.branches[i].kind in (Kind.PIVOT, Kind.RETRYABLE):
                assert edge.after.branches[i].result is None, "it is told all the same"
                assert edge.after.branches[i].last_error is not None, "nobody is told why"


def a_try_leaves_only_while_undecided_and_in_time(edge: Edge) -> None:
    for i, part, _ in _calls(edge):
        if part is Part.FIRST:
            assert edge.after.decision is Decision.UNDECIDED
            assert edge.now < edge.before.deadline or _sent_pivot(edge) == i
            assert edge.heard.branches[i].safe_until is None, "it holds already"


def a_try_waits_for_the_holds_that_it_comes_after(edge: Edge) -> None:
    for i, part, call in _calls(edge):
        if part is Part.FIRST:
            assert _is_its_turn(edge, i), call.branch.name


def a_retryable_step_waits_for_the_ends_that_it_comes_after(edge: Edge) -> None:
    for i, part, call in _calls(edge):
        if part is Part.CONFIRM and call.branch.kind is Kind.RETRYABLE:
            assert _is_its_turn(edge, i), call.branch.name


def in_reverse_nothing_is_undone_before_what_came_after_it(edge: Edge) -> None:
    for i, part, call in _calls(edge):
        if part is Part.UNDO:
            assert _may_be_undone(edge, i), call.branch.name


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
        if edge.part(i) is Part.FIRST and edge.after.decision is not Decision.UNDECIDED:
            continue
        asks_other = branch.calling not in (None, answer.operation)
        if asks_other or answer.already or edge.before.branches[i].intent != branch.intent:
            continue  # of what is asked now, it has failed nothing
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
        part = part_of(before.kind, call.operation)
        if before.kind is Kind.PIVOT:
            assert call.deadline == edge.now + _time_limit_s(edge, before)
        else:
            assert call.deadline == (edge.before.deadline if part is Part.FIRST else None)
        if call.operation is Operation.TRY:
            assert call.hold_ttl_s is not None
            left_s = edge.before.deadline - edge.now + edge.policy.hold_margin_s
            assert abs(call.hold_ttl_s - left_s) <= 0.001
        else:
            assert call.hold_ttl_s is None
            assert call.branch.result == edge.heard.branches[i].result


# --- rule 7: stale answers ---------------------------------------------------------------------------------------


def stale_answers_change_nothing(edge: Edge) -> None:
    assert edge.step == edge.unstale


# --- rule 9: nothing vanishes ------------------------------------------------------------------------------------


def finished_means_that_every_branch_is_final(edge: Edge) -> None:
    after = edge.after
    final = all(b.phase in FINAL for b in after.branches)
    awaits = any(g.under_way and g.ended for g in edge.heard.branches)  # an answer that may contradict
    assert after.finished == (final and not awaits)
    assert not after.finished or after.decision is not Decision.UNDECIDED
    assert (after.wake_at is None) == after.finished, "an unfinished transaction without wake_at is lost"
    for branch, ghost in zip(after.branches, edge.heard.branches, strict=True):
        allowed = ALLOWED[after.decision]
        if branch.kind is Kind.PIVOT and after.decision is Decision.UNDECIDED:
            allowed = allowed | {BranchPhase.CANCELLING}
        if branch.intent is not None:
            allowed = allowed | set(PHASES_TWO)
        assert branch.phase in allowed, f"{branch.phase} under {after.decision}"
        assert (branch.intent is None) == (ghost.intent is None) or branch.intent is None
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
        late = replace(old, calling=None, **{name: getattr(new, name) for name in LATE}) if old.calling else old
        assert old.phase not in FINAL or new in (old, late)


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
        elif new.resolution != old.resolution:  # what a person wanted to be sent was done
            wanted = {edge.ghost.branches[i].turned, edge.ghost.branches[i].intent}
            assert edge.heard.branches[i].ended
            assert new.resolution is not None
            assert new.resolution.settled in wanted
            assert ENDS.get(edge.part(i) or Part.FIRST) is new.resolution.settled


def mixed_means_resolved_against_the_decision(edge: Edge) -> None:
    after = edge.after
    if not after.finished:
        assert after.outcome is None
        return
    decided = {Decision.CONFIRM: "confirmed", Decision.CANCEL: "cancelled"}[after.decision]
    against = any(
        (b.resolution is not None and b.resolution.settled.value != decided) or b.contradicted for b in after.branches
    )
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
    pivot = _sent_pivot(edge)
    pivot_leaves = any(c.branch.kind is Kind.PIVOT for c in edge.step.calls)
    if after.decision is Decision.UNDECIDED and pivot is None and not pivot_leaves:
        due += [after.deadline, *(g.safe_until for g in edge.heard.branches)]
    elif after.decision is Decision.UNDECIDED:
        index = pivot_of(after)
        assert index is not None
        waits = after.branches[index].calling is None and edge.now < after.deadline
        due += [after.deadline] if waits and offers_cancel(after.branches[index], edge.heard.branches[index]) else []
    elif any(
        b.phase not in FINAL and not b.hung_reason and not _takes_turns(edge, i) for i, b in enumerate(after.branches)
    ):
        assert after.decided_at is not None
        due.append(after.decided_at + edge.policy.hung_after_s)
    assert wake_at <= min((d for d in due if d is not None), default=wake_at) + 1e-6


# --- delayed -----------------------------------------------------------------------------------------------------


def delayed_means_that_a_call_after_the_decision_failed(edge: Edge) -> None:
    """A participant that is still working has not failed; whoever failed is delayed until it is final."""
    for i, (old, new) in enumerate(zip(edge.before.branches, edge.after.branches, strict=True)):
        answer = edge.counted.get(i)
        if edge.part(i) is Part.WITHDRAW or edge.before.branches[i].intent or edge.heard.branches[i].intent:
            continue
        if old.kind is Kind.PIVOT:
            continue  # it delays the decision, and nothing after it
        failed = (
            answer is not None
            and edge.part(i) in AFTER
            and answer.answer is not Answer.SUCCEEDED
            and not answer.in_progress
        )
        if not _wishes(edge, i):
            assert new.is_delayed == (new.phase not in FINAL and (failed or old.is_delayed)), new.name
    is_decided = edge.after.decision is not Decision.UNDECIDED
    assert edge.after.is_delayed == (is_decided and any(b.is_delayed for b in edge.after.branches))


# --- hung --------------------------------------------------------------------------------------------------------


def hung_is_noticed(edge: Edge) -> None:
    """After so many failures, so long after the decision, or at a refusal after it; and for no other reason.

    Before the decision after so many failures in so long a time, until the branch holds. At once, before and after it,
    when the participant doesn't accept who calls. What waits for its turn isn't hung before it was asked.
    """
    after = edge.after
    overdue = after.decided_at is not None and edge.now >= after.decided_at + edge.policy.hung_after_s
    for i, branch in enumerate(after.branches):
        ghost, old = edge.heard.branches[i], edge.before.branches[i]
        if edge.decides:
            ghost = BranchGhost()
        if edge.ghost.branches[i].intent or edge.heard.branches[i].intent or _wishes(edge, i):
            _hangs_for_a_wish(branch, edge.heard.branches[i])
            continue
        many = branch.phase in PHASES_TWO and ghost.failures >= edge.policy.hung_attempts
        expected = old.hung_reason
        counted = edge.counted.get(i)
        denied = counted is not None and counted.unauthorized
        undecided = edge.before.decision is Decision.UNDECIDED
        if (expected in SILENT_FIRST.values() and undecided) or (expected is HungReason.UNAUTHORIZED and undecided):
            denied = denied or (expected is HungReason.UNAUTHORIZED and branch.phase is not BranchPhase.HELD)
            expected = None
        if branch.phase in FINAL:
            expected = None
        elif after.decision is Decision.UNDECIDED:
            silent = SILENT_FIRST[old.kind] if ghost.silent else expected
            expected = HungReason.UNAUTHORIZED if denied else silent
        elif ghost.refused:
            expected = REFUSED[_outstanding(branch, after.decision)]
        elif denied and not undecided and edge.part(i) in AFTER:
            expected = expected if expected in REFUSED.values() else HungReason.UNAUTHORIZED
        elif _takes_turns(edge, i):
            waited = branch.hung_reason is expected
            since = branch.asked_at is not None and edge.now >= branch.asked_at + edge.policy.hung_after_s
            often = edge.ghost.branches[i].failures + 1 >= edge.policy.hung_attempts  # before a retry started it over
            assert waited or (counted is not None and (often or since)), f"{branch.name} waits for its turn"
            assert not (many and counted is not None) or branch.hung_reason is not None
            expected = expected if waited else UNANSWERED[_outstanding(branch, after.decision)]
        elif (overdue or many) and expected not in (*REFUSED.values(), HungReason.UNAUTHORIZED):
            expected = UNANSWERED[_outstanding(branch, after.decision)]
        assert branch.hung_reason is expected, f"{branch.name}: {branch.hung_reason}, and not {expected}"


def _hangs_for_a_wish(branch: Branch, ghost: BranchGhost) -> None:
    """Once what a person wants was sent in vain, it hangs."""
    if ghost.intent is not None and branch.phase not in FINAL and ghost.asked and ghost.refused:
        assert branch.hung_reason is not None


def hung_stays_until_the_branch_is_final(edge: Edge) -> None:
    for old, new in zip(edge.before.branches, edge.after.branches, strict=True):
        before_the_decision = edge.before.decision is Decision.UNDECIDED and old.hung_reason is HungReason.UNAUTHORIZED
        silent = edge.before.decision is Decision.UNDECIDED and old.hung_reason in SILENT_FIRST.values()
        may_end = new.phase in FINAL or silent or before_the_decision or (old.intent and old.intent != new.intent)
        assert not old.hung_reason or new.hung_reason or may_end, new.name
    hangs = any(b.hung_reason for b in edge.after.branches)
    assert (edge.after.hung_since is not None) == hangs
    if hangs and edge.before.hung_since is not None:
        assert edge.after.hung_since == edge.before.hung_since


# --- helpers -----------------------------------------------------------------------------------------------------


def _calls(edge: Edge) -> Iterator[tuple[int, Part | None, Call]]:
    """The calls of a step: whose they are, and what they are for."""
    for call in edge.step.calls:
        index = edge.index(call.branch.name)
        yield index, part_of(edge.before.branches[index].kind, call.operation), call


def _wishes(edge: Edge, index: int) -> list[BranchResolved]:
    """What persons want to be sent to this branch, by these inputs."""
    said = [each for each in edge.inputs if isinstance(each, BranchResolved) and each.send]
    return [each for each in said if edge.index(each.branch) == index]


def _first_calls(edge: Edge) -> list[tuple[int, Part | None, Call]]:
    return [(i, part, call) for i, part, call in _calls(edge) if not edge.heard.branches[i].tried]


def _sent_pivot(edge: Edge) -> int | None:
    return sent_pivot(edge.before, edge.ghost)


def _time_limit_s(edge: Edge, branch: Branch) -> float:
    return branch.call_timeout_s or edge.policy.call_timeout_s


def _told(edge: Edge, name: str) -> JsonText | None:
    """What may be told of a branch's answer."""
    index = edge.index(name)
    branch, ghost = edge.before.branches[index], edge.heard.branches[index]
    is_left_out = branch.kind in (Kind.PIVOT, Kind.RETRYABLE) and _is_too_long(edge, index)
    return None if is_left_out else ghost.result


def _is_too_long(edge: Edge, index: int) -> bool:
    """Whether a successor can't be told what this branch answered, beside what others have."""
    answer = edge.counted.get(index)
    if answer is not None and answer.too_long:
        return True
    name = edge.before.branches[index].name
    for follower in edge.before.branches:
        if name in follower.after:
            told = [edge.heard.branches[edge.index(each)].result for each in follower.after]
            if sum(len(each) for each in told if each is not None) > edge.policy.results_bytes_max:
                return True
    return False


def _acknowledged(edge: Edge, index: int, part: Part) -> bool:
    answer = edge.counted.get(index)
    return answer is not None and edge.part(index) is part and answer.answer is Answer.SUCCEEDED


def _to_be_asked(edge: Edge, index: int) -> bool:
    """Whether the branch has something left to be asked, by what really happened."""
    after, branch, ghost = edge.after, edge.after.branches[index], edge.heard.branches[index]
    if branch.phase in FINAL:
        return False
    if after.decision is Decision.UNDECIDED:
        return not is_ready(branch, ghost) and _is_its_turn(edge, index)
    if branch.kind is Kind.RETRYABLE:
        return _is_its_turn(edge, index)
    undoes = branch.phase is BranchPhase.CANCELLING
    return not undoes or _may_be_undone(edge, index)


def _is_its_turn(edge: Edge, index: int) -> bool:
    """Whether all that the branch comes after has done its part before the decision, or, after it, has ended."""
    branch, branches, ghosts = edge.before.branches[index], edge.before.branches, edge.heard.branches
    ahead = ahead_of(edge.before, index)
    if branch.kind is Kind.PIVOT:
        ahead = {i for i, each in enumerate(branches) if comes_first(each)}
    if branch.kind is Kind.RETRYABLE:
        return all(ghosts[i].ended for i in ahead if branches[i].kind is Kind.RETRYABLE)
    return all(is_ready(branches[i], ghosts[i]) for i in ahead)


def _may_be_undone(edge: Edge, index: int) -> bool:
    """With `reverse`: whether all that came after the branch is final."""
    if edge.before.undo is not Undo.REVERSE:
        return True
    pairs = list(zip(edge.before.branches, edge.heard.branches, strict=True))
    behind = [i for i in range(len(pairs)) if index in ahead_of(edge.before, i)]
    return all(is_over(*pairs[i], edge.after.decision) and not _is_called_first(edge, i) for i in behind)


def _is_called_first(edge: Edge, index: int) -> bool:
    return edge.heard.branches[index].under_way is not None and not edge.heard.branches[index].ended


def _takes_turns(edge: Edge, index: int) -> bool:
    """Whether the branch, in what it has to do now, may have to wait for others."""
    branch = edge.after.branches[index]
    if branch.phase is BranchPhase.CONFIRMING:
        return branch.kind is Kind.RETRYABLE and bool(ahead_of(edge.before, index))
    reverse = edge.before.undo is Undo.REVERSE and branch.phase is BranchPhase.CANCELLING
    return reverse and any(index in ahead_of(edge.before, i) for i in range(len(edge.before.branches)))


def _outstanding(branch: Branch, decision: Decision) -> Operation:
    """What the decision asks of a branch that has not ended; of a check, that its own call ends."""
    part = Part.CONFIRM if decision is Decision.CONFIRM else Part.UNDO
    return PARTS[branch.kind].get(part) or PARTS[branch.kind][Part.FIRST]


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
    results_are_durable_before_they_are_told,
    only_its_own_answer_or_a_person_decides_over_a_sent_pivot,
    a_pivot_leaves_when_all_others_hold_for_long_enough,
    past_the_deadline_a_pivot_is_only_withdrawn,
    a_late_answer_of_a_resolved_pivot_may_contradict,
    a_retryable_step_waits_for_the_ends_that_it_comes_after,
    in_reverse_nothing_is_undone_before_what_came_after_it,
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
