"""One step after the other, each compared whole: what a transaction and its branches say, and what is called when.

The enumeration checks rules on everything that can happen; here is what exactly is recorded and said, on a few stories.
"""

import math
from dataclasses import replace
from typing import Any

import pytest

from app.protocol.backoff import back_off_s
from app.protocol.kinds import FOLLOWS
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
from app.protocol.steps import advance, awaited, broken, is_at_rest, objection, was_interrupted
from app.protocol.values import (
    Branch,
    BranchPhase,
    HungReason,
    Reason,
    ReasonCode,
    Resolution,
    Settled,
    Transaction,
    TryOrder,
    in_order,
)
from holdfast.wire import Answer, Decision, Kind, Operation

POLICY = Policy(
    retry_base_s=0.5,
    retry_cap_s=8.0,
    hold_margin_s=30.0,
    call_timeout_s=5.0,
    results_bytes_max=1024,
    hung_attempts=3,
    hung_after_s=60.0,
    lease_s=15.0,
    linger_s=1.0,
)
NOW, DEADLINE = 1_000.0, 1_030.0
SAFE_UNTIL = 1_055.0  # a TTL of 60 s from before the Try, less five seconds
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
RESOLVE = BranchResolved(branch="a", settled=Settled.CONFIRMED, by="ops", reason="seen in the ledger")
CONFIRM, CANCEL = Operation.CONFIRM, Operation.CANCEL


def begun(**changed: Any) -> Transaction:
    branches = (Branch(name="a"), Branch(name="b"))
    new = Transaction(id="t", created_at=NOW, deadline=DEADLINE, branches=branches, traceparent=TRACE)
    return replace(new, **changed)


def trying(name: str, **changed: Any) -> Branch:
    """A branch whose first Try is under way."""
    asked = Branch(name=name, phase=BranchPhase.TRYING, try_attempts=1, tried_at=NOW, calling=Operation.TRY)
    return replace(asked, **changed)


def held(name: str, **changed: Any) -> Branch:
    rest: dict[str, Any] = {"calling": None, "last_answer": Answer.SUCCEEDED, "hold_until": SAFE_UNTIL}
    return trying(name, **{"phase": BranchPhase.HELD, **rest, **changed})


def confirming(name: str, **changed: Any) -> Branch:
    """A branch whose first Confirm is under way."""
    asked = {"phase": BranchPhase.CONFIRMING, "confirm_attempts": 1, "calling": CONFIRM, "last_answer": None}
    return held(name, **{**asked, **changed})


def cancelling(name: str, **changed: Any) -> Branch:
    """A branch that held, and whose first Cancel is under way."""
    asked = {"phase": BranchPhase.CANCELLING, "cancel_attempts": 1, "calling": CANCEL, "last_answer": None}
    return held(name, **{**asked, **changed})


def undecided(*branches: Branch, **changed: Any) -> Transaction:
    return begun(branches=branches, wake_at=NOW + POLICY.lease_s, **changed)


def decided(decision: Decision, *branches: Branch, **changed: Any) -> Transaction:
    return undecided(*branches, **{"decision": decision, "decided_at": NOW, **changed})


def said(branch: str, operation: Operation, answer: Answer, attempt: int = 1, **words: Any) -> Answered:
    return Answered(branch=branch, operation=operation, attempt=attempt, answer=answer, **words)


def step(transaction: Transaction, now: float, *inputs: Input, policy: Policy = POLICY) -> Step:
    return advance(transaction, inputs, now, policy)


def called(result: Step) -> list[tuple[str, Operation, int]]:
    return [(call.branch.name, call.operation, call.attempt) for call in result.calls]


def back_off_of(branch: Branch, phase: BranchPhase, failures: int) -> float:
    return back_off_s("t", replace(branch, phase=phase), failures, POLICY)


DONE = confirming("c", phase=BranchPhase.CONFIRMED, calling=None)


# --- all goes well -----------------------------------------------------------------------------------------------


def test_a_new_transaction_is_recorded_and_tries_all_its_branches() -> None:
    a, b = trying("a"), trying("b")
    calls = [
        Call(
            transaction_id="t",
            branch=branch,
            operation=Operation.TRY,
            attempt=1,
            traceparent=TRACE,
            hold_ttl_s=60.0,
            deadline=DEADLINE,
        )
        for branch in (a, b)
    ]
    assert step(begun(), NOW) == Step(
        transaction=undecided(a, b), calls=tuple(calls), must_save=True, rests=False, wake_at=NOW + 10
    )


def test_a_transaction_of_no_trace_is_called_in_none() -> None:
    (call, _) = step(begun(traceparent=None), NOW).calls
    assert call == Call(
        transaction_id="t", branch=trying("a"), operation=Operation.TRY, attempt=1, hold_ttl_s=60.0, deadline=DEADLINE
    )


def test_a_hold_is_kept_with_what_it_answered_and_needs_no_save_of_its_own() -> None:
    answer = said("a", Operation.TRY, Answer.SUCCEEDED, result={"seat": 1})
    after = undecided(held("a", result={"seat": 1}), trying("b"))
    assert step(undecided(trying("a"), trying("b")), NOW + 2, answer) == Step(
        transaction=after, calls=(), must_save=False, rests=False, wake_at=NOW + 10
    )


def test_the_last_hold_decides_confirm_and_all_are_confirmed() -> None:
    answer = said("b", Operation.TRY, Answer.SUCCEEDED)
    result = step(undecided(held("a"), trying("b")), NOW + 3, answer)
    a, b = confirming("a"), confirming("b")
    calls = [
        Call(transaction_id="t", branch=branch, operation=CONFIRM, attempt=1, traceparent=TRACE) for branch in (a, b)
    ]
    after = decided(Decision.CONFIRM, a, b, decided_at=NOW + 3)
    assert result == Step(
        transaction=replace(after, wake_at=NOW + 18),
        calls=tuple(calls),
        must_save=True,
        rests=False,
        wake_at=NOW + 13,
        not_after=DEADLINE,
    )


def test_a_confirm_that_can_not_be_saved_in_time_is_cancelled_instead() -> None:
    """From the same inputs; whose fault it was is on record."""
    before, answer = undecided(held("a"), trying("b")), said("b", Operation.TRY, Answer.SUCCEEDED, hold_ttl_s=20.0)
    result = step(before, NOW + 3, answer)
    assert (result.transaction.decision, result.not_after) == (Decision.CONFIRM, NOW + 18)
    again = step(before, result.not_after, answer)
    assert again.transaction.reason == Reason(
        code=ReasonCode.HOLD_EXPIRED,
        branch="b",
        detail="the participant's hold expired before confirm could be decided",
    )
    assert (called(again), again.not_after) == ([("a", CANCEL, 1), ("b", CANCEL, 1)], math.inf)


def test_the_last_acknowledgement_finishes_it() -> None:
    done = confirming("a", phase=BranchPhase.CONFIRMED, calling=None, last_answer=Answer.SUCCEEDED)
    answer = said("b", CONFIRM, Answer.SUCCEEDED, error="the body is not JSON")
    result = step(decided(Decision.CONFIRM, done, confirming("b", failures=2)), NOW + 4, answer)
    b = replace(done, name="b", last_error="the body is not JSON")
    after = decided(Decision.CONFIRM, done, b, finished_at=NOW + 4)
    assert result == Step(
        transaction=replace(after, wake_at=None), calls=(), must_save=True, rests=True, wake_at=NOW + 4
    )
    again = step(result.transaction, NOW + 99, answer, RetryRequested(), CancelRequested(), RESOLVE)
    assert again == replace(result, must_save=False, wake_at=NOW + 99)


