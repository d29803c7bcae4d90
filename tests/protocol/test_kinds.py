"""Any operations make a kind: each kind that there could be, before TCC was joined by others, is enumerated here."""

from dataclasses import fields
from itertools import product
from typing import Final, cast

import pytest

from app.protocol import branches, kinds
from app.protocol.kinds import Operations
from app.protocol.values import BranchPhase, Outcome
from holdfast.wire import Kind, Operation
from tests.harness.search_share import share
from tests.protocol.enumeration import STEPS_TO_THE_END_MAX, Case, enumerate_all, steps_to_the_end
from tests.protocol.ghost import PARTS, Part

TCC: Final = (Operation.TRY, Operation.CONFIRM, Operation.CANCEL)
SETS: Final = [
    Operations(
        **{
            name: operation
            for name, operation, has in zip(("first", "confirm", "cancel"), TCC, which, strict=True)
            if has
        }
    )
    for which in product((False, True), repeat=3)
    if not all(which)
]


def name_of(operations: Operations) -> str:
    named = [getattr(operations, field.name) for field in fields(operations)]
    return "+".join(operation for operation in named if operation) or "nothing"


CASES: Final = [
    pytest.param(operations, place, id=f"{name_of(operations)}-{place}") for operations in SETS for place in (0, 1)
]


def with_kind(patch: pytest.MonkeyPatch, operations: Operations) -> Kind:
    """Another line of the table, and what follows from it. Its name says what it is, because states are remembered."""
    kind = cast("Kind", name_of(operations))
    patch.setitem(kinds.KINDS, kind, operations)
    patch.setitem(kinds.READY, kind, kinds.ready_phase(operations))
    for phase, operation in kinds.asks(operations).items():
        patch.setitem(kinds.ASKS, (kind, phase), operation)
    for (decision, phase), after in kinds.follows(operations).items():
        patch.setitem(kinds.FOLLOWS, (kind, decision, phase), after)
    for phase in BranchPhase:
        patch.setitem(branches._TRAITS, (kind, phase), branches._traits_of(kind, phase))
    parts = {Part.FIRST: operations.first, Part.CONFIRM: operations.confirm, Part.UNDO: operations.cancel}
    patch.setitem(PARTS, kind, {part: operation for part, operation in parts.items() if operation})
    return kind


@pytest.mark.parametrize(("operations", "place"), share(share(CASES)))  # each one takes a minute
def test_any_set_of_operations_keeps_every_rule(
    operations: Operations, place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a TCC branch, or after it."""
    kind = with_kind(monkeypatch, operations)
    run = enumerate_all([Case(kinds=((kind, Kind.TCC), (Kind.TCC, kind))[place])])
    assert all(steps_to_the_end(state) <= STEPS_TO_THE_END_MAX for state in run.states)
    asked = {b.calling for s in run.states for b in s.transaction.branches if b.kind is kind} - {None}
    has = {operations.first, operations.confirm, operations.cancel} - {None}
    assert asked == (has if operations.first else has & {Operation.CONFIRM})
    assert {s.transaction.outcome for s in run.states} == {None, *Outcome}
