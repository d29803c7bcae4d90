"""The tables of the state machine are complete: each pair is in them, or named here as impossible, with the reason."""

from itertools import product

from app.protocol.kinds import ANSWERED, ASKS, FOLLOWS
from app.protocol.values import FINAL, PHASE_OF, BranchPhase, Phase
from holdfast.wire import Answer, Decision, Operation

UNDECIDED_FOLLOWS_NOTHING = {(Decision.UNDECIDED, phase) for phase in BranchPhase}
FOLLOWED_ALREADY = {
    (Decision.CONFIRM, BranchPhase.CONFIRMING),
    (Decision.CONFIRM, BranchPhase.CONFIRMED),
    (Decision.CONFIRM, BranchPhase.RESOLVED),
    (Decision.CANCEL, BranchPhase.CANCELLING),
    (Decision.CANCEL, BranchPhase.CANCELLED),
    (Decision.CANCEL, BranchPhase.RESOLVED),
}
NEVER_TOGETHER = {
    (Decision.CONFIRM, BranchPhase.PENDING),  # confirm needs every hold
    (Decision.CONFIRM, BranchPhase.TRYING),
    (Decision.CONFIRM, BranchPhase.REFUSED),
    (Decision.CONFIRM, BranchPhase.CANCELLING),  # a decision never changes
    (Decision.CONFIRM, BranchPhase.CANCELLED),
    (Decision.CANCEL, BranchPhase.CONFIRMING),
    (Decision.CANCEL, BranchPhase.CONFIRMED),
}
ASKED_NOTHING = {
    BranchPhase.HELD,  # waits for the decision
    BranchPhase.REFUSED,  # decides in the same step
    *FINAL,
}
FINISHED_UNDECIDED = {(Decision.UNDECIDED, True)}


def test_every_phase_under_every_decision() -> None:
    parts = [set(FOLLOWS), UNDECIDED_FOLLOWS_NOTHING, FOLLOWED_ALREADY, NEVER_TOGETHER]
    assert set().union(*parts) == set(product(Decision, BranchPhase))
    assert sum(map(len, parts)) == len(Decision) * len(BranchPhase), "a pair is in two places"


def test_every_answer_to_every_operation() -> None:
    assert set(ANSWERED) == set(product(Operation, Answer))


def test_every_phase_asks_for_something_or_waits_for_nothing() -> None:
    assert set(ASKS) | ASKED_NOTHING == set(BranchPhase)
    assert not set(ASKS) & ASKED_NOTHING


def test_every_decision_finished_or_not_has_its_phase() -> None:
    assert set(PHASE_OF) | FINISHED_UNDECIDED == set(product(Decision, (False, True)))
    assert not set(PHASE_OF) & FINISHED_UNDECIDED
    assert set(PHASE_OF.values()) == set(Phase)


def test_only_success_ends_a_branch() -> None:
    for (operation, answer), phase in ANSWERED.items():
        acknowledged = operation is not Operation.TRY and answer is Answer.SUCCEEDED
        assert (phase in FINAL) == acknowledged
        if not acknowledged and operation is not Operation.TRY:
            assert ASKS[phase] is operation, "it is repeated until it is acknowledged"


def test_only_a_branch_that_was_never_tried_ends_without_a_call() -> None:
    assert [pair for pair, phase in FOLLOWS.items() if phase in FINAL] == [(Decision.CANCEL, BranchPhase.PENDING)]