def test_a_cancelled_branch_says_so() -> None:
    result = step(decided(Decision.CANCEL, cancelling("a")), NOW + 4, said("a", CANCEL, Answer.SUCCEEDED))
    after = cancelling("a", phase=BranchPhase.CANCELLED, calling=None, last_answer=Answer.SUCCEEDED)
    assert result.transaction.branches == (after,)
    assert result.transaction.finished_at == NOW + 4


def test_what_follows_from_a_decision_is_written_to_the_branch_anew() -> None:
    """Failures and waiting belong to the phase in which they happened; a branch that was never tried needs no call."""
    waiting = trying("a", calling=None, failures=2, next_attempt_at=NOW + 50, last_answer=Answer.UNANSWERED)
    result = step(undecided(waiting, Branch(name="b")), NOW + 1, CancelRequested())
    a = trying("a", phase=BranchPhase.CANCELLING, calling=CANCEL, cancel_attempts=1)
    assert result.transaction.branches == (a, Branch(name="b", phase=BranchPhase.CANCELLED))


# --- refused, too late, cancelled --------------------------------------------------------------------------------


def test_a_refusal_decides_at_once_and_says_who_refused_and_why() -> None:
    refusal = said("a", Operation.TRY, Answer.REFUSED, error="sold out")
    result = step(
        undecided(trying("a"), trying("b"), trying("c", phase=BranchPhase.PENDING, calling=None)), NOW + 2, refusal
    )
    assert result.transaction.decision is Decision.CANCEL
    assert result.transaction.decided_at == NOW + 2
    assert result.transaction.reason == Reason(code=ReasonCode.REFUSED, branch="a", detail="sold out")
    a, b, c = result.transaction.branches
    assert a == trying("a", phase=BranchPhase.CANCELLING, cancel_attempts=1, calling=CANCEL, last_error="sold out")
    assert b == trying("b"), "its own Try is still under way"
    assert c.phase is BranchPhase.CANCELLED
    assert called(result) == [("a", CANCEL, 1)]
    assert result.must_save
    late = step(result.transaction, NOW + 3, said("b", Operation.TRY, Answer.SUCCEEDED, result="r"))
    assert called(late) == [("b", CANCEL, 1)]
    assert not late.must_save


@pytest.mark.parametrize(
    ("last_error", "detail"), [("503 from there", "503 from there"), (None, "the Try was not answered by the deadline")]
)
def test_the_deadline_cancels_and_names_the_branch_that_is_missing(last_error: str | None, detail: str) -> None:
    before = undecided(held("a"), trying("b", last_error=last_error))
    assert step(before, DEADLINE - 0.001).transaction.decision is Decision.UNDECIDED
    result = step(before, DEADLINE)
    assert result.transaction.decision is Decision.CANCEL
    assert result.transaction.decided_at == DEADLINE
    assert result.transaction.reason == Reason(code=ReasonCode.TIMED_OUT, branch="b", detail=detail)


def test_when_every_branch_held_too_late_none_is_blamed() -> None:
    result = step(undecided(held("a"), trying("b")), DEADLINE, said("b", Operation.TRY, Answer.SUCCEEDED))
    assert result.transaction.reason == Reason(
        code=ReasonCode.TIMED_OUT, detail="every branch held, but confirm could not be decided before the deadline"
    )
    assert called(result) == [("a", CANCEL, 1), ("b", CANCEL, 1)]


def test_a_hold_that_runs_out_cancels_and_says_whose() -> None:
    before = undecided(held("a", hold_until=SAFE_UNTIL), held("c", hold_until=NOW + 2), trying("b"))
    assert step(before, NOW + 1.999).transaction.decision is Decision.UNDECIDED
    result = step(before, NOW + 2, said("b", Operation.TRY, Answer.SUCCEEDED))
    assert result.transaction.decision is Decision.CANCEL
    assert result.transaction.decided_at == NOW + 2
    assert result.transaction.reason == Reason(
        code=ReasonCode.HOLD_EXPIRED,
        branch="c",
        detail="the participant's hold expired before confirm could be decided",
    )


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (CancelRequested(), Reason(code=ReasonCode.REQUESTED)),
        (CancelRequested(code=ReasonCode.OPERATOR, detail="by ops"), Reason(code=ReasonCode.OPERATOR, detail="by ops")),
    ],
)
def test_a_cancel_says_by_whom_and_why_and_comes_too_late_after_the_decision(
    command: CancelRequested, reason: Reason
) -> None:
    result = step(undecided(trying("a")), NOW + 2, command)
    assert result.transaction.reason == reason
    assert result.transaction.decided_at == NOW + 2
    assert result.must_save
    confirmed = decided(Decision.CONFIRM, confirming("a"))
    assert step(confirmed, NOW + 2, command).transaction == confirmed
    assert step(result.transaction, NOW + 3, CancelRequested(detail="again")).transaction.reason == reason


