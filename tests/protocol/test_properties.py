"""Three branches, any policy, any order of events: the rules that the enumeration checks hold there too.

Unlike the enumeration this runs on real times and real back-offs, and a crash here forgets what was really not saved.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.protocol import steps
from app.protocol.backoff import back_off_s
from app.protocol.kinds import KINDS
from app.protocol.messages import Answered, BranchResolved, CancelRequested, Input, RetryRequested
from app.protocol.policy import Policy
from app.protocol.steps import broken
from app.protocol.values import Branch, BranchPhase, ReasonCode, Settled, Transaction, TryOrder, Undo, in_order
from holdfast.json_text import NULL
from holdfast.wire import Answer, Kind, Operation
from tests.protocol.ghost import BranchGhost, Ghost, crashed, follow
from tests.protocol.invariants import advance

BEGUN_AT = 1_000.0
EVENTS_MAX = 40
STEPS_TO_THE_END_MAX = 40
NAMES = ("a", "b", "c")

policies = st.builds(
    Policy,
    retry_base_s=st.sampled_from([0.05, 0.2, 1.0]),
    retry_cap_s=st.sampled_from([1.0, 60.0]),
    hold_margin_s=st.sampled_from([0.0, 1.0, 30.0]),
    call_timeout_s=st.sampled_from([0.1, 5.0]),
    results_bytes_max=st.sampled_from([0, 4, 1024]),
    hung_attempts=st.integers(1, 5),
    hung_after_s=st.sampled_from([1.0, 60.0]),
    lease_s=st.sampled_from([3.0, 15.0, 100.0]),
    linger_s=st.sampled_from([0.0, 0.5, 1.0]),
)
answers = st.tuples(
    st.sampled_from([Answer.SUCCEEDED, Answer.SUCCEEDED, Answer.REFUSED, Answer.UNANSWERED, Answer.UNANSWERED]),
    st.sampled_from([None, None, 0.0, 0.5, 7.0, 100_000.0]),  # Retry-After
    st.sampled_from([None, None, 0.0, 2.0, 10.0, 1_000.0]),  # Tcc-Hold-Ttl
)
commands = st.one_of(
    st.builds(CancelRequested, code=st.sampled_from([ReasonCode.REQUESTED, ReasonCode.OPERATOR])),
    st.builds(RetryRequested),
    st.builds(
        BranchResolved,
        branch=st.sampled_from(NAMES),
        settled=st.sampled_from(Settled),
        by=st.just("ops"),
        reason=st.just("seen"),
    ),
)
stale = st.builds(
    Answered,
    branch=st.sampled_from([*NAMES, "z"]),
    operation=st.sampled_from(Operation),
    attempt=st.integers(0, 4),
    answer=st.sampled_from(Answer),
)


Ordered = tuple[tuple[Branch, ...], TryOrder, Undo]


def _has_one_pivot_at_most(kinds: list[Kind]) -> bool:
    return kinds.count(Kind.PIVOT) <= 1


@st.composite
def drawn_branches(draw: st.DrawFn) -> Ordered:
    """Branches of any kinds, one after the other or each after some of those before it."""
    kinds = draw(st.lists(st.sampled_from([*KINDS]), min_size=3, max_size=3).filter(_has_one_pivot_at_most))
    branches = tuple(Branch(name=name, kind=kind, participant="p") for name, kind in zip(NAMES, kinds, strict=True))
    undo = draw(st.sampled_from(Undo))
    firsts = [kind not in (Kind.PIVOT, Kind.RETRYABLE) for kind in kinds]
    if draw(st.booleans()):
        may_chain = firsts == sorted(firsts, reverse=True) and (Kind.RETRYABLE, Kind.PIVOT) not in pairwise(kinds)
        try_order = TryOrder.SEQUENTIAL if may_chain else TryOrder.PARALLEL
        return in_order(branches, try_order, undo), try_order, undo
    named: list[tuple[str, ...]] = []
    for n, kind in enumerate(kinds):
        before = [NAMES[i] for i in range(n) if firsts[i] or kind is Kind.RETRYABLE]
        named.append(tuple(sorted(draw(st.sets(st.sampled_from(before))))) if before else ())
    ordered = tuple(replace(branch, after=after) for branch, after in zip(branches, named, strict=True))
    return in_order(ordered, TryOrder.PARALLEL, undo), TryOrder.PARALLEL, undo


class Run:
    """One transaction, the process that works on it, and what really happened. Every step is checked."""

    def __init__(self, timeout_s: float, ordered: Ordered, policy: Policy) -> None:
        self.policy = policy
        self.now = BEGUN_AT
        self.wake_at = BEGUN_AT
        self.transaction = Transaction(
            id="t",
            created_at=BEGUN_AT,
            deadline=BEGUN_AT + timeout_s,
            branches=ordered[0],
            try_order=ordered[1],
            undo=ordered[2],
        )
        self.stored = self.transaction
        self.ghost = Ghost(branches=(BranchGhost(),) * len(NAMES))

    def step(self, inputs: Sequence[Input]) -> None:
        edge = advance(self.ghost, self.transaction, inputs, self.now, self.policy)
        plain = replace(self.transaction, branches=tuple(self.transaction.branches))
        assert steps.advance(plain, inputs, self.now, self.policy) == edge.step, "what a step remembers changes nothing"
        self.ghost = follow(edge)
        self.transaction = edge.after
        self.wake_at = edge.step.wake_at
        if edge.step.must_save:
            self.stored = edge.after
        if edge.step.rests:
            self.wait_for_recovery()

    def wait_for_recovery(self) -> None:
        """Nobody works on it until `wake_at`, or until a command comes."""
        self.transaction = replace(
            self.stored,
            branches=tuple(replace(b, calling=None) for b in self.stored.branches),
            wake_at=None if self.stored.finished else self.now + self.policy.lease_s,
        )
        self.ghost = crashed(self.ghost, self.stored)

    def set_aside(self) -> None:
        if not self.stored.finished:
            self.stored = broken(self.stored, self.now, self.policy)
        self.wait_for_recovery()
        branches = tuple(replace(g, silent=False) for g in self.ghost.branches)  # they hang for another reason
        self.ghost = replace(self.ghost, branches=branches)

    def under_way(self) -> list[Answered]:
        """A plain success for every call under way."""
        return [
            Answered(
                branch=name,
                operation=g.under_way[0],
                attempt=g.under_way[1],
                answer=Answer.SUCCEEDED,
                result=NULL,
            )
            for name, g in zip(NAMES, self.ghost.branches, strict=True)
            if g.under_way
        ]


@settings(max_examples=300, deadline=None, database=None)
@given(st.data(), policies, st.sampled_from([0.5, 3.0, 30.0]), drawn_branches())
def test_whatever_happens_the_rules_hold(
    data: st.DataObject, policy: Policy, timeout_s: float, ordered: Ordered
) -> None:
    run = Run(timeout_s, ordered, policy)
    run.step([])
    for _ in range(data.draw(st.integers(0, EVENTS_MAX))):
        match data.draw(
            st.sampled_from(["answers", "answers", "answers", "time", "late", "command", "crash", "broken"])
        ):
            case "answers":
                run.step(_drawn_answers(data, run))
            case "time":
                run.now = max(run.now, min(run.wake_at, run.now + data.draw(st.sampled_from([0.1, 1.0, 1e6]))))
                run.step([])
            case "late":
                run.now = run.wake_at + data.draw(st.sampled_from([0.0, 1.0, 50.0]))
                run.step([])
            case "command":
                run.step([*data.draw(st.lists(commands, min_size=1, max_size=2)), *_drawn_answers(data, run)])
            case "crash":
                run.wait_for_recovery()
            case "broken":
                run.set_aside()
    taken = 0
    while not run.transaction.finished:
        taken += 1
        assert taken <= STEPS_TO_THE_END_MAX, "it does not come to its end"
        answered = run.under_way()
        if not answered:
            run.now = max(run.now, run.wake_at)
        run.step(list(answered))


def _drawn_answers(data: st.DataObject, run: Run) -> list[Input]:
    """Answers to some of the calls under way, in some order, with stale ones among them."""
    drawn: list[Input] = list(data.draw(st.lists(stale, max_size=1)))
    for success in run.under_way():
        if data.draw(st.booleans()):
            answer, retry_after_s, hold_ttl_s = data.draw(answers)
            in_progress = answer is Answer.UNANSWERED and data.draw(st.booleans())
            too_long = answer is Answer.SUCCEEDED and data.draw(st.booleans())
            drawn.append(
                replace(
                    success,
                    answer=answer,
                    retry_after_s=retry_after_s,
                    hold_ttl_s=hold_ttl_s,
                    in_progress=in_progress,
                    result=None if too_long else success.result,
                    too_long=too_long,
                )
            )
    return data.draw(st.permutations(drawn))


# --- back-off ----------------------------------------------------------------------------------------------------

POLICY = Policy(
    retry_base_s=0.2,
    retry_cap_s=60.0,
    hold_margin_s=30.0,
    call_timeout_s=5.0,
    results_bytes_max=1024,
    hung_attempts=5,
    hung_after_s=60.0,
    lease_s=15.0,
    linger_s=1.0,
)


def _confirming(name: str = "a") -> Branch:
    return Branch(name=name, phase=BranchPhase.CONFIRMING)


@given(st.uuids(), st.integers(1, 10_000), st.sampled_from([0.05, 0.2, 5.0]), st.sampled_from([5.0, 60.0]))
def test_a_back_off_doubles_up_to_its_cap(uuid: object, failures: int, base_s: float, cap_s: float) -> None:
    policy = replace(POLICY, retry_base_s=base_s, retry_cap_s=cap_s)
    ceiling_s = min(cap_s, base_s * 2 ** min(failures - 1, 100))
    assert 0 <= back_off_s(str(uuid), _confirming(), failures, policy) <= ceiling_s


@pytest.mark.parametrize("failures", [1, 3, 20])
def test_jitter_is_spread_evenly_over_transactions(failures: int) -> None:
    ceiling_s = min(60.0, 0.2 * 2 ** (failures - 1))
    drawn = [back_off_s(f"transaction-{i}", _confirming(), failures, POLICY) for i in range(5_000)]
    tenths = Counter(int(10 * wait_s / ceiling_s) for wait_s in drawn)
    assert set(tenths) == set(range(10))
    assert all(400 <= count <= 600 for count in tenths.values()), tenths


def test_jitter_differs_between_branches_and_attempts_and_is_the_same_in_a_replay() -> None:
    drawn = [
        back_off_s("t", _confirming(name), n, POLICY) / min(60.0, 0.2 * 2 ** (n - 1))
        for n in (1, 2, 3)
        for name in "ab"
    ]
    assert len(set(drawn)) == 6
    assert back_off_s("t", _confirming(), 3, POLICY) == back_off_s("t", _confirming(), 3, POLICY)


@pytest.mark.parametrize(
    ("asked_s", "honoured_s"), [(None, 0.0), (0.0, 0.0), (7.0, 7.0), (3600.0, 3600.0), (1e9, 3600.0)]
)
def test_retry_after_is_honoured_up_to_its_maximum(asked_s: float | None, honoured_s: float) -> None:
    run = Run(30.0, (tuple(Branch(name=name) for name in NAMES), TryOrder.PARALLEL, Undo.PARALLEL), POLICY)
    run.step([])
    answered = [replace(a, answer=Answer.UNANSWERED, retry_after_s=asked_s) for a in run.under_way()]
    run.step(list(answered))
    for branch in run.transaction.branches:
        assert branch.next_attempt_at is not None
        assert honoured_s <= branch.next_attempt_at - run.now <= max(honoured_s, 0.2)
