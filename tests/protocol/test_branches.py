"""The facts about all branches are those of each of them, however they came about; and a step looks at few branches."""

import math
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.protocol import branches as module
from app.protocol.branches import Branches, Facts
from app.protocol.kinds import ASKS, KINDS, READY
from app.protocol.messages import Answered, Call
from app.protocol.steps import advance
from app.protocol.values import (
    FINAL,
    Branch,
    BranchPhase,
    HungReason,
    Outcome,
    Resolution,
    Settled,
    Transaction,
    TryOrder,
    in_order,
)
from holdfast.wire import Answer, Kind, Operation
from tests.protocol.enumeration import POLICY

RESOLUTION: Final = Resolution(settled=Settled.CONFIRMED, by="a person", at=1.0, reason="they said so")
Names = tuple[str, ...]
TIMES: Final = st.sampled_from([None, 0.0, 1.0, 2.0, 3.0])
LASTING: Final = {*HungReason} - {
    HungReason.INTERNAL_ERROR,
    HungReason.TRY_UNANSWERED,
    HungReason.PIVOT_UNANSWERED,
}
REFUSALS: Final = {reason for reason in HungReason if reason.endswith("_refused")}
SECOND: Final = {BranchPhase.CONFIRMING, BranchPhase.CANCELLING}
FIRST: Final = {BranchPhase.PENDING, BranchPhase.TRYING, BranchPhase.HELD, BranchPhase.REFUSED}


def takes_turns(branch: Branch) -> bool:
    """Whether others may come before its call after the decision."""
    after_the_decision = branch.phase is BranchPhase.CONFIRMING and branch.kind is Kind.RETRYABLE
    return bool(
        (after_the_decision and branch.waits_for) or (branch.phase is BranchPhase.CANCELLING and branch.undone_after)
    )


TRAITS: Final[dict[int, Callable[[Branch], bool]]] = {
    module.NOT_READY: lambda b: b.phase is not READY[b.kind],
    module.REFUSED: lambda b: b.phase is BranchPhase.REFUSED,
    module.NOT_FINAL: lambda b: b.phase not in FINAL or b.calling is not None,
    module.CALLING: lambda b: b.calling is not None,
    module.FOLLOWS_DECISION: lambda b: b.phase in FIRST and b.calling is None,
    module.HUNG: lambda b: b.hung_reason is not None,
    module.NOT_HUNG: lambda b: b.phase not in FINAL and b.hung_reason is None and not takes_turns(b),
    module.MAY_FALL_SILENT: lambda b: b.phase not in FINAL and b.hung_reason not in LASTING and not takes_turns(b),
    module.INTENDED: lambda b: b.intent is not None,
    module.NEWLY_REFUSED: lambda b: (
        b.phase not in FINAL and b.last_answer is Answer.REFUSED and b.hung_reason not in REFUSALS
    ),
}


def drawn_branch(number: int, kind: Kind, waits_for: Names, undone_after: Names) -> st.SearchStrategy[Branch]:
    return st.builds(
        Branch,
        name=st.just(str(number)),
        kind=st.just(kind),
        waits_for=st.just(waits_for),
        undone_after=st.just(undone_after),
        phase=st.sampled_from(BranchPhase),
        failures=st.integers(0, 3),
        next_attempt_at=TIMES,
        hold_until=TIMES,
        last_answer=st.sampled_from([None, *Answer]),
        hung_reason=st.sampled_from([None, *HungReason]),
        resolution=st.sampled_from([None, RESOLUTION]),
        intent=st.sampled_from([None, RESOLUTION]),
        calling=st.sampled_from([None, *Operation]),
    )