def test_no_try_leaves_after_the_decision_even_if_nothing_followed_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of two safeguards, with the first taken away."""
    follows = {key: phase for key, phase in FOLLOWS.items() if key[1:] != (Decision.CANCEL, BranchPhase.PENDING)}
    monkeypatch.setattr("app.protocol.steps.FOLLOWS", follows)  # a table of its own: what is put back comes last
    assert called(step(decided(Decision.CANCEL, Branch(name="a")), NOW + 1)) == []


# --- not answered, and repeated ----------------------------------------------------------------------------------


def test_a_try_that_is_not_answered_is_repeated_with_what_is_left_of_the_time() -> None:
    silence = said("a", Operation.TRY, Answer.UNANSWERED, error="timeout")
    result = step(undecided(trying("a"), held("b")), NOW + 2, silence)
    due = NOW + 2 + back_off_of(trying("a"), BranchPhase.TRYING, 1)
    waiting = trying(
        "a", calling=None, failures=1, next_attempt_at=due, last_answer=Answer.UNANSWERED, last_error="timeout"
    )
    assert result == Step(
        transaction=undecided(waiting, held("b")), calls=(), must_save=False, rests=False, wake_at=due
    )
    early = step(result.transaction, due - 0.001)
    assert called(early) == []
    repeated = step(result.transaction, due)
    assert called(repeated) == [("a", Operation.TRY, 2)]
    assert repeated.must_save, "whoever was overtaken must find out before it calls again"
    assert repeated.transaction.branches[0] == replace(
        waiting, calling=Operation.TRY, try_attempts=2, next_attempt_at=None
    )
    (call,) = repeated.calls
    assert call.deadline == DEADLINE
    assert call.hold_ttl_s is not None
    assert 0 <= call.hold_ttl_s - (DEADLINE - due + POLICY.hold_margin_s) < 0.001


def test_the_ttl_asked_for_is_rounded_up_to_milliseconds() -> None:
    (call,) = step(begun(branches=(Branch(name="a"),)), NOW + 0.00075).calls
    assert call.hold_ttl_s == 60.0
    (call,) = step(begun(branches=(Branch(name="a"),)), NOW + 0.99925).calls
    assert call.hold_ttl_s == 59.001


@pytest.mark.parametrize("decision", [Decision.CONFIRM, Decision.CANCEL])
@pytest.mark.parametrize(("answer", "retry_after_s"), [(Answer.UNANSWERED, None), (Answer.UNANSWERED, 7.0)])
def test_a_decided_call_is_repeated_for_ever(decision: Decision, answer: Answer, retry_after_s: float | None) -> None:
    asked = confirming("a", failures=1) if decision is Decision.CONFIRM else cancelling("a", failures=1)
    operation = CONFIRM if decision is Decision.CONFIRM else CANCEL
    result = step(decided(decision, asked), NOW + 2, said("a", operation, answer, retry_after_s=retry_after_s))
    due = NOW + 2 + (retry_after_s or back_off_of(asked, asked.phase, 2))
    (after,) = result.transaction.branches
    assert after == replace(asked, calling=None, failures=2, next_attempt_at=due, last_answer=answer)
    assert called(step(result.transaction, due)) == [("a", operation, 2)]
    assert result.wake_at == due
    assert result.rests == (retry_after_s is not None), "a long pause is left to recovery"


@pytest.mark.parametrize("decision", [Decision.CONFIRM, Decision.CANCEL])
def test_a_failure_after_the_decision_delays_and_a_participant_that_is_still_working_does_not(
    decision: Decision,
) -> None:
    asked, operation = (confirming, CONFIRM) if decision is Decision.CONFIRM else (cancelling, CANCEL)
    working = said("a", operation, Answer.UNANSWERED, in_progress=True, retry_after_s=0.5)
    began = step(decided(decision, asked("a"), asked("b")), NOW, working)
    assert not began.transaction.is_delayed
    assert began.transaction.branches[0].failures == 0
    assert began.transaction.branches[0].next_attempt_at == NOW + 0.5, "it is asked again later"
    failed = step(began.transaction, NOW, said("b", operation, Answer.UNANSWERED))
    assert failed.transaction.is_delayed
    again = step(failed.transaction, NOW + 1)
    assert again.transaction.is_delayed, "it has failed, and is only called again"
    works = step(again.transaction, NOW + 1, said("b", operation, Answer.UNANSWERED, attempt=2, in_progress=True))
    assert works.transaction.is_delayed, "it failed before that"
    asked_again = step(works.transaction, NOW + 9)
    done = step(asked_again.transaction, NOW + 9, said("b", operation, Answer.SUCCEEDED, attempt=3))
    assert not done.transaction.is_delayed, "what failed is done, and the other is still working"


def test_a_try_that_failed_delays_nothing() -> None:
    before = undecided(trying("a", calling=None, last_answer=Answer.UNANSWERED, failures=1), trying("b"))
    assert not before.is_delayed
    result = step(before, NOW + 2, CancelRequested())
    assert [b.phase for b in result.transaction.branches] == ["cancelling", "trying"]
    assert not result.transaction.is_delayed
    late = step(result.transaction, NOW + 3, said("b", Operation.TRY, Answer.UNANSWERED))
    assert not late.transaction.is_delayed, "its Try failed after the decision; its Cancel has not"


def test_a_hold_and_an_acknowledgement_end_the_failures() -> None:
    result = step(undecided(trying("a", failures=2), trying("b")), NOW, said("a", Operation.TRY, Answer.SUCCEEDED))
    assert result.transaction.branches[0] == held("a")


@pytest.mark.parametrize(
    "stale",
    [
        said("z", CONFIRM, Answer.SUCCEEDED),
        said("a", CONFIRM, Answer.SUCCEEDED, attempt=2),
        said("a", CANCEL, Answer.SUCCEEDED, attempt=0),
        said("a", Operation.TRY, Answer.SUCCEEDED),
    ],
)
def test_an_answer_that_nobody_waits_for_changes_nothing(stale: Answered) -> None:
    before = decided(Decision.CONFIRM, confirming("a"))
    assert step(before, NOW, stale) == step(before, NOW)


def test_an_answer_to_what_its_phase_does_not_ask_is_a_broken_invariant() -> None:
    with pytest.raises(AssertionError, match="confirming doesn't ask for try"):
        step(
            decided(Decision.CONFIRM, confirming("a", calling=Operation.TRY)),
            NOW,
            said("a", Operation.TRY, Answer.SUCCEEDED),
        )


# --- the time that a hold is safe --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("announced_s", "margin_s", "safe_s"),
    [
        (None, 30.0, 55.0),  # to the deadline, the margin, and at most five seconds less
        (100.0, 30.0, 55.0),  # it holds for longer than was asked
        (40.0, 30.0, 36.0),  # a tenth less
        (40.0, 2.0, 30.0),  # 32 s asked for, and no more than the margin less
        (0.0, 30.0, 0.0),
    ],
)
def test_a_hold_is_safe_until_shortly_before_its_end(announced_s: float | None, margin_s: float, safe_s: float) -> None:
    answer = said("a", Operation.TRY, Answer.SUCCEEDED, attempt=2, hold_ttl_s=announced_s)
    policy = replace(POLICY, hold_margin_s=margin_s)
    result = step(undecided(trying("a", try_attempts=2), trying("b")), NOW + 9, answer, policy=policy)
    assert result.transaction.branches[0].hold_until == NOW + safe_s


def test_the_ttl_counts_from_the_first_try() -> None:
    waiting = trying("a", calling=None, next_attempt_at=NOW + 5)
    assert step(undecided(waiting), NOW + 5).transaction.branches[0].tried_at == NOW


# --- one after the other -----------------------------------------------------------------------------------------


def test_in_sequence_each_try_waits_for_the_hold_before_it() -> None:
    branches = in_order((Branch(name="a"), Branch(name="b")), TryOrder.SEQUENTIAL)
    assert branches == (Branch(name="a"), Branch(name="b", waits_for=("a",)))
    assert in_order(branches[:1], TryOrder.PARALLEL) == in_order(branches[:1], TryOrder.SEQUENTIAL) == branches[:1]
    result = step(begun(branches=branches), NOW)
    assert called(result) == [("a", Operation.TRY, 1)]
    assert result.transaction.branches[1] == branches[1]
    second = step(result.transaction, NOW + 1, said("a", Operation.TRY, Answer.SUCCEEDED))
    assert called(second) == [("b", Operation.TRY, 1)]
    assert second.must_save, "the record must say that b may hold"


def test_a_try_leaves_when_all_that_it_comes_after_hold_and_waits_for_nothing_else() -> None:
    """`c` waits for both of the others, however late either of them is; `d` goes by `a` alone."""
    c, d = Branch(name="c", waits_for=("a", "b")), Branch(name="d", waits_for=("a",))
    first = step(undecided(trying("a"), trying("b"), c, d), NOW, said("b", Operation.TRY, Answer.SUCCEEDED))
    assert called(first) == []
    silent = step(first.transaction, NOW, said("a", Operation.TRY, Answer.UNANSWERED))
    assert called(silent) == []
    assert silent.wake_at == NOW + back_off_of(trying("a"), BranchPhase.TRYING, 1), "for a's next Try, and no other"
    repeated = step(silent.transaction, silent.wake_at)
    second = step(repeated.transaction, NOW + 1, said("a", Operation.TRY, Answer.SUCCEEDED, attempt=2))
    assert called(second) == [("c", Operation.TRY, 1), ("d", Operation.TRY, 1)]


def test_what_waits_for_its_turn_is_cancelled_without_a_call() -> None:
    b = Branch(name="b", waits_for=("a",))
    result = step(undecided(trying("a"), b), NOW, said("a", Operation.TRY, Answer.REFUSED))
    assert called(result) == [("a", CANCEL, 1)]
    assert result.transaction.branches[1] == replace(b, phase=BranchPhase.CANCELLED)


# --- pivots, and what comes after the decision -------------------------------------------------------------------


def pivot(**changed: Any) -> Branch:
    """A pivot whose first action is under way."""
    asked = {"kind": Kind.PIVOT, "participant": "p", "calling": Operation.ACTION, "waits_for": ("a",)}
    return trying("p", **{**asked, **changed})


ACTION = Operation.ACTION
CHARGED = BranchResolved(branch="p", settled=Settled.CONFIRMED, by="ops", reason="seen in the ledger")
NOT_CHARGED = replace(CHARGED, settled=Settled.CANCELLED)


def test_the_deadline_of_a_sent_pivot_decides_nothing_and_only_its_cancel_is_sent() -> None:
    before = undecided(held("a"), pivot())
    under_way = step(replace(before, wake_at=DEADLINE + 15), DEADLINE)
    assert (under_way.transaction.decision, called(under_way)) == (Decision.UNDECIDED, [])
    withdrawn = step(under_way.transaction, DEADLINE, said("p", ACTION, Answer.UNANSWERED))
    assert called(withdrawn) == [("p", CANCEL, 1)]
    never = step(withdrawn.transaction, DEADLINE + 1, said("p", CANCEL, Answer.SUCCEEDED)).transaction
    assert (never.decision, never.reason and never.reason.code) == (Decision.CANCEL, ReasonCode.TIMED_OUT)
    done = said("p", CANCEL, Answer.REFUSED, already=True, result="r")
    charged = step(withdrawn.transaction, DEADLINE + 1, done).transaction
    assert (charged.decision, charged.branches[1].result) == (Decision.CONFIRM, "r")
    not_done = step(withdrawn.transaction, DEADLINE + 1, said("p", CANCEL, Answer.REFUSED)).transaction
    assert not_done.decision is Decision.UNDECIDED


def test_a_pivot_without_a_cancel_is_asked_again_past_the_deadline() -> None:
    offers_none = pivot(participant=None, endpoints={ACTION: "http://p/charge"})
    before = replace(undecided(held("a"), offers_none), wake_at=DEADLINE + 15)
    failed = step(before, DEADLINE, said("p", ACTION, Answer.UNANSWERED)).transaction
    due = failed.branches[1].next_attempt_at
    assert due is not None
    assert called(step(failed, due)) == [("p", ACTION, 2)]


@pytest.mark.parametrize(
    ("answer", "command", "decision"),
    [(Answer.REFUSED, CHARGED, Decision.CANCEL), (Answer.SUCCEEDED, NOT_CHARGED, Decision.CONFIRM)],
)
def test_a_person_does_not_overrule_what_a_pivot_has_answered(
    answer: Answer, command: BranchResolved, decision: Decision
) -> None:
    """In whichever order they arrive together: an answer after the command makes the outcome mixed."""
    before = undecided(held("a"), pivot())
    first = step(before, NOW + 1, said("p", ACTION, answer), command).transaction
    assert (first.decision, first.branches[1].resolution) == (decision, None)
    late = step(before, NOW + 1, command, said("p", ACTION, answer)).transaction
    assert late.decision is not decision
    assert late.branches[1].contradicted


@pytest.mark.parametrize("already", [False, True])
def test_every_late_refusal_of_a_pivot_contradicts_that_it_happened(already: bool) -> None:
    resolved = step(undecided(held("a"), pivot()), NOW + 1, CHARGED).transaction
    assert (resolved.decision, resolved.branches[1].calling) == (Decision.CONFIRM, ACTION)
    late = step(resolved, NOW + 2, said("p", ACTION, Answer.REFUSED, already=already)).transaction
    assert late.branches[1].contradicted
    ended = step(late, NOW + 3, said("a", CONFIRM, Answer.SUCCEEDED)).transaction
    assert (ended.finished, ended.outcome) == (True, "mixed")


def test_a_pivot_that_is_still_working_is_listed_when_no_deadline_will_end_it() -> None:
    working = said("p", ACTION, Answer.UNANSWERED, in_progress=True)
    before = replace(undecided(held("a", hold_until=FAR), pivot(), deadline=NOW + 90), wake_at=NOW + 200)
    assert step(before, NOW + 89, working).transaction.hung_reason is None
    assert step(before, NOW + 90, working).transaction.hung_reason is HungReason.PIVOT_UNANSWERED


def test_a_retryable_step_waits_for_the_end_of_the_one_before_it_and_carries_what_was_saved() -> None:
    first = Branch(name="r", kind=Kind.RETRYABLE)
    second = Branch(name="s", kind=Kind.RETRYABLE, after=("r",))
    begun_step = step(begun(branches=in_order((first, second), TryOrder.PARALLEL)), NOW)
    assert called(begun_step) == [("r", ACTION, 1)], "confirm is decided at once"
    done = step(begun_step.transaction, NOW + 1, said("r", ACTION, Answer.SUCCEEDED, result="sent"))
    assert called(done) == [("s", ACTION, 1)]
    assert (done.calls[0].results, done.must_save) == ({"r": "sent"}, True)


def test_a_wish_that_was_carried_out_is_on_record_whatever_is_wanted_meanwhile() -> None:
    wish = replace(RESOLVE, send=True)
    sent = step(decided(Decision.CANCEL, cancelling("a", calling=None)), NOW + 1, wish)
    assert (called(sent), sent.must_save) == ([("a", CONFIRM, 1)], True)
    other = step(sent.transaction, NOW + 2, replace(wish, settled=Settled.CANCELLED)).transaction
    ended = step(other, NOW + 3, said("a", CONFIRM, Answer.SUCCEEDED)).transaction
    assert (ended.branches[0].phase, ended.outcome) == (BranchPhase.RESOLVED, "mixed")
    again = step(other, NOW + 3, said("a", CONFIRM, Answer.UNANSWERED))
    assert called(again) == [("a", CANCEL, 2)]
    assert again.transaction.branches[0].intent is None


# --- commands ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "transaction", "expected"),
    [
        (CancelRequested(), begun(), None),
        (CancelRequested(), decided(Decision.CANCEL, cancelling("a")), None),
        (CancelRequested(), decided(Decision.CONFIRM, confirming("a")), Objection.ALREADY_DECIDED),
        (RetryRequested(), decided(Decision.CONFIRM, confirming("a")), None),
        (RetryRequested(), decided(Decision.CONFIRM, confirming("a"), finished_at=NOW), Objection.ALREADY_FINISHED),
        (RESOLVE, decided(Decision.CONFIRM, confirming("a")), None),
        (RESOLVE, decided(Decision.CANCEL, cancelling("a")), None),
        (RESOLVE, undecided(held("a")), Objection.NOT_DECIDED),
        (RESOLVE, decided(Decision.CONFIRM, confirming("b")), Objection.UNKNOWN_BRANCH),
        (RESOLVE, decided(Decision.CONFIRM, confirming("a", phase=BranchPhase.CONFIRMED)), Objection.BRANCH_FINISHED),
    ],
)
def test_what_can_be_asked_when(command: Command, transaction: Transaction, expected: Objection | None) -> None:
    assert objection(transaction, command) is expected


def test_the_objections_are_the_slugs_of_the_contract() -> None:
    assert [each.value for each in Objection] == [
        "already-decided",
        "already-finished",
        "pivot-sent",
        "not-decided",
        "nothing-to-send",
        "unknown-branch",
        "branch-finished",
    ]


def test_a_resolved_branch_says_who_settled_it_and_is_called_no_more() -> None:
    hung = {"hung_reason": HungReason.CONFIRM_UNANSWERED, "failures": 4}
    before = decided(
        Decision.CONFIRM,
        confirming("a", calling=None, next_attempt_at=NOW + 500, **hung),
        confirming("b", **hung),
        hung_since=NOW,
    )
    result = step(before, NOW + 70, RESOLVE)
    resolution = Resolution(settled=Settled.CONFIRMED, by="ops", at=NOW + 70, reason="seen in the ledger")
    a, b = result.transaction.branches
    assert a == confirming("a", phase=BranchPhase.RESOLVED, calling=None, failures=4, resolution=resolution)
    assert b == before.branches[1]
    assert result.transaction.reason == Reason(code=ReasonCode.OPERATOR, branch="a", detail="seen in the ledger")
    assert result.transaction.hung_since == NOW
    assert result.must_save
    assert called(result) == []
    under_way = step(decided(Decision.CONFIRM, confirming("a"), confirming("b")), NOW, RESOLVE).transaction.branches[0]
    assert under_way.calling is None


def test_a_resolution_keeps_the_reason_that_there_was_and_may_end_it_all() -> None:
    refused = Reason(code=ReasonCode.REFUSED, branch="b", detail="sold out")
    hung = cancelling("a", hung_reason=HungReason.CANCEL_REFUSED)
    result = step(decided(Decision.CANCEL, hung, reason=refused, hung_since=NOW), NOW + 9, RESOLVE)
    assert result.transaction.reason == refused
    assert result.transaction.finished_at == NOW + 9
    assert result.transaction.hung_since is None
    assert result.transaction.branches[0].hung_reason is None


def test_a_resolution_that_is_objected_to_changes_nothing() -> None:
    before = undecided(trying("a"), trying("b"))
    assert step(before, NOW, RESOLVE) == step(before, NOW)


def test_a_retry_makes_every_waiting_call_now() -> None:
    waiting = {"calling": None, "failures": 9, "next_attempt_at": NOW + 500}
    done = confirming("c", phase=BranchPhase.CONFIRMED, calling=None, next_attempt_at=NOW + 500)
    before = decided(Decision.CONFIRM, confirming("a", **waiting), confirming("b", failures=1), done)
    result = step(before, NOW + 5, RetryRequested())
    assert called(result) == [("a", CONFIRM, 2)]
    a, b, c = result.transaction.branches
    assert a == confirming("a", confirm_attempts=2)
    assert b == confirming("b")
    assert c == done
    unasked = step(undecided(held("a", failures=3), trying("b", **waiting)), NOW + 5, RetryRequested())
    assert called(unasked) == [("b", Operation.TRY, 2)]
    assert unasked.transaction.branches[0] == held("a", failures=3)


# --- hung --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("decision", "asked", "refused", "unanswered"),
    [
        (Decision.CONFIRM, confirming("a"), HungReason.CONFIRM_REFUSED, HungReason.CONFIRM_UNANSWERED),
        (Decision.CANCEL, cancelling("a"), HungReason.CANCEL_REFUSED, HungReason.CANCEL_UNANSWERED),
    ],
)
class TestHung:
    """A branch that a person should look at is marked, and the transaction with it."""

    def test_a_refusal_hangs_at_once(
        self, decision: Decision, asked: Branch, refused: HungReason, unanswered: HungReason
    ) -> None:
        assert asked.calling is not None
        refusal = said("a", asked.calling, Answer.REFUSED, error="no such hold")
        result = step(decided(decision, asked), NOW + 2, refusal)
        (after,) = result.transaction.branches
        assert after.hung_reason is refused
        assert after.phase is asked.phase
        assert result.transaction.hung_since == NOW + 2
        assert result.must_save
        again = step(result.transaction, NOW + 90)
        assert again.transaction.branches[0].hung_reason is refused, "time does not take that back"
        assert again.transaction.hung_since == NOW + 2
        silent = step(again.transaction, NOW + 91, said("a", asked.calling, Answer.UNANSWERED, attempt=2))
        assert silent.transaction.branches[0].hung_reason is refused, "nor does silence"

    def test_silence_hangs_after_some_attempts(
        self, decision: Decision, asked: Branch, refused: HungReason, unanswered: HungReason
    ) -> None:
        assert asked.calling is not None
        silence = said("a", asked.calling, Answer.UNANSWERED)
        for failures, expected in ((1, None), (2, unanswered)):
            result = step(decided(decision, replace(asked, failures=failures)), NOW + 2, silence)
            assert result.transaction.branches[0].hung_reason is expected
            assert result.transaction.hung_since == (expected and NOW + 2)
            assert result.must_save == bool(expected) or result.rests

    def test_silence_hangs_after_some_time(
        self, decision: Decision, asked: Branch, refused: HungReason, unanswered: HungReason
    ) -> None:
        before = replace(decided(decision, asked), wake_at=NOW + 70)
        early = step(before, NOW + 59.999)
        assert early.transaction == before
        assert early.wake_at == NOW + 60
        result = step(before, NOW + 60)
        assert result.transaction.branches[0].hung_reason is unanswered
        assert result.transaction.hung_since == NOW + 60
        assert result.must_save
        assert not step(result.transaction, NOW + 60.5).must_save

    def test_the_end_of_the_last_hung_branch_takes_it_off_the_list(
        self, decision: Decision, asked: Branch, refused: HungReason, unanswered: HungReason
    ) -> None:
        assert asked.calling is not None
        hung = replace(asked, hung_reason=unanswered)
        before = decided(decision, hung, replace(asked, name="b"), hung_since=NOW)
        result = step(before, NOW + 2, said("a", asked.calling, Answer.SUCCEEDED))
        assert result.transaction.branches[0].hung_reason is None
        assert result.transaction.hung_since is None
        assert not result.transaction.finished
        assert result.must_save


FAR = NOW + 86_400.0
"""A deadline that leaves time to become hung before the decision."""


@pytest.mark.parametrize(
    ("failures", "at", "in_progress", "expected"),
    [
        (1, NOW + 99, False, None),
        (2, NOW + 59.999, False, None),
        (2, NOW + 60, False, HungReason.TRY_UNANSWERED),
        (2, NOW + 60, True, None),
        (3, NOW + 99, True, None),
    ],
)
def test_a_try_that_fails_often_and_for_long_hangs(
    failures: int, at: float, in_progress: bool, expected: HungReason | None
) -> None:
    """Both the attempts and the time; a participant that is still working has not failed."""
    before = undecided(trying("a", failures=failures), trying("b"), deadline=FAR)
    unanswered = said("a", Operation.TRY, Answer.UNANSWERED, in_progress=in_progress)
    result = step(replace(before, wake_at=at + 15), at, unanswered)
    a, b = result.transaction.branches
    assert (a.hung_reason, b.hung_reason, result.transaction.hung_reason) == (expected, None, expected)
    assert result.transaction.hung_since == (at if expected else None)
    assert result.must_save == bool(expected)
    assert a.failures == failures + (not in_progress)


class TestTurnedAway:
    """A participant that doesn't accept who calls: unanswered, and listed at the first."""

    def test_a_try_is_repeated_and_hangs_at_once_until_it_holds(self) -> None:
        denied = said("a", Operation.TRY, Answer.UNANSWERED, unauthorized=True, error="HTTP 401")
        result = step(undecided(trying("a"), trying("b"), deadline=FAR), NOW + 1, denied)
        a, b = result.transaction.branches
        assert (a.phase, a.hung_reason, b.hung_reason) == (BranchPhase.TRYING, HungReason.UNAUTHORIZED, None)
        assert (result.transaction.decision, result.transaction.hung_since) == (Decision.UNDECIDED, NOW + 1)
        assert result.must_save
        assert a.next_attempt_at is not None
        again = step(result.transaction, a.next_attempt_at)
        assert called(again) == [("a", Operation.TRY, 2)]
        late = NOW + 99
        silence = said("a", Operation.TRY, Answer.UNANSWERED, attempt=2)
        silent = step(replace(again.transaction, wake_at=late + 15), late, silence).transaction
        assert silent.branches[0].hung_reason is HungReason.UNAUTHORIZED, "it is what a person has to repair"
        held = step(again.transaction, NOW + 9, said("a", Operation.TRY, Answer.SUCCEEDED, attempt=2)).transaction
        assert (held.branches[0].phase, held.branches[0].hung_reason) == (BranchPhase.HELD, None)

    def test_at_the_deadline_it_is_cancelled_and_counts_anew(self) -> None:
        hung = silent("a", hung_reason=HungReason.UNAUTHORIZED)
        result = step(undecided(hung, trying("b"), hung_since=NOW), DEADLINE)
        assert result.transaction.decision is Decision.CANCEL
        assert result.transaction.branches[0].hung_reason is None
        denied = said("a", CANCEL, Answer.UNANSWERED, unauthorized=True)
        assert step(result.transaction, DEADLINE + 1, denied).transaction.hung_reason is HungReason.UNAUTHORIZED

    @pytest.mark.parametrize("decision", [Decision.CONFIRM, Decision.CANCEL])
    def test_after_the_decision_it_hangs_at_once_and_until_the_end(self, decision: Decision) -> None:
        asked = confirming("a") if decision is Decision.CONFIRM else cancelling("a")
        assert asked.calling is not None
        denied = said("a", asked.calling, Answer.UNANSWERED, unauthorized=True)
        hung = step(decided(decision, asked), NOW + 1, denied).transaction
        assert (hung.hung_reason, hung.hung_since) == (HungReason.UNAUTHORIZED, NOW + 1)
        later = step(replace(hung, wake_at=NOW + 99), NOW + 90)
        assert later.transaction.hung_reason is HungReason.UNAUTHORIZED
        refused = step(later.transaction, NOW + 91, said("a", asked.calling, Answer.REFUSED, attempt=2)).transaction
        assert refused.hung_reason is not HungReason.UNAUTHORIZED
        ended = step(later.transaction, NOW + 91, said("a", asked.calling, Answer.SUCCEEDED, attempt=2)).transaction
        assert (ended.finished, ended.hung_since) == (True, None)

    def test_a_refusal_stays_the_reason(self) -> None:
        branch = replace(confirming("a"), hung_reason=HungReason.CONFIRM_REFUSED)
        denied = said("a", Operation.CONFIRM, Answer.UNANSWERED, unauthorized=True)
        result = step(decided(Decision.CONFIRM, branch, hung_since=NOW), NOW + 1, denied)
        assert result.transaction.hung_reason is HungReason.CONFIRM_REFUSED

    def test_a_try_that_was_under_way_at_the_decision_says_nothing_about_the_cancel(self) -> None:
        denied = said("a", Operation.TRY, Answer.UNANSWERED, unauthorized=True)
        result = step(decided(Decision.CANCEL, trying("a")), NOW + 1, denied)
        assert (called(result), result.transaction.hung_since) == ([("a", CANCEL, 1)], None)


