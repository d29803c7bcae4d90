"""The enumeration is worth something only if it finds bugs: each one seeded here is caught, by the rule it breaks.

A bug is one function or one line of a table of app/protocol/ replaced at run time.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from app.protocol import branches, hung, kinds, pivots, steps
from app.protocol.messages import Answered, CancelRequested, Command, RetryRequested, Step
from app.protocol.policy import Policy
from app.protocol.values import Branch, BranchPhase, HungReason, Outcome, Transaction, TryOrder, Undo
from holdfast.wire import Answer, Decision, Kind, Operation
from tests.harness.search_share import share
from tests.protocol import invariants
from tests.protocol.enumeration import POLICY, Case, enumerate_all
from tests.protocol.ghost import PARTS, Part

Patch = pytest.MonkeyPatch
Deciding = Callable[[Transaction, float, Policy], Transaction]
Ending = Callable[[Transaction, float], Transaction]
Taking = Callable[[Transaction, Command, float, Policy], Transaction]
Asking = Callable[[Branch, Operation, float], Branch]
Following = Callable[[Decision, Branch], Branch]
Answering = Callable[[Transaction, Answered, float, Policy], Transaction]
TWO = (Kind.TCC, Kind.TCC)
PLAIN = (Case(kinds=TWO), Case(kinds=TWO, try_order=TryOrder.SEQUENTIAL))
BUGS: dict[str, tuple[Callable[[Patch], None], str, tuple[Case, ...]]] = {}


def bug(caught_by: str, *cases: Case) -> Callable[[Callable[[Patch], None]], Callable[[Patch], None]]:
    def register(seed: Callable[[Patch], None]) -> Callable[[Patch], None]:
        BUGS[seed.__name__] = seed, caught_by, cases or PLAIN
        return seed

    return register


def wrap(patch: Patch, name: str, around: Callable[..., Any]) -> None:
    """Replace a function of the machine; `around` is given the original and then its arguments."""
    original = getattr(steps, name)
    patch.setattr(steps, name, lambda *args: around(original, *args))


def follow_with(patch: Patch, decision: Decision, phase: BranchPhase, after: BranchPhase) -> None:
    """Change a line of what follows from a decision, for each kind that has it."""
    for kind in kinds.KINDS:
        if (kind, decision, phase) in kinds.FOLLOWS:
            patch.setitem(kinds.FOLLOWS, (kind, decision, phase), after)


def each_branch(transaction: Transaction, **changes: Any) -> Transaction:
    return replace(transaction, branches=tuple(replace(b, **changes) for b in transaction.branches))


# --- the decision ------------------------------------------------------------------------------------------------


@bug("confirm_needs_every_hold")
def confirms_with_a_missing_hold(patch: Patch) -> None:
    def decide(original: Deciding, transaction: Transaction, now: float, policy: Policy) -> Transaction:
        if transaction.decision is Decision.UNDECIDED and transaction.branches[0].phase is BranchPhase.HELD:
            return steps._decided(transaction, Decision.CONFIRM, None, now)
        return original(transaction, now, policy)

    wrap(patch, "_decide", decide)


@bug("the_decision_never_changes")
def cancels_what_is_decided_to_be_confirmed(patch: Patch) -> None:
    def take(original: Taking, transaction: Transaction, command: Command, now: float, policy: Policy) -> Transaction:
        if isinstance(command, CancelRequested) and transaction.decision is Decision.CONFIRM:
            return replace(transaction, decision=Decision.CANCEL)
        return original(transaction, command, now, policy)

    wrap(patch, "_take", take)


@bug("confirm_is_decided_before_the_deadline")
def decides_after_the_deadline(patch: Patch) -> None:
    def decide(original: Deciding, transaction: Transaction, now: float, policy: Policy) -> Transaction:
        return original(transaction, min(now, transaction.deadline - 0.001), policy)

    wrap(patch, "_decide", decide)


@bug("confirm_is_decided_while_every_hold_is_safe")
def decides_after_a_hold_has_expired(patch: Patch) -> None:
    def decide(original: Deciding, transaction: Transaction, now: float, policy: Policy) -> Transaction:
        after = original(each_branch(transaction, hold_until=None), now, policy)
        return replace(transaction, decision=after.decision, reason=after.reason, decided_at=after.decided_at)

    wrap(patch, "_decide", decide)


@bug("confirm_is_decided_while_every_hold_is_safe")
def counts_the_ttl_from_the_answer(patch: Patch) -> None:
    def answered(
        original: Answering, transaction: Transaction, answer: Answered, now: float, policy: Policy
    ) -> Transaction:
        tried_at = {b.name: b.tried_at for b in transaction.branches}
        after = original(each_branch(transaction, tried_at=now), answer, now, policy)
        return replace(after, branches=tuple(replace(b, tried_at=tried_at[b.name]) for b in after.branches))

    wrap(patch, "_answered", answered)


@bug("confirm_is_decided_while_every_hold_is_safe")
def counts_the_ttl_from_the_last_try(patch: Patch) -> None:
    def asking(original: Asking, branch: Branch, operation: Operation, now: float) -> Branch:
        return original(replace(branch, tried_at=None), operation, now)

    wrap(patch, "_asking", asking)


@bug("a_decision_to_confirm_has_its_limit")
def saves_a_confirm_however_late_it_is(patch: Patch) -> None:
    patch.setattr(steps, "_not_after", lambda before, after, policy: math.inf)


@bug("a_decision_to_confirm_has_its_limit")
def saves_a_confirm_after_a_hold_has_expired(patch: Patch) -> None:
    def not_after(original: Any, before: Transaction, after: Transaction, policy: Policy) -> float:
        return math.inf if original(before, after, policy) == math.inf else after.deadline

    wrap(patch, "_not_after", not_after)


@bug("a_decision_to_confirm_has_its_limit")
def sets_a_limit_to_what_follows_from_a_confirm(patch: Patch) -> None:
    def not_after(original: Any, before: Transaction, after: Transaction, policy: Policy) -> float:
        return float(original(replace(before, decision=Decision.UNDECIDED), after, policy))

    wrap(patch, "_not_after", not_after)


@bug("what_came_too_late_is_not_decided_again")
def gives_a_decision_up_before_it_is_too_late(patch: Patch) -> None:
    wrap(patch, "_not_after", lambda original, *given: original(*given) - 0.001)


@bug("a_refusal_decides_at_once")
def waits_for_everyone_before_it_decides(patch: Patch) -> None:
    def decide(original: Deciding, transaction: Transaction, now: float, policy: Policy) -> Transaction:
        return transaction if any(b.calling for b in transaction.branches) else original(transaction, now, policy)

    wrap(patch, "_decide", decide)


@bug("a_decision_has_its_reason")
def takes_silence_for_a_refusal(patch: Patch) -> None:
    patch.setitem(kinds.ANSWERED, (BranchPhase.TRYING, Answer.UNANSWERED), BranchPhase.REFUSED)


# --- what is durable ---------------------------------------------------------------------------------------------


@bug("the_decision_is_durable_before_phase_two")
def acts_before_the_decision_is_saved(patch: Patch) -> None:
    def others_must_know(original: Any, before: Transaction, after: Transaction) -> bool:
        return bool(original(replace(before, decision=after.decision), after))

    wrap(patch, "_others_must_know", others_must_know)


@bug("the_record_is_durable_before_the_first_try")
def tries_before_the_record_is_saved(patch: Patch) -> None:
    patch.setattr(branches, "_known", lambda branch: (branch.hung_reason, branch.resolution))


@bug("what_others_must_know_is_saved")
def keeps_a_hang_to_itself(patch: Patch) -> None:
    patch.setattr(branches, "_known", lambda branch: (branch.phase is BranchPhase.PENDING, branch.resolution))


@bug("the_lease_is_kept")
def lets_the_lease_run_out(patch: Patch) -> None:
    def step(original: Any, before: Transaction, after: Transaction, *rest: Any) -> Step:
        step: Step = original(before, after, *rest)
        known = steps._others_must_know(before, after) or before.wake_at is None or step.rests
        return step if known else replace(step, must_save=False)

    wrap(patch, "_step", step)


@bug("the_loop_wakes_in_time")
def sleeps_past_the_deadline(patch: Patch) -> None:
    def due_times(original: Any, transaction: Transaction, now: float, policy: Policy) -> Any:
        return [t for t in original(transaction, now, policy) if t != transaction.deadline] or [now + policy.lease_s]

    wrap(patch, "_due_times", due_times)


# --- who is asked, and when --------------------------------------------------------------------------------------


@bug("cancel_reaches_every_branch_ever_tried")
def skips_the_cancel_of_an_unanswered_try(patch: Patch) -> None:
    follow_with(patch, Decision.CANCEL, BranchPhase.TRYING, BranchPhase.CANCELLED)


@bug("cancel_reaches_every_branch_ever_tried")
def skips_the_cancel_of_a_branch_that_refused(patch: Patch) -> None:
    follow_with(patch, Decision.CANCEL, BranchPhase.REFUSED, BranchPhase.CANCELLED)


@bug("a_branch_never_tried_gets_no_cancel")
def forgets_that_a_branch_was_never_tried(patch: Patch) -> None:
    follow_with(patch, Decision.CANCEL, BranchPhase.PENDING, BranchPhase.CANCELLING)


@bug("no_cancel_while_the_own_try_is_under_way")
def cancels_while_its_own_try_is_under_way(patch: Patch) -> None:
    def follow(original: Following, decision: Decision, branch: Branch) -> Branch:
        return original(decision, replace(branch, calling=None))

    wrap(patch, "_follow", follow)
    facts_of = branches._facts_of
    patch.setattr(branches, "_facts_of", lambda branch, *turns: facts_of(replace(branch, calling=None), *turns))


@bug("nothing_under_way_is_asked_twice")
def asks_again_what_is_under_way(patch: Patch) -> None:
    def call(original: Any, transaction: Transaction, now: float, policy: Policy) -> Any:
        return original(each_branch(transaction, calling=None), now, policy)

    wrap(patch, "_call", call)


@bug("a_try_leaves_only_while_undecided_and_in_time")
def goes_on_trying_after_the_decision(patch: Patch) -> None:
    follows = {key: phase for key, phase in kinds.FOLLOWS.items() if key[1:] != (Decision.CANCEL, BranchPhase.PENDING)}
    patch.setattr(steps, "FOLLOWS", follows)  # a table of its own: what is put back comes last
    patch.setattr(steps, "_may_try", lambda transaction: True)


@bug("a_try_waits_for_the_holds_that_it_comes_after")
def tries_everyone_at_once(patch: Patch) -> None:
    def due(original: Any, transaction: Transaction, now: float) -> Any:
        return original(each_branch(transaction, waits_for=()), now)

    wrap(patch, "_due", due)


@bug("a_try_waits_for_the_holds_that_it_comes_after")
def forgets_that_a_sequence_is_a_chain(patch: Patch) -> None:
    patch.setattr("tests.protocol.enumeration.in_order", lambda branches, try_order, undo: branches)


@bug("nothing_waits_for_another_branch")
def goes_on_waiting_for_a_branch_that_holds(patch: Patch) -> None:
    patch.setattr(branches, "_is_waited_for", lambda branch, follower: True)


@bug("a_branch_is_asked_what_its_kind_has")
def asks_for_a_confirm_that_is_missing(patch: Patch) -> None:
    patch.setitem(PARTS, Kind.TCC, {Part.FIRST: Operation.TRY, Part.UNDO: Operation.CANCEL})


@bug("a_branch_is_asked_what_its_kind_has")
def asks_for_a_try_that_is_missing(patch: Patch) -> None:
    patch.setitem(PARTS, Kind.TCC, {Part.CONFIRM: Operation.CONFIRM, Part.UNDO: Operation.CANCEL})


@bug("nothing_waits_for_another_branch")
def asks_one_branch_after_the_other(patch: Patch) -> None:
    def due(original: Any, transaction: Transaction, now: float) -> Any:
        return [] if any(b.calling for b in transaction.branches) else original(transaction, now)[:1]

    wrap(patch, "_due", due)


@bug("a_failure_backs_off")
def repeats_without_a_pause(patch: Patch) -> None:
    patch.setattr(steps, "back_off_s", lambda *_: 0.0)


@bug("a_failure_backs_off")
def ignores_retry_after(patch: Patch) -> None:
    patch.setattr(steps, "RETRY_AFTER_MAX_S", 0.0)


@bug("a_retry_asks_everyone_now")
def does_not_start_the_back_off_over(patch: Patch) -> None:
    def take(original: Taking, transaction: Transaction, command: Command, now: float, policy: Policy) -> Transaction:
        return transaction if isinstance(command, RetryRequested) else original(transaction, command, now, policy)

    wrap(patch, "_take", take)


# --- what an answer means ----------------------------------------------------------------------------------------


@bug("confirmed_means_acknowledged")
def takes_a_refused_confirm_for_done(patch: Patch) -> None:
    patch.setitem(kinds.ANSWERED, (BranchPhase.CONFIRMING, Answer.REFUSED), BranchPhase.CONFIRMED)


@bug("cancel_reaches_every_branch_ever_tried")
def takes_a_refused_cancel_for_done(patch: Patch) -> None:
    patch.setitem(kinds.ANSWERED, (BranchPhase.CANCELLING, Answer.REFUSED), BranchPhase.CANCELLED)


@bug("stale_answers_change_nothing")
def takes_stale_answers(patch: Patch) -> None:
    def answered(
        original: Answering, transaction: Transaction, answer: Answered, now: float, policy: Policy
    ) -> Transaction:
        branch = transaction.branch(answer.branch)
        attempt = branch.attempts(answer.operation) if branch else answer.attempt
        return original(transaction, replace(answer, attempt=attempt), now, policy)

    wrap(patch, "_answered", answered)


@bug("stale_answers_change_nothing")
def takes_answers_that_nobody_waits_for(patch: Patch) -> None:
    def answered(
        original: Answering, transaction: Transaction, answer: Answered, now: float, policy: Policy
    ) -> Transaction:
        branch = transaction.branch(answer.branch)
        if (
            branch is None
            or branch.tried_at is None
            or branch.calling
            or kinds.ASKS.get((branch.kind, branch.phase)) is not answer.operation
        ):
            return original(transaction, answer, now, policy)
        waiting = [replace(b, calling=answer.operation) if b is branch else b for b in transaction.branches]
        return original(replace(transaction, branches=tuple(waiting)), answer, now, policy)

    wrap(patch, "_answered", answered)


@bug("a_lost_result_cancels")
def keeps_a_hold_whose_result_is_lost(patch: Patch) -> None:
    def answered(original: Any, transaction: Transaction, answer: Answered, now: float, policy: Policy) -> Transaction:
        after: Transaction = original(transaction, replace(answer, too_long=False), now, policy)
        return after

    wrap(patch, "_answered", answered)


@bug("delayed_means_that_a_call_after_the_decision_failed")
def takes_still_working_for_a_failure(patch: Patch) -> None:
    def answered(original: Any, transaction: Transaction, answer: Answered, now: float, policy: Policy) -> Transaction:
        after: Transaction = original(transaction, replace(answer, in_progress=False), now, policy)
        return after

    wrap(patch, "_answered", answered)


@bug("delayed_means_that_a_call_after_the_decision_failed")
def takes_a_failure_for_still_working(patch: Patch) -> None:
    def answered(original: Any, transaction: Transaction, answer: Answered, now: float, policy: Policy) -> Transaction:
        after: Transaction = original(transaction, replace(answer, in_progress=True), now, policy)
        return after

    wrap(patch, "_answered", answered)


@bug("delayed_means_that_a_call_after_the_decision_failed")
def takes_a_failed_try_for_a_failure_after_the_decision(patch: Patch) -> None:
    failed = property(lambda branch: not branch.final and branch.last_answer in (Answer.REFUSED, Answer.UNANSWERED))
    patch.setattr(Branch, "is_delayed", failed)


# --- nothing vanishes --------------------------------------------------------------------------------------------


@bug("hung_stays_until_the_branch_is_final")
def a_retry_clears_the_hang(patch: Patch) -> None:
    wrap(patch, "_due_at_once", lambda original, branch: replace(original(branch), hung_reason=None))
    patch.setattr(branches, "REFUSALS", frozenset())


@bug("hung_is_noticed")
def silence_before_the_decision_never_hangs(patch: Patch) -> None:
    patch.setattr(steps, "is_silent", lambda branch, failures, now, policy: False)


@bug("hung_is_noticed")
def failing_often_hangs_before_the_decision_however_short_it_was(patch: Patch) -> None:
    patch.setattr(steps, "is_silent", lambda branch, failures, now, policy: failures >= policy.hung_attempts)


@bug("hung_is_noticed")
def failing_for_long_hangs_before_the_decision_however_seldom_it_was(patch: Patch) -> None:
    wrap(patch, "is_silent", lambda original, branch, failures, now, policy: original(branch, 9, now, policy))


@bug("hung_is_noticed")
def takes_being_turned_away_for_silence(patch: Patch) -> None:
    def answered(original: Any, transaction: Transaction, answer: Answered, now: float, policy: Policy) -> Transaction:
        after: Transaction = original(transaction, replace(answer, unauthorized=False), now, policy)
        return after

    wrap(patch, "_answered", answered)


@bug("hung_is_noticed")
def forgets_a_refusal_when_it_is_turned_away(patch: Patch) -> None:
    patch.setattr(steps, "REFUSALS", frozenset())


@bug("hung_is_noticed")
def takes_being_turned_away_for_silence_once_that_lasts(patch: Patch) -> None:
    patch.setattr(branches, "_SILENCES", branches._SILENCES - {HungReason.UNAUTHORIZED})


@bug("hung_is_noticed")
def goes_on_listing_a_try_that_was_answered(patch: Patch) -> None:
    patch.setattr(steps, "no_longer_silent", lambda branch: branch)


@bug("hung_is_noticed")
def counts_still_working_as_an_attempt(patch: Patch) -> None:
    def answered(original: Any, transaction: Transaction, answer: Answered, now: float, policy: Policy) -> Transaction:
        after: Transaction = original(transaction, replace(answer, in_progress=False), now, policy)
        return after

    wrap(patch, "_answered", answered)


@bug("hung_stays_until_the_branch_is_final")
def stays_on_the_list_when_it_hangs_no_longer(patch: Patch) -> None:
    def notice_hung(original: Any, transaction: Transaction, now: float, policy: Policy) -> Transaction:
        is_decided = transaction.decision is not Decision.UNDECIDED
        after: Transaction = original(transaction, now, policy) if is_decided else transaction
        return after

    wrap(patch, "notice_hung", notice_hung)


@bug("hung_is_noticed")
def silence_never_hangs(patch: Patch) -> None:
    mark = hung._hung

    def only_refusals(branch: Branch) -> Branch:
        return mark(branch) if branch.last_answer is Answer.REFUSED else branch

    patch.setattr(hung, "_hung", only_refusals)


@bug("hung_is_noticed")
def forgets_that_it_was_refused(patch: Patch) -> None:
    patch.setattr(branches, "REFUSALS", frozenset())


@bug("finished_means_that_every_branch_is_final")
def finishes_with_the_first_branch(patch: Patch) -> None:
    def follow_decision(original: Ending, transaction: Transaction, now: float) -> Transaction:
        after = original(transaction, now)
        done = any(b.final for b in after.branches) and not after.finished
        return replace(after, finished_at=now, hung_since=None) if done else after

    wrap(patch, "_follow_decision", follow_decision)


@bug("mixed_means_resolved_against_the_decision")
def calls_a_mixed_end_a_clean_one(patch: Patch) -> None:
    patch.setattr(Transaction, "outcome", property(lambda t: Outcome(t.phase.value) if t.finished else None))


# --- other kinds -------------------------------------------------------------------------------------------------

WITH_PIVOT = Case(kinds=(Kind.COMPENSABLE, Kind.PIVOT))
IN_REVERSE = Case(kinds=(Kind.COMPENSABLE, Kind.COMPENSABLE), try_order=TryOrder.SEQUENTIAL, undo=Undo.REVERSE)
RETRYABLE_TWICE = Case(kinds=(Kind.RETRYABLE, Kind.RETRYABLE), try_order=TryOrder.SEQUENTIAL)
WITH_RESULTS = Case(kinds=(Kind.RETRYABLE, Kind.RETRYABLE), after=((), (0,)))


@bug("only_its_own_answer_or_a_person_decides_over_a_sent_pivot", WITH_PIVOT)
def decides_by_the_deadline_although_the_pivot_was_sent(patch: Patch) -> None:
    wrap(patch, "sent_pivot", lambda original, transaction: None)


@bug("only_its_own_answer_or_a_person_decides_over_a_sent_pivot", WITH_PIVOT)
def cancels_on_request_although_the_pivot_was_sent(patch: Patch) -> None:
    def take(original: Taking, transaction: Transaction, command: Command, now: float, policy: Policy) -> Transaction:
        if isinstance(command, CancelRequested) and transaction.decision is Decision.UNDECIDED:
            return steps._decided(transaction, Decision.CANCEL, None, now)
        return original(transaction, command, now, policy)

    wrap(patch, "_take", take)


@bug("a_refusal_decides_at_once", WITH_PIVOT)
def ignores_a_pivots_refusal(patch: Patch) -> None:
    def phase_after(original: Any, transaction: Transaction, branch: Branch, answered: Answered) -> BranchPhase:
        phase: BranchPhase = original(transaction, branch, answered)
        return BranchPhase.TRYING if phase is BranchPhase.REFUSED and branch.kind is Kind.PIVOT else phase

    wrap(patch, "_phase_after", phase_after)


@bug("past_the_deadline_a_pivot_is_only_withdrawn", WITH_PIVOT)
def charges_past_the_deadline(patch: Patch) -> None:
    patch.setattr(pivots, "may_be_withdrawn", lambda pivot: False)


@bug("a_pivot_leaves_when_all_others_hold_for_long_enough", Case(kinds=(Kind.TCC, Kind.PIVOT)))
def sends_a_pivot_while_others_hold_only_just(patch: Patch) -> None:
    patch.setattr("tests.protocol.enumeration.POLICY", replace(POLICY, call_timeout_s=1.5))
    patch.setattr(steps, "pivot_needs_s", lambda transaction, policy: 0.0)


@bug("cancel_reaches_every_branch_ever_tried", Case(kinds=(Kind.COMPENSABLE, Kind.COMPENSABLE)))
def skips_the_compensation_of_an_unanswered_action(patch: Patch) -> None:
    follow_with(patch, Decision.CANCEL, BranchPhase.TRYING, BranchPhase.CANCELLED)


@bug("in_reverse_nothing_is_undone_before_what_came_after_it", IN_REVERSE)
def compensates_all_at_once(patch: Patch) -> None:
    def due(original: Any, transaction: Transaction, now: float) -> Any:
        return original(each_branch(transaction, undone_after=()), now)

    wrap(patch, "_due", due)


@bug("a_retryable_step_waits_for_the_ends_that_it_comes_after", RETRYABLE_TWICE)
def starts_a_retryable_step_before_the_one_before_it_has_ended(patch: Patch) -> None:
    def due(original: Any, transaction: Transaction, now: float) -> Any:
        return original(each_branch(transaction, waits_for=()), now)

    wrap(patch, "_due", due)


@bug("results_are_durable_before_they_are_told", WITH_RESULTS)
def tells_results_before_they_are_saved(patch: Patch) -> None:
    def step(original: Any, before: Transaction, after: Transaction, calls: Any, *rest: Any) -> Step:
        without: Step = original(before, after, tuple(replace(call, results=None) for call in calls), *rest)
        return replace(without, calls=calls) if without.calls else without

    wrap(patch, "_step", step)


@bug("what_others_must_know_is_saved", Case(kinds=(Kind.TCC, Kind.CHECK), sends=True))
def applies_a_wish_without_saving_it(patch: Patch) -> None:
    known = branches._known
    patch.setattr(branches, "_known", lambda branch: known(replace(branch, intent=None)))


@pytest.mark.parametrize("name", share([*BUGS]))
def test_a_seeded_bug_is_caught(name: str, monkeypatch: Patch) -> None:
    seed, caught_by, cases = BUGS[name]
    rule = next(each for each in invariants.INVARIANTS if each.__name__ == caught_by)
    monkeypatch.setattr(invariants, "INVARIANTS", (rule,))  # alone: it must not be another one that finds it
    seed(monkeypatch)
    with pytest.raises(invariants.Violation) as caught:
        enumerate_all(cases)
    assert caught.value.invariant == caught_by