@st.composite
def drawn_branches(draw: st.DrawFn) -> Branches:
    """Branches that were replaced one by one and several at once."""
    count = draw(st.integers(1, 9))
    is_ordered = draw(st.booleans())
    orders = [draw(st.sets(st.integers(0, n - 1))) if is_ordered and n else () for n in range(count)]
    is_reverse = draw(st.booleans())
    waits = [tuple(map(str, sorted(order))) for order in orders]
    undone = [tuple(str(m) for m, order in enumerate(orders) if is_reverse and n in order) for n in range(count)]
    kinds = draw(st.lists(st.sampled_from([*KINDS]), min_size=count, max_size=count))
    branches = Branches.of(
        tuple(draw(drawn_branch(*each)) for each in zip(range(count), kinds, waits, undone, strict=True))
    )
    for _ in range(draw(st.integers(0, 4))):
        positions = draw(st.sets(st.integers(0, count - 1), min_size=1))
        branches = branches.replaced({n: draw(drawn_branch(n, kinds[n], waits[n], undone[n])) for n in positions})
    return branches


def _another(branch: Branch) -> st.SearchStrategy[Branch]:
    """The same branch in any other state."""
    return drawn_branch(int(branch.name), branch.kind, branch.waits_for, branch.undone_after)


def is_over(branches: Branches, name: str) -> bool:
    """Whether this branch is final, and all that comes after it."""
    branch = branches[int(name)]
    return branch.final and all(is_over(branches, after) for after in branch.undone_after)


def is_its_turn(branches: Branches, branch: Branch) -> bool:
    """Whether nothing keeps this branch from its next call."""
    ahead = [branches[int(name)] for name in branch.waits_for]
    if branch.phase is BranchPhase.CANCELLING:
        return all(is_over(branches, after) for after in branch.undone_after)
    if branch.phase is BranchPhase.CONFIRMING:
        return branch.kind is not Kind.RETRYABLE or all(b.final or b.kind is not Kind.RETRYABLE for b in ahead)
    return all(b.phase is READY[b.kind] for b in ahead)


@given(drawn_branches())
def test_facts_do_not_depend_on_how_the_branches_came_about(branches: Branches) -> None:
    plain = tuple(branches)
    again = Branches.of(plain)
    assert type(plain) is tuple
    assert branches == plain == again
    assert branches.facts == again.facts
    assert branches._tree == again._tree
    assert [branches.position(b.name) for b in plain] == list(range(len(plain)))
    assert branches.position("z") is None
    assert Branches.of(branches) is branches


@given(drawn_branches())
def test_a_trait_is_found_where_a_branch_has_it(branches: Branches) -> None:
    for trait, has_it in TRAITS.items():
        expected = [n for n, branch in enumerate(branches) if has_it(branch)]
        assert branches.where(lambda facts, trait=trait: facts.traits & trait) == expected, trait  # type: ignore[misc]
        assert branches.first(trait) == next(iter(expected), None)
        assert bool(branches.facts.traits & trait) == bool(expected)


@given(drawn_branches(), st.sampled_from([-1.0, 0.0, 1.5, 3.0]))
def test_times_and_failures_are_found_where_they_are(branches: Branches, at: float) -> None:
    waits = [(n, b, b.next_attempt_at is None or b.next_attempt_at <= at) for n, b in enumerate(branches)]
    waits = [(n, b, is_due) for n, b, is_due in waits if b.calling is None and (b.kind, b.phase) in ASKS]
    due = [(n, b) for n, b, is_due in waits if is_due and is_its_turn(branches, b)]
    assert branches.where(lambda facts: facts.try_due <= at) == [n for n, b in due if b.phase not in SECOND]
    assert branches.where(lambda facts: facts.due <= at) == [n for n, b in due if b.phase in SECOND]
    held = [n for n, b in enumerate(branches) if b.hold_until is not None and b.hold_until <= at]
    assert branches.where(lambda facts: facts.hold_until <= at) == held
    silent = [b for b in branches if b.phase in SECOND and b.hung_reason not in LASTING and not takes_turns(b)]
    failures = [b.failures for b in silent if (b.kind, b.phase) in ASKS]
    assert branches.facts.failures == max(failures, default=0)
    assert branches.facts.hold_until == min(
        (b.hold_until for b in branches if b.hold_until is not None), default=math.inf
    )