@pytest.mark.parametrize("answer", [Answer.SUCCEEDED, Answer.REFUSED, Answer.UNANSWERED])
def test_a_result_that_was_lost_cancels_if_it_is_that_of_a_hold(answer: Answer) -> None:
    before = undecided(trying("a"), trying("b"))
    result = step(before, NOW + 2, said("a", Operation.TRY, answer, too_long=True, error="the answer has 70 KiB"))
    after = result.transaction
    if answer is Answer.SUCCEEDED:
        assert after.decided_at == NOW + 2
        assert after.reason == Reason(code=ReasonCode.RESULT_TOO_LONG, branch="a", detail="the answer has 70 KiB")
        assert called(result) == [("a", CANCEL, 1)]
    else:
        assert after.decision is (Decision.CANCEL if answer is Answer.REFUSED else Decision.UNDECIDED)
        assert after.reason is None or after.reason.code is ReasonCode.REFUSED


@pytest.mark.parametrize("decision", [Decision.CONFIRM, Decision.CANCEL])
def test_a_long_answer_after_the_decision_is_an_answer(decision: Decision) -> None:
    asked = confirming("a") if decision is Decision.CONFIRM else cancelling("a")
    assert asked.calling is not None
    result = step(decided(decision, asked), NOW + 2, said("a", asked.calling, Answer.SUCCEEDED, too_long=True))
    assert (result.transaction.finished, result.transaction.reason) == (True, None)


