"""The tables of the state machine are complete: each pair is in them, or named here as impossible, with the reason."""

from itertools import product

import pytest

from app.protocol.kinds import ANSWERED, ASKS, FOLLOWS, KINDS, OPERATIONS, READY, Operations, asks, follows, ready_phase
from app.protocol.values import FINAL, PHASE_OF, BranchPhase, Phase
from holdfast.wire import Answer, Decision, Kind, Operation
from tests.protocol.ghost import PARTS, Part

UNDECIDED_FOLLOWS_NOTHING = {(Decision.UNDECIDED, phase) for phase in BranchPhase}
FOLLOWED_ALREADY = {
    (Decision.CONFIRM, BranchPhase.CONFIRMING),
    (Decision.CONFIRM, BranchPhase.CONFIRMED),
    (Decision.CONFIRM, BranchPhase.RESOLVED),
    (Decision.CANCEL, BranchPhase.CANCELLING),
    (Decision.CANCEL, BranchPhase.CANCELLED),
    (Decision.CANCEL, BranchPhase.RESOLVED),
}
BEFORE_THE_DECISION = {
    BranchPhase.PENDING,
    BranchPhase.TRYING,
    BranchPhase.HELD,
    BranchPhase.REFUSED,
}
NOT_WITHOUT_A_TRY = {BranchPhase.TRYING, BranchPhase.HELD, BranchPhase.REFUSED}
NEVER_TOGETHER = {
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


def test_every_kind_has_its_operations() -> None:
    assert set(KINDS) == set(READY) == set(Kind)
    assert {kind: tuple(PARTS[kind].values()) for kind in Kind} == OPERATIONS
    for kind, operations in KINDS.items():
        has = (operations.first, operations.confirm, operations.cancel, operations.withdraw)
        assert has == tuple(PARTS[kind].get(part) for part in Part), "as the contract's table has it"


@pytest.mark.parametrize("kind", KINDS)
def test_every_phase_under_every_decision(kind: Kind) -> None:
    entailed = {(decision, phase) for of, decision, phase in FOLLOWS if of is kind}
    unready = BEFORE_THE_DECISION - {READY[kind]}  # confirm needs every branch to be ready
    never = NEVER_TOGETHER | {(Decision.CONFIRM, phase) for phase in unready}
    if KINDS[kind].first is None:
        never |= {(Decision.CANCEL, phase) for phase in NOT_WITHOUT_A_TRY}
    if KINDS[kind].withdraw is not None:  # what was sent is undecided until it answers, and its success confirms
        never |= {(Decision.CANCEL, BranchPhase.TRYING), (Decision.CANCEL, BranchPhase.HELD)}
    parts = [entailed, UNDECIDED_FOLLOWS_NOTHING, FOLLOWED_ALREADY, never]
    assert set().union(*parts) == set(product(Decision, BranchPhase))
    assert sum(map(len, parts)) == len(Decision) * len(BranchPhase), "a pair is in two places"


def test_what_a_decision_entails_for_tcc() -> None:
    """Word for word, because the table is derived."""
    assert {(decision, phase): after for (kind, decision, phase), after in FOLLOWS.items() if kind is Kind.TCC} == {
        (Decision.CONFIRM, BranchPhase.HELD): BranchPhase.CONFIRMING,
        (Decision.CANCEL, BranchPhase.PENDING): BranchPhase.CANCELLED,
        (Decision.CANCEL, BranchPhase.TRYING): BranchPhase.CANCELLING,
        (Decision.CANCEL, BranchPhase.HELD): BranchPhase.CANCELLING,
        (Decision.CANCEL, BranchPhase.REFUSED): BranchPhase.CANCELLING,
    }
    assert READY[Kind.TCC] is BranchPhase.HELD


@pytest.mark.parametrize("cancel", [True, False])
def test_a_try_without_a_confirm_is_confirmed_by_the_decision(cancel: bool) -> None:
    operations = Operations(first=Operation.TRY, cancel=Operation.CANCEL if cancel else None)
    undone = BranchPhase.CANCELLING if cancel else BranchPhase.CANCELLED
    assert ready_phase(operations) is BranchPhase.HELD
    assert follows(operations) == {
        (Decision.CONFIRM, BranchPhase.HELD): BranchPhase.CONFIRMED,
        (Decision.CANCEL, BranchPhase.PENDING): BranchPhase.CANCELLED,
        (Decision.CANCEL, BranchPhase.TRYING): undone,
        (Decision.CANCEL, BranchPhase.HELD): undone,
        (Decision.CANCEL, BranchPhase.REFUSED): undone,
    }


def test_without_a_try_a_branch_is_ready_from_the_beginning() -> None:
    assert ready_phase(Operations(confirm=Operation.CONFIRM)) is BranchPhase.PENDING
    assert follows(Operations(confirm=Operation.CONFIRM)) == {
        (Decision.CONFIRM, BranchPhase.PENDING): BranchPhase.CONFIRMING,
        (Decision.CANCEL, BranchPhase.PENDING): BranchPhase.CANCELLED,
    }


def test_every_answer_in_every_phase_in_which_there_is_a_call() -> None:
    assert set(ANSWERED) == set(product({phase for _, phase in ASKS} - {BranchPhase.PENDING}, Answer))


@pytest.mark.parametrize("kind", KINDS)
def test_every_phase_of_a_kind_asks_for_what_it_has(kind: Kind) -> None:
    operations = KINDS[kind]
    asked = {phase: operation for (of, phase), operation in ASKS.items() if of is kind}
    assert asked == asks(operations)
    assert not set(asked) & ASKED_NOTHING
    assert set(asked.values()) == set(OPERATIONS[kind]), "each of its operations is asked for"
    assert asked.get(BranchPhase.PENDING) is asked.get(BranchPhase.TRYING) is operations.first


def test_every_decision_finished_or_not_has_its_phase() -> None:
    assert set(PHASE_OF) | FINISHED_UNDECIDED == set(product(Decision, (False, True)))
    assert not set(PHASE_OF) & FINISHED_UNDECIDED
    assert set(PHASE_OF.values()) == set(Phase)


def test_only_success_ends_a_branch() -> None:
    for (phase, answer), after in ANSWERED.items():
        acknowledged = phase is not BranchPhase.TRYING and answer is Answer.SUCCEEDED
        assert (after in FINAL) == acknowledged
        if not acknowledged and phase is not BranchPhase.TRYING:
            assert after is phase, "it is repeated until it is acknowledged"


def test_only_what_was_never_tried_or_has_no_such_operation_ends_without_a_call() -> None:
    for (kind, decision, phase), after in FOLLOWS.items():
        part = Part.CONFIRM if decision is Decision.CONFIRM else Part.UNDO
        never_tried = (decision, phase) == (Decision.CANCEL, BranchPhase.PENDING)
        assert (after in FINAL) == (never_tried or part not in PARTS[kind])
        if after not in FINAL:
            assert ASKS[kind, after] is PARTS[kind][part]