@given(st.data(), drawn_branches())
def test_what_was_replaced_has_changed_and_nothing_else(data: st.DataObject, branches: Branches) -> None:
    positions = data.draw(st.sets(st.integers(0, len(branches) - 1)))
    changes = {n: data.draw(_another(branches[n])) for n in positions}
    before = tuple(branches), branches._tree.copy(), branches.news
    after = branches.replaced(changes)
    assert after == tuple(changes.get(n, branch) for n, branch in enumerate(branches))
    assert (tuple(branches), branches._tree, branches.news) == before
    told = [
        n
        for n, branch in changes.items()
        if (branch.phase is BranchPhase.PENDING) is not (branches[n].phase is BranchPhase.PENDING)
        or branch.hung_reason is not branches[n].hung_reason
        or branch.resolution is not branches[n].resolution
        or branch.intent is not branches[n].intent
    ]
    assert after.news - branches.news == len(told)
    assert Branches.of(tuple(after)).news == 0


def test_of_two_branches_with_one_name_the_first_counts() -> None:
    assert Branches.of((Branch(name="a"), Branch(name="a"))).position("a") == 0


def test_no_branches_have_no_traits() -> None:
    assert Branches.of(()).facts == Facts()


# --- how much work a step is -----------------------------------------------------------------------------------------


class Work:
    """Counts the instructions that app/protocol executes in the interpreter: the same on every machine."""

    def __init__(self) -> None:
        self.instructions = 0

    def __enter__(self) -> "Work":
        self._before = sys.gettrace()
        sys.settrace(self._enter)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _enter(self, frame: FrameType, _event: str, _arg: Any) -> Any:
        if not frame.f_globals.get("__name__", "").startswith("app.protocol."):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._count

    def _count(self, _frame: FrameType, event: str, _arg: Any) -> Any:
        self.instructions += event == "opcode"
        return self._count


Saying = Callable[[Call, int], Answer]


def work_of(count: int, try_order: TryOrder, says: Saying) -> tuple[Transaction, int]:
    """A transaction of so many branches that has ended, after one step for each answer, and how much work it was."""
    branches = in_order(tuple(Branch(name=str(n), participant="p") for n in range(count)), try_order)
    transaction = Transaction(id="t", created_at=0.0, deadline=1e6, branches=branches, try_order=try_order)
    under_way: list[Call] = []
    inputs: list[Answered] = []
    now, work = 0.0, Work()
    while not transaction.finished:
        with work:
            step = advance(transaction, inputs, now, POLICY)
        transaction, inputs = step.transaction, []
        under_way += step.calls
        if under_way:
            call = under_way.pop(0)
            answer = says(call, count)
            inputs.append(
                Answered(branch=call.branch.name, operation=call.operation, attempt=call.attempt, answer=answer)
            )
        else:
            now = step.wake_at
    return transaction, work.instructions


def all_is_well(call: Call, count: int) -> Answer:
    return Answer.SUCCEEDED


def the_last_refuses(call: Call, count: int) -> Answer:
    is_refused = call.operation is Operation.TRY and call.branch.name == str(count - 1)
    return Answer.REFUSED if is_refused else Answer.SUCCEEDED


def each_fails_once(call: Call, count: int) -> Answer:
    return Answer.UNANSWERED if call.attempt == 1 else Answer.SUCCEEDED


@pytest.mark.parametrize("try_order", TryOrder)
@pytest.mark.parametrize(
    ("says", "outcome"),
    [
        (all_is_well, Outcome.CONFIRMED),
        (the_last_refuses, Outcome.CANCELLED),
        (each_fails_once, Outcome.CONFIRMED),
    ],
)
def test_the_work_for_one_branch_hardly_grows_with_their_number(
    try_order: TryOrder, says: Saying, outcome: Outcome
) -> None:
    few, many = 16, 256
    (one, small), (other, large) = work_of(few, try_order, says), work_of(many, try_order, says)
    assert one.outcome is other.outcome is outcome
    assert small > 500 * few
    assert large / many <= 2 * small / few, f"{large / many:.0f} instructions a branch, and {small / few:.0f} of {few}"