def test_a_hold_that_comes_after_the_decision_is_cancelled_however_long_its_answer() -> None:
    reason = Reason(code=ReasonCode.REQUESTED)
    before = decided(Decision.CANCEL, trying("a"), reason=reason)
    result = step(before, NOW + 2, said("a", Operation.TRY, Answer.SUCCEEDED, too_long=True))
    assert result.transaction.reason == reason
    assert called(result) == [("a", CANCEL, 1)]


def test_the_failures_of_a_try_under_way_are_none_of_the_cancel() -> None:
    before = decided(Decision.CANCEL, trying("a", failures=7))
    assert step(before, NOW + 2).transaction.hung_since is None
    late = step(replace(before, wake_at=NOW + 75), NOW + 60)
    assert late.transaction.branches[0].hung_reason is HungReason.CANCEL_UNANSWERED


def test_what_waits_for_its_turn_is_not_hung() -> None:
    branches = in_order((trying("a", failures=7), Branch(name="b")), TryOrder.SEQUENTIAL)
    before = undecided(*branches, deadline=FAR, try_order=TryOrder.SEQUENTIAL)
    a, b = step(before, NOW + 70, said("a", Operation.TRY, Answer.UNANSWERED)).transaction.branches
    assert (a.hung_reason, b.hung_reason) == (HungReason.TRY_UNANSWERED, None)


