"""Every step of a transaction of two branches keeps every rule, and from everywhere it comes to its end."""

from dataclasses import replace
from itertools import product

import pytest

from app.protocol.kinds import KINDS
from app.protocol.steps import broken
from app.protocol.values import BranchPhase, HungReason, Outcome, Phase, TryOrder
from tests.protocol.enumeration import DEADLINE, POLICY, Enumerated, enumerate_all, set_aside, steps_to_the_end


@pytest.fixture(scope="module")
def run() -> Enumerated:
    """One run for all tests here: it has checked every step that it took."""
    return enumerate_all()


def test_every_step_keeps_every_rule(run: Enumerated) -> None:
    # Floors, so that the enumeration can't shrink unnoticed; 1,777 states and 56,149 steps when written.
    assert len(run.states) >= 1_700
    assert run.steps >= 55_000
    assert run.crashes >= 45_000


def test_everything_there_is_is_reached(run: Enumerated) -> None:
    transactions = {state.transaction for state in run.states}
    branches = [b for t in transactions for b in t.branches]
    assert {t.phase for t in transactions} == set(Phase)
    assert {t.outcome for t in transactions} == {None, *Outcome}
    begun = [t for t in transactions if all(b.phase is BranchPhase.PENDING for b in t.branches)]
    combined = {(t.try_order, tuple(b.kind for b in t.branches)) for t in begun}
    assert combined == set(product(TryOrder, product(KINDS, repeat=2)))
    assert {b.phase for b in branches} == set(BranchPhase) - {BranchPhase.REFUSED}, "refused lasts for no step"
    assert {b.hung_reason for b in branches} == {None, *HungReason} - {HungReason.INTERNAL_ERROR}


def test_from_everywhere_it_comes_to_its_end_when_all_goes_well(run: Enumerated) -> None:
    assert max(steps_to_the_end(state) for state in run.states) >= 3


def test_a_transaction_that_was_set_aside_comes_to_its_end_too(run: Enumerated) -> None:
    for state in run.states:
        if not state.transaction.finished:
            aside = set_aside(state)
            assert steps_to_the_end(aside) > 0
            assert steps_to_the_end(replace(aside, now=max(aside.now, DEADLINE))) > 0


def test_a_transaction_that_was_set_aside_is_left_alone_for_a_lease(run: Enumerated) -> None:
    unfinished = [state for state in run.states if not state.transaction.finished]
    hasty = replace(POLICY, retry_cap_s=POLICY.retry_base_s)
    for state in unfinished:
        wake_at = broken(state.transaction, state.now, hasty).wake_at
        assert wake_at is not None
        assert wake_at >= state.now + hasty.lease_s
