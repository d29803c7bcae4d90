"""Any set of operations makes a kind: each that there could be is enumerated here, beside TCC."""

from collections.abc import Set
from itertools import chain, combinations
from typing import cast

import pytest

from app.protocol import branches, kinds
from app.protocol.values import BranchPhase, Outcome
from holdfast.wire import Kind, Operation
from tests.harness.search_share import share
from tests.protocol.enumeration import enumerate_all, steps_to_the_end

SETS = [frozenset(each) for each in chain.from_iterable(combinations(Operation, n) for n in range(len(Operation)))]
CASES = [
    pytest.param(operations, place, id=f"{'+'.join(sorted(operations)) or 'nothing'}-{place}")
    for operations in SETS
    for place in (0, 1)
]


def with_kind(patch: pytest.MonkeyPatch, operations: Set[Operation]) -> Kind:
    """Another line of the table, and what follows from it. Its name says what it is, because states are remembered."""
    kind = cast("Kind", "+".join(sorted(operations)) or "nothing")
    patch.setitem(kinds.KINDS, kind, operations)
    patch.setitem(kinds.READY, kind, kinds.ready_phase(operations))
    for (decision, phase), after in kinds.follows(operations).items():
        patch.setitem(kinds.FOLLOWS, (kind, decision, phase), after)
    for phase in BranchPhase:
        patch.setitem(branches._TRAITS, (kind, phase), branches._traits_of(kind, phase))
    return kind


@pytest.mark.parametrize(("operations", "place"), share(share(CASES)))  # each one takes a minute
def test_any_set_of_operations_keeps_every_rule(
    operations: Set[Operation], place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a TCC branch, or after it."""
    kind = with_kind(monkeypatch, operations)
    run = enumerate_all([((kind, Kind.TCC), (Kind.TCC, kind))[place]])
    assert all(steps_to_the_end(state) <= 10 for state in run.states)
    asked = {b.calling for s in run.states for b in s.transaction.branches if b.kind is kind} - {None}
    assert asked == (operations if Operation.TRY in operations else operations & {Operation.CONFIRM})
    assert {s.transaction.outcome for s in run.states} == {None, *Outcome}