def silent(name: str, **changed: Any) -> Branch:
    """A branch that hangs because its Trys have failed, and waits for the next one."""
    waits = {"calling": None, "failures": 3, "next_attempt_at": NOW + 500, "hung_reason": HungReason.TRY_UNANSWERED}
    return trying(name, **{**waits, **changed})


def test_an_undecided_transaction_that_hangs_is_tried_again_and_stays_listed_until_it_is_answered() -> None:
    before = undecided(silent("a"), held("b", hold_until=FAR), deadline=FAR, hung_since=NOW + 70)
    retried = step(before, NOW + 80, RetryRequested())
    assert called(retried) == [("a", Operation.TRY, 2)]
    a = retried.transaction.branches[0]
    assert (a.failures, a.hung_reason, retried.transaction.hung_since) == (0, HungReason.TRY_UNANSWERED, NOW + 70)
    failed = step(retried.transaction, NOW + 81, said("a", Operation.TRY, Answer.UNANSWERED, attempt=2))
    assert failed.transaction.hung_reason is HungReason.TRY_UNANSWERED, "one failure since the retry"
    working = said("a", Operation.TRY, Answer.UNANSWERED, attempt=2, in_progress=True)
    assert step(retried.transaction, NOW + 81, working).transaction.hung_since == NOW + 70, "that is no answer yet"
    confirmed = step(retried.transaction, NOW + 81, said("a", Operation.TRY, Answer.SUCCEEDED, attempt=2))
    assert confirmed.transaction.decision is Decision.CONFIRM
    assert (confirmed.transaction.hung_since, confirmed.transaction.hung_reason) == (None, None)


