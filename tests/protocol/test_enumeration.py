"""Every step of a transaction of two branches keeps every rule, and from everywhere it comes to its end."""

from dataclasses import replace
from itertools import product

import pytest

from app.protocol.steps import broken
from app.protocol.values import BranchPhase, Outcome, Phase, Undo
from holdfast.wire import Kind
from tests.harness.search_share import is_in_share, share
from tests.protocol.enumeration import DEADLINE, PAIRS, POLICY, Case, enumerate_all, set_aside, steps_to_the_end
from tests.protocol.ghost import PARTS

_SHARE = (case for case in PAIRS if is_in_share(case.name, 12) and not case.sends)
IN_TESTS = tuple(sorted(_SHARE, key=lambda case: case.kinds.count(Kind.TCC)))
"""Which pairs `make test` searches, the cheapest first; `make enumerate` all, and some triples."""


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in share(IN_TESTS)])
def test_every_step_keeps_every_rule_and_from_everywhere_it_comes_to_its_end(case: Case) -> None:
    """When all goes well, and also after it was set aside, which leaves it alone for a lease."""
    run = enumerate_all([case])
    assert len(run.states) >= 50
    assert run.steps >= 10 * len(run.states)
    assert run.crashes > 0
    assert max(steps_to_the_end(state) for state in run.states) >= 2
    hasty = replace(POLICY, retry_cap_s=POLICY.retry_base_s)
    for state in [state for state in run.states if not state.transaction.finished]:
        wake_at = broken(state.transaction, state.now, hasty).wake_at
        assert wake_at is not None
        assert wake_at >= state.now + hasty.lease_s
        aside = set_aside(state)
        assert steps_to_the_end(aside) > 0
        assert steps_to_the_end(replace(aside, now=max(aside.now, DEADLINE))) > 0


def test_all_pairs_of_kinds_are_searched_in_each_order_that_is_admitted() -> None:
    pairs = {case.kinds for case in PAIRS}
    assert pairs == set(product(Kind, repeat=2)) - {(Kind.PIVOT, Kind.PIVOT)}
    ordered = {case.kinds for case in PAIRS if case.is_ordered}
    waits_too_early = {(late, first) for late in (Kind.PIVOT, Kind.RETRYABLE) for first in Kind if PARTS[first]}
    assert pairs - ordered == waits_too_early & pairs - {(one, Kind.RETRYABLE) for one in Kind}
    assert {case.undo for case in PAIRS if case.is_ordered} == set(Undo)


def test_everything_there_is_is_reached() -> None:
    run = enumerate_all([Case(kinds=(Kind.COMPENSABLE, Kind.RETRYABLE)), Case(kinds=(Kind.CHECK, Kind.CHECK))])
    transactions = {state.transaction for state in run.states}
    assert {t.phase for t in transactions} == set(Phase)
    assert {t.outcome for t in transactions} == {None, *Outcome}
    phases = {b.phase for t in transactions for b in t.branches}
    assert phases == set(BranchPhase) - {BranchPhase.REFUSED}, "refused lasts for no step"