def test_a_branch_that_holds_hangs_no_longer_and_the_others_go_on() -> None:
    asked = silent("a", calling=Operation.TRY, next_attempt_at=None)
    before = undecided(asked, silent("b"), deadline=FAR, hung_since=NOW + 70)
    result = step(before, NOW + 81, said("a", Operation.TRY, Answer.SUCCEEDED))
    assert [b.hung_reason for b in result.transaction.branches] == [None, HungReason.TRY_UNANSWERED]
    assert result.transaction.hung_since == NOW + 70
    assert result.must_save
    alone = step(replace(before, branches=(asked, trying("b"))), NOW + 81, said("a", Operation.TRY, Answer.SUCCEEDED))
    assert alone.transaction.decision is Decision.UNDECIDED
    assert (alone.transaction.hung_since, alone.must_save) == (None, True)


@pytest.mark.parametrize(
    ("at", "inputs"),
    [(NOW + 80, (CancelRequested(),)), (FAR, ()), (NOW + 80, (said("b", Operation.TRY, Answer.REFUSED),))],
)
def test_the_decision_ends_the_silence_even_while_a_try_is_under_way(at: float, inputs: tuple[Input, ...]) -> None:
    calling = silent("c", calling=Operation.TRY, next_attempt_at=None)
    before = undecided(silent("a"), trying("b"), calling, deadline=FAR, hung_since=NOW + 70)
    result = step(before, at, *inputs).transaction
    assert result.decision is Decision.CANCEL
    assert result.branches[0].phase is BranchPhase.CANCELLING
    assert result.branches[2].phase is BranchPhase.TRYING
    assert (result.hung_since, result.hung_reason) == (None, None)
    ended = step(result, at + 1, said("c", Operation.TRY, Answer.UNANSWERED)).transaction
    assert (ended.branches[2].phase, ended.hung_reason) == (BranchPhase.CANCELLING, None)
    late = step(replace(result, wake_at=at + 90), at + 60).transaction
    assert late.hung_reason is HungReason.CANCEL_UNANSWERED, "and that counts from the decision"


@pytest.mark.parametrize("next_attempt_at", [NOW + 500, FAR + 500])
def test_the_pause_of_a_silent_try_ends_at_the_deadline_at_the_latest(next_attempt_at: float) -> None:
    before = undecided(silent("a", next_attempt_at=next_attempt_at), deadline=FAR, hung_since=NOW + 70)
    result = step(before, NOW + 71)
    assert (result.rests, result.wake_at) == (True, min(next_attempt_at, FAR))
    assert result.transaction.wake_at == result.wake_at


@pytest.mark.parametrize("operation", [Operation.TRY, CONFIRM, CANCEL])
def test_a_participant_that_is_still_working_is_asked_less_and_less_often(operation: Operation) -> None:
    branch = {Operation.TRY: trying, CONFIRM: confirming, CANCEL: cancelling}[operation]("a")
    decision = {Operation.TRY: Decision.UNDECIDED, CONFIRM: Decision.CONFIRM, CANCEL: Decision.CANCEL}[operation]
    for attempts in (1, 4, 99):
        asked = replace(branch, try_attempts=attempts, confirm_attempts=attempts, cancel_attempts=attempts)
        before = replace(undecided(asked, deadline=FAR), decision=decision, decided_at=NOW)
        working = said("a", operation, Answer.UNANSWERED, attempt=attempts, in_progress=True)
        (after,) = step(before, NOW + 2, working).transaction.branches
        assert after.next_attempt_at == NOW + 2 + back_off_of(asked, asked.phase, attempts)
        assert (after.failures, after.hung_reason) == (0, None)


def test_a_try_that_never_ends_hangs_its_cancelled_transaction() -> None:
    """The Cancel must wait for it, and so must a person know."""
    before = replace(decided(Decision.CANCEL, trying("a", failures=9)), wake_at=NOW + 70)
    assert step(before, NOW + 59).transaction.branches[0].hung_reason is None
    assert step(before, NOW + 60).transaction.branches[0].hung_reason is HungReason.CANCEL_UNANSWERED


def test_a_transaction_that_was_set_aside_hangs_and_is_left_alone() -> None:
    done = confirming("b", phase=BranchPhase.CONFIRMED, calling=None)
    before = decided(Decision.CONFIRM, confirming("a"), done)
    aside = broken(before, NOW + 7, POLICY)
    a = confirming("a", hung_reason=HungReason.INTERNAL_ERROR)
    assert aside == replace(before, branches=(a, done), hung_since=NOW + 7, wake_at=NOW + 7 + 15.0)
    assert broken(aside, NOW + 50, POLICY).hung_since == NOW + 7
    assert broken(before, NOW, replace(POLICY, retry_cap_s=40.0)).wake_at == NOW + 40


def test_what_was_set_aside_undecided_hangs_until_it_is_final() -> None:
    """A branch that needs no Cancel is final at once, the other hangs on for its Cancel."""
    aside = broken(undecided(Branch(name="a"), trying("b", calling=None)), NOW, POLICY)
    a, b = step(aside, NOW + 1, CancelRequested()).transaction.branches
    assert (a.phase, a.hung_reason) == (BranchPhase.CANCELLED, None)
    assert (b.phase, b.hung_reason) == (BranchPhase.CANCELLING, HungReason.INTERNAL_ERROR)


def test_a_branch_that_was_set_aside_hangs_for_its_true_reason_again() -> None:
    aside = confirming("a", calling=None, hung_reason=HungReason.INTERNAL_ERROR)
    before = decided(Decision.CONFIRM, aside, hung_since=NOW)
    assert step(before, NOW + 9).transaction.branches[0].hung_reason is HungReason.INTERNAL_ERROR
    late = step(before, NOW + 60).transaction
    assert late.branches[0].hung_reason is HungReason.CONFIRM_UNANSWERED
    assert late.hung_since == NOW


# --- saving, resting, waking -------------------------------------------------------------------------------------


def test_a_pause_that_is_longer_than_the_linger_is_left_to_recovery() -> None:
    waiting = trying("a", calling=None, failures=1, next_attempt_at=NOW + 3)
    before = undecided(waiting)
    result = step(before, NOW + 2)
    assert (result.rests, result.must_save, result.wake_at) == (False, False, NOW + 3)
    assert result.transaction == before
    result = step(before, NOW + 1.999)
    assert (result.rests, result.must_save, result.wake_at, result.calls) == (True, True, NOW + 3, ())
    assert result.transaction == replace(before, wake_at=NOW + 3)
    assert not step(result.transaction, NOW + 1.999).must_save, "it is saved already"


def test_a_pause_may_be_longer_than_a_lease() -> None:
    waiting = confirming("a", calling=None, failures=1, next_attempt_at=NOW + 40)
    result = step(decided(Decision.CONFIRM, waiting), NOW + 1)
    assert (result.rests, result.wake_at) == (True, NOW + 40)


def test_nothing_rests_while_a_call_is_under_way() -> None:
    waiting = trying("a", calling=None, failures=1, next_attempt_at=NOW + 20)
    assert not step(undecided(waiting, trying("b")), NOW + 1).rests


@pytest.mark.parametrize(
    "before",
    [
        undecided(trying("a", calling=None, failures=1, next_attempt_at=NOW + 3)),
        undecided(held("a", hold_until=NOW + 20), trying("b", calling=None, failures=1, next_attempt_at=NOW + 40)),
        undecided(trying("a", calling=None, failures=1, next_attempt_at=NOW + 60)),
        decided(Decision.CONFIRM, confirming("a", calling=None, failures=1, next_attempt_at=NOW + 40)),
        decided(Decision.CONFIRM, confirming("a", calling=None, failures=1, next_attempt_at=NOW + 90)),
    ],
)
def test_whether_anybody_works_on_what_was_read_can_be_told(before: Transaction) -> None:
    """By its time: the next due one, or the end of a lease. A claim takes a lease."""
    rests = step(before, NOW + 1)
    assert rests.rests
    assert is_at_rest(rests.transaction, POLICY)
    claimed = replace(rests.transaction, wake_at=NOW + 1 + POLICY.lease_s)
    assert not is_at_rest(claimed, POLICY)
    retried = step(claimed, NOW + 2, RetryRequested())
    assert retried.calls
    read = [replace(branch, calling=None) for branch in retried.transaction.branches]
    assert not is_at_rest(replace(retried.transaction, branches=tuple(read)), POLICY)


@pytest.mark.parametrize(
    ("transaction", "names"),
    [
        (begun(), "ab"),
        (begun(branches=in_order(begun().branches, TryOrder.SEQUENTIAL)), "a"),
        (undecided(held("a"), trying("b")), "b"),
        (undecided(held("a"), trying("b", calling=None, next_attempt_at=NOW + 4)), "b"),
        (undecided(held("a"), held("b")), ""),
        (decided(Decision.CANCEL, trying("a"), cancelling("b", phase=BranchPhase.CANCELLED, calling=None)), "a"),
        (
            decided(
                Decision.CANCEL, trying("a", calling=None), cancelling("b", phase=BranchPhase.CANCELLED, calling=None)
            ),
            "a",
        ),
        (decided(Decision.CONFIRM, held("a"), confirming("b"), DONE), "ab"),
        (decided(Decision.CONFIRM, DONE, confirming("b", calling=None, next_attempt_at=NOW + 4)), "b"),
    ],
)
def test_who_is_awaited_has_not_answered_and_its_turn_has_come(transaction: Transaction, names: str) -> None:
    assert "".join(branch.name for branch in awaited(transaction)) == names


def test_who_asked_is_unknown_unless_it_is_said() -> None:
    assert [command.by for command in (CancelRequested(), RetryRequested())] == [None, None]


LATER: dict[str, Any] = {"calling": None, "next_attempt_at": NOW + 4}
STOPPED: dict[str, Any] = {"calling": None, "next_attempt_at": None}


@pytest.mark.parametrize(
    ("transaction", "interrupted"),
    [
        (begun(), True),
        (undecided(held("a"), trying("b", **STOPPED)), True),
        (undecided(held("a"), trying("b", **LATER)), False),
        (undecided(trying("a", **LATER), Branch(name="b", waits_for=("a",))), False),
        (undecided(held("a"), held("b")), False),
        (decided(Decision.CONFIRM, DONE, confirming("b", **STOPPED)), True),
        (decided(Decision.CONFIRM, DONE, confirming("b", **LATER)), False),
        (decided(Decision.CANCEL, trying("a", **STOPPED), cancelling("b", **LATER)), True),
        (decided(Decision.CANCEL, cancelling("a", **LATER), cancelling("b", **LATER)), False),
        (decided(Decision.CANCEL, cancelling("a", **STOPPED), cancelling("b", **LATER)), True),
    ],
)
def test_who_left_calls_without_a_time_was_interrupted(transaction: Transaction, interrupted: bool) -> None:
    """As it is stored: no call in progress is."""
    assert was_interrupted(transaction) is interrupted


def test_nobody_works_on_what_is_finished() -> None:
    ended = decided(Decision.CANCEL, trying("a"), finished_at=NOW)
    assert is_at_rest(replace(ended, wake_at=None), POLICY)


def test_the_lease_is_renewed_when_a_third_is_left() -> None:
    before = undecided(trying("a"))
    early = step(before, NOW + 9.999)
    assert not early.must_save
    assert early.transaction.wake_at == NOW + 15
    late = step(before, NOW + 10)
    assert late.must_save
    assert late.transaction.wake_at == NOW + 25
    assert late.wake_at == NOW + 20
    assert late.calls == ()


def test_the_loop_wakes_for_whatever_comes_first() -> None:
    lasting = replace(POLICY, lease_s=90.0)
    both = replace(undecided(held("a"), trying("b")), wake_at=NOW + 90)
    assert step(both, NOW, policy=lasting).wake_at == DEADLINE
    short = replace(both, branches=(held("a", hold_until=NOW + 8), trying("b")))
    assert step(short, NOW, policy=lasting).wake_at == NOW + 8
    pause = trying("c", calling=None, next_attempt_at=NOW + 4)
    assert step(replace(both, branches=(*both.branches, pause)), NOW, policy=lasting).wake_at == NOW + 4
    hung = decided(Decision.CONFIRM, confirming("a"))
    assert step(replace(hung, wake_at=NOW + 90), NOW, policy=lasting).wake_at == NOW + 60
    listed = decided(Decision.CONFIRM, confirming("a", hung_reason=HungReason.CONFIRM_UNANSWERED), hung_since=NOW)
    assert step(replace(listed, wake_at=NOW + 900), NOW, policy=lasting).wake_at == NOW + 90, "a lease is the longest"
    assert step(replace(listed, wake_at=NOW + 90), NOW, policy=lasting).wake_at == NOW + 60, "a third of the lease left"
    done = confirming("b", phase=BranchPhase.CONFIRMED, calling=None)
    assert step(replace(listed, branches=(*listed.branches, done), wake_at=NOW + 900), NOW, policy=lasting).wake_at == (
        NOW + 90
    ), "a final branch is no reason to wake"


def test_an_answer_says_nothing_but_what_it_is_given() -> None:
    silent: dict[str, Any] = {"result": None, "error": None, "retry_after_s": None, "hold_ttl_s": None}
    explicit = said("car", Operation.TRY, Answer.UNANSWERED, 1, **silent, in_progress=False, too_long=False)
    assert said("car", Operation.TRY, Answer.UNANSWERED) == explicit
