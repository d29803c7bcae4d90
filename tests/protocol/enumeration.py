"""Every state that a transaction of a few branches of any kinds can reach, and every step out of it, checked.

A breadth-first search from the begin states. Its steps are all that can happen to a transaction: answers in every
combination and order, commands, stale answers, time passing, a lease that must be renewed, and a crash. A `Case` says
which kinds they are, and in which order.

*Crash.* What survives is what the last step with `must_save` left, and between two saves nothing happens that the
world would remember and a crash forget (`soft_steps_leave_no_trace` holds the machine to that). So a crash at any
later point equals a crash right after the save, and a crash before a save equals one after the save before it:
each save is followed by a crash. Whether its calls left makes no difference to the ghost, which takes for sent what
may have been sent. The answers of the old calls are lost; what they did at the participants shows in what is
answered next, which may be anything.

*Time.* While undecided it runs on a grid of whole seconds from 0 to the deadline. Once decided only the order of
three timers matters (each branch's next attempt, and when the transaction becomes hung), so they are kept as
due, soon or late, and may fire in any order.

*The same.* Counters are cut where the machine stops looking at them, words that it does not read are left out, and
once decided it makes no difference which of two branches without an order is which.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain, combinations, permutations, product
from typing import Any

from app.protocol.messages import Answered, BranchResolved, CancelRequested, Input, RetryRequested
from app.protocol.policy import Policy
from app.protocol.steps import broken
from app.protocol.values import (
    FINAL,
    LATEST_S,
    REFUSALS,
    Branch,
    Reason,
    ReasonCode,
    Resolution,
    Settled,
    Transaction,
    TryOrder,
    Undo,
    in_order,
)
from holdfast.json_text import text_of
from holdfast.wire import Answer, Decision, Kind, Operation
from tests.protocol.ghost import PARTS, BranchGhost, Edge, Ghost, Part, crashed, follow, part_of
from tests.protocol.invariants import Violation, advance

NAMES = "abc"
SENDS = "sends"  # the name of transactions in which persons want calls to be made
POLICY = Policy(
    retry_base_s=0.5,
    retry_cap_s=1.0,
    hold_margin_s=0.0625,
    call_timeout_s=0.5,
    results_bytes_max=4,
    hung_attempts=2,
    hung_after_s=2.0,
    lease_s=9.0,
    linger_s=2.0,
)
DEADLINE = 3.0
LATEST = 6.0  # everything that is undecided by then can hang
RESULT = text_of("r")
LONG = text_of("long")  # longer than what a call may carry
SHORT_TTL_S = 2.0625  # safe for exactly two seconds
DECIDED_NOW = 100.0
SOON_S, LATE_S = 1.0, 50.0
STEPS_TO_THE_END_MAX = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """The branches of a transaction: their kinds, and what each one names in `after`, by place.

    `inline` branches are given by endpoints, and a pivot by none for its cancel; else they are registered. With `sends`
    persons want calls to be made.
    """

    kinds: tuple[Kind, ...]
    after: tuple[tuple[int, ...], ...] = ()
    try_order: TryOrder = TryOrder.PARALLEL
    undo: Undo = Undo.PARALLEL
    inline: bool = False
    sends: bool = False

    @property
    def name(self) -> str:
        order = self.try_order.value if not self.after else f"after {self.after}"
        words = [
            "+".join(self.kinds),
            order.replace(" ", ""),
            self.undo.value,
            "inline" if self.inline else "",
            "sends" if self.sends else "",
        ]
        return "-".join(word for word in words if word)

    @property
    def is_ordered(self) -> bool:
        return bool(self.after) or self.try_order is TryOrder.SEQUENTIAL


def cases_of(kinds: tuple[Kind, ...]) -> Iterator[Case]:
    """These branches without an order, in sequence and named by each other, undone at once and in reverse."""
    yield Case(kinds=kinds)
    has_pivot = Kind.PIVOT in kinds
    if has_pivot:
        yield Case(kinds=kinds, inline=True)
    if all(_may_wait(kinds, i, range(i)) for i in range(len(kinds))):
        yield Case(kinds=kinds, try_order=TryOrder.SEQUENTIAL)
        yield Case(kinds=kinds, try_order=TryOrder.SEQUENTIAL, undo=Undo.REVERSE)
        chain_of = tuple((i - 1,) if i else () for i in range(len(kinds)))
        yield Case(kinds=kinds, after=chain_of)
        yield Case(kinds=kinds, after=chain_of, undo=Undo.REVERSE, inline=has_pivot)


def _may_wait(kinds: tuple[Kind, ...], index: int, ahead: Iterable[int]) -> bool:
    """What comes before the decision can't wait for what comes after it, or with it."""
    late = {Kind.PIVOT, Kind.RETRYABLE}
    return kinds[index] is Kind.RETRYABLE or not any(kinds[i] in late - {kinds[index]} for i in ahead)


PAIRS = (
    *(case for pair in product(Kind, repeat=2) if pair.count(Kind.PIVOT) < 2 for case in cases_of(pair)),
    *(Case(kinds=(Kind.TCC, other), sends=True) for other in (Kind.CHECK, Kind.RETRYABLE)),
)
"""All pairs of kinds, in each order that the contract admits."""

TRIPLES = tuple(
    case
    for kinds in (
        (Kind.TCC, Kind.COMPENSABLE, Kind.PIVOT),
        (Kind.COMPENSABLE, Kind.CHECK, Kind.COMPENSABLE),
        (Kind.PIVOT, Kind.RETRYABLE, Kind.RETRYABLE),
        (Kind.TCC, Kind.PIVOT, Kind.RETRYABLE),
        (Kind.COMPENSABLE, Kind.COMPENSABLE, Kind.COMPENSABLE),
    )
    for case in cases_of(kinds)
)


@dataclass(frozen=True, slots=True)
class State:
    """A transaction between two steps, what really happened to it, and what time it is."""

    transaction: Transaction
    ghost: Ghost
    now: float


@dataclass(slots=True)
class Enumerated:
    """What a run has visited."""

    states: set[State]
    steps: int = 0
    crashes: int = 0


def enumerate_all(cases: Iterable[Case] = PAIRS) -> Enumerated:
    """Visit everything that such branches can reach.

    Raises Violation at the first step that breaks an invariant.
    """
    begin = [state for case in cases for state in _begin(case)]
    run = Enumerated(states=set(begin))
    queue = deque(begin)
    while queue:
        state = queue.popleft()
        found: list[State] = list(_ticks(state))
        for inputs in _inputs(state):
            edge = advance(state.ghost, state.transaction, inputs, state.now, POLICY)
            run.steps += 1
            found += _after(edge, run)
        if state.transaction.wake_at is not None:
            low = replace(state.transaction, wake_at=state.now + POLICY.lease_s / 3)
            found += _after(advance(state.ghost, low, (), state.now, POLICY), run)
            run.steps += 1
        for each in found:
            if each not in run.states:
                run.states.add(each)
                queue.append(each)
    return run


def set_aside(state: State) -> State:
    """The state after an invariant of the coordinator itself broke: every process forgets it, and tries again later."""
    branches = tuple(replace(b, calling=None) for b in state.transaction.branches)
    stored = replace(state.transaction, branches=branches)
    ghost = crashed(state.ghost, stored)
    ghost = replace(ghost, branches=tuple(replace(g, silent=False) for g in ghost.branches))  # hung for another reason
    return State(broken(stored, state.now, POLICY), ghost, state.now)


def steps_to_the_end(state: State) -> int:
    """How many steps it takes to finish when from now on all goes well, each of them checked."""
    steps = 0
    while not state.transaction.finished:
        steps += 1
        assert steps <= STEPS_TO_THE_END_MAX, f"stuck at {state}"
        state = fair(state)
    return steps


# --- what can happen ---------------------------------------------------------------------------------------------


def _begin(case: Case) -> Iterator[State]:
    named = case.after or ((),) * len(case.kinds)
    plain = tuple(
        Branch(name=name, kind=kind, after=tuple(NAMES[i] for i in after), **_address(case, kind))
        for name, kind, after in zip(NAMES, case.kinds, named, strict=False)
    )
    branches = in_order(plain, case.try_order, case.undo)
    ghost = Ghost(branches=(BranchGhost(),) * len(branches))
    new = Transaction(
        id="t",
        name=SENDS if case.sends else None,
        created_at=0.0,
        deadline=DEADLINE,
        branches=branches,
        try_order=case.try_order,
        undo=case.undo,
    )
    yield State(new, ghost, 0.0)
    yield State(replace(new, wake_at=POLICY.lease_s), ghost, 0.0)  # recorded, and the process died at once


def _address(case: Case, kind: Kind) -> dict[str, Any]:
    if case.inline:
        return {
            "endpoints": Endpoints({op: "http://p/" for part, op in PARTS[kind].items() if part is not Part.WITHDRAW})
        }
    return {"participant": "p"}


class Endpoints(dict[Operation, str]):
    """Endpoints in a state, which is remembered by its hash."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(self.items()))


def _after(edge: Edge, run: Enumerated) -> Iterator[State]:
    """The state after the step, and the one that a crash leaves."""
    ghost = follow(edge)
    yield _normal(State(edge.after, ghost, edge.now))
    if edge.step.must_save:
        stored = replace(edge.after, branches=tuple(replace(b, calling=None) for b in edge.after.branches))
        run.crashes += 1
        yield _normal(State(stored, crashed(ghost, stored), edge.now))
    else:
        soft_steps_leave_no_trace(edge, ghost)


def soft_steps_leave_no_trace(edge: Edge, ghost: Ghost) -> None:
    """Without a save nothing may happen that a crash would forget and the world remember."""
    for old, new in zip(edge.ghost.branches, ghost.branches, strict=True):
        if old.first_try_at != new.first_try_at or old.recorded != new.recorded:
            raise Violation("soft_steps_leave_no_trace", edge, "a Try left, and no record says so")
    if ghost.decided is not edge.ghost.decided:
        raise Violation("soft_steps_leave_no_trace", edge, "a decision was not saved")


def _inputs(state: State) -> Iterator[tuple[Input, ...]]:
    """Every input, and every combination whose parts could interfere."""
    yield ()
    branches = state.transaction.branches
    options = [list(_answers(state, i)) for i in range(len(branches))]
    yield from ((each,) for each in chain(*options))
    undecided = state.transaction.decision is Decision.UNDECIDED
    for some, others in combinations(options, 2):
        for one, other in product(some, others) if undecided else product(some[:3], others[:3]):
            yield one, other
            if undecided and one.retry_after_s is None and other.retry_after_s is None:
                yield other, one
    for command in _commands(state):
        yield (command,)
        pivot_resolved = isinstance(command, BranchResolved) and _is_pivot(state, command.branch)
        changes = isinstance(command, CancelRequested) == undecided or isinstance(command, RetryRequested)
        if not changes and not pivot_resolved:
            continue  # it changes nothing
        for answer in chain(*options):
            if getattr(command, "branch", answer.branch) == answer.branch and answer.retry_after_s is None:
                yield command, answer
                yield answer, command
    resolve = BranchResolved(branch="a", settled=Settled.CONFIRMED, by="ops", reason="seen")
    yield from permutations((resolve, CancelRequested()))
    if not undecided:
        yield from permutations((resolve, RetryRequested()))
        yield from permutations((resolve, replace(resolve, settled=Settled.CANCELLED)))
        if state.transaction.name == SENDS:
            yield from permutations((resolve, replace(resolve, settled=Settled.CANCELLED, send=True)))
    for answers in options:
        yield from permutations(answers[:2])
    yield tuple(_stale(state))


def _is_pivot(state: State, name: str) -> bool:
    return any(b.kind is Kind.PIVOT and b.name == name for b in state.transaction.branches)


def _answers(state: State, index: int) -> Iterator[Answered]:
    under_way = state.ghost.branches[index].under_way
    if under_way is None:
        return
    operation, attempt = under_way
    branch = state.transaction.branches[index]
    part = part_of(branch.kind, operation)
    plain = Answered(branch=branch.name, operation=operation, attempt=attempt, answer=Answer.SUCCEEDED)
    answers = part is Part.FIRST or branch.kind is Kind.RETRYABLE
    done = replace(plain, result=RESULT) if answers else plain
    yield done
    yield replace(plain, answer=Answer.REFUSED)
    yield replace(plain, answer=Answer.UNANSWERED)
    if operation is Operation.TRY:
        yield replace(done, hold_ttl_s=SHORT_TTL_S)
    if answers:
        yield replace(done, result=None, too_long=True, error="too long")
        if any(branch.name in each.after for each in state.transaction.branches):
            yield replace(done, result=LONG)
    if part is Part.WITHDRAW:
        yield replace(plain, answer=Answer.REFUSED, already=True, result=RESULT)
        yield replace(plain, answer=Answer.REFUSED, no_route=True)
    elif part is not Part.FIRST and state.ghost.branches[index].intent is not None:
        yield replace(plain, answer=Answer.REFUSED, already=True)
    yield replace(plain, answer=Answer.UNANSWERED, unauthorized=True)
    later = replace(plain, answer=Answer.UNANSWERED, retry_after_s=LATE_S)
    yield later
    yield replace(later, in_progress=True)


def _commands(state: State) -> Iterator[Input]:
    yield CancelRequested()
    yield RetryRequested()
    for branch in state.transaction.branches:
        for settled in Settled:
            resolve = BranchResolved(branch=branch.name, settled=settled, by="ops", reason="seen")
            yield resolve
            if state.transaction.name == SENDS:
                yield replace(resolve, send=True)


def _stale(state: State) -> Iterator[Answered]:
    """Answers that nobody waits for: wrong attempt, wrong operation, a branch that was not asked or does not exist."""
    for branch, ghost in zip(state.transaction.branches, state.ghost.branches, strict=True):
        for operation in Operation:
            attempt = branch.attempts(operation)
            if ghost.under_way != (operation, attempt):
                yield Answered(branch=branch.name, operation=operation, attempt=attempt, answer=Answer.SUCCEEDED)
                if operation in (Operation.TRY, Operation.ACTION):
                    yield Answered(branch=branch.name, operation=operation, attempt=attempt, answer=Answer.REFUSED)
            else:
                yield Answered(branch=branch.name, operation=operation, attempt=attempt - 1, answer=Answer.REFUSED)
                yield Answered(branch=branch.name, operation=operation, attempt=attempt + 1, answer=Answer.SUCCEEDED)
    yield Answered(branch="z", operation=Operation.TRY, attempt=1, answer=Answer.REFUSED)


# --- time --------------------------------------------------------------------------------------------------------


def _ticks(state: State) -> Iterator[State]:
    """The same state later: whoever works on it was busy, or waits. The last of them is when most has fired."""
    transaction, now = state.transaction, state.now
    if transaction.finished:
        return
    if transaction.decision is Decision.UNDECIDED:
        if now < (LATEST if Kind.PIVOT in {b.kind for b in transaction.branches} else DEADLINE):
            yield _normal(replace(state, now=now + 1))
            return
    elif transaction.decided_at == now:
        yield replace(state, transaction=replace(transaction, decided_at=now - POLICY.hung_after_s))
    for i, asked in enumerate(transaction.branches):
        if asked.asked_at == now:
            overdue = replace(asked, asked_at=now - POLICY.hung_after_s)
            branches = (*transaction.branches[:i], overdue, *transaction.branches[i + 1 :])
            yield replace(state, transaction=replace(transaction, branches=branches))
    waiting = [i for i, b in enumerate(transaction.branches) if b.next_attempt_at is not None]
    for fired in chain.from_iterable(combinations(waiting, n) for n in range(1, len(waiting) + 1)):
        due = tuple(replace(b, next_attempt_at=None) if i in fired else b for i, b in enumerate(transaction.branches))
        yield _normal(replace(state, transaction=replace(transaction, branches=due)))


@cache
def fair(state: State) -> State:
    """What comes next when every call under way is answered `succeeded`, or else when the timers fire."""
    answers = [next(_answers(state, i), None) for i in range(len(state.transaction.branches))]
    edge = advance(state.ghost, state.transaction, [a for a in answers if a], state.now, POLICY)
    after = _normal(State(edge.after, follow(edge), edge.now))
    return after if after != state else list(_ticks(state))[-1]


# --- the same state, seen once -----------------------------------------------------------------------------------


@cache
def _normal(state: State) -> State:
    """The representative of all states between which the machine makes no difference."""
    transaction, now = state.transaction, state.now
    pairs = zip(transaction.branches, state.ghost.branches, strict=True)
    if transaction.decision is Decision.UNDECIDED:
        normal = [_normal_undecided(b, g, now) for b, g in pairs]
        transaction = replace(
            transaction,
            branches=tuple(b for b, _ in normal),
            wake_at=None if transaction.wake_at is None else now + POLICY.lease_s,
            hung_since=None if transaction.hung_since is None else 0.0,
        )
        return State(transaction, replace(state.ghost, branches=tuple(g for _, g in normal)), now)
    ordered = any(b.waits_for or b.undone_after or b.kind is Kind.PIVOT for b in transaction.branches)
    normal = [_normal_decided(b, g, now) for b, g in pairs]
    if not ordered:
        normal = [(replace(b, name=""), g) for b, g in normal]
        normal.sort(key=repr)
    assert transaction.decided_at is not None
    overdue = transaction.finished or now >= transaction.decided_at + POLICY.hung_after_s
    transaction = replace(
        transaction,
        branches=tuple(replace(b, name=name) for (b, _), name in zip(normal, NAMES, strict=False)),
        wake_at=None if transaction.finished else DECIDED_NOW + POLICY.lease_s,
        finished_at=DECIDED_NOW if transaction.finished else None,
        hung_since=None if transaction.hung_since is None else DECIDED_NOW,
        decided_at=DECIDED_NOW - POLICY.hung_after_s if overdue else DECIDED_NOW,
        try_order=transaction.try_order if ordered else TryOrder.PARALLEL,
        undo=transaction.undo if ordered else Undo.PARALLEL,
        reason=Reason(code=ReasonCode.REQUESTED) if transaction.decision is Decision.CANCEL else None,
    )
    return State(transaction, replace(state.ghost, branches=tuple(g for _, g in normal)), DECIDED_NOW)


@cache
def _normal_undecided(branch: Branch, ghost: BranchGhost, now: float) -> tuple[Branch, BranchGhost]:
    by_then = LATEST + 1 if branch.kind is Kind.PIVOT else DEADLINE
    may_hang = branch.tried_at is not None and branch.tried_at + POLICY.hung_after_s < by_then
    cap = POLICY.hung_attempts if may_hang and not branch.hung_reason else 0
    wait_s = 0.0 if branch.next_attempt_at is None else branch.next_attempt_at - now
    soon = now + SOON_S if wait_s > 0 else None
    return replace(
        branch,
        try_attempts=2 if branch.try_attempts else 0,
        cancel_attempts=2 if branch.cancel_attempts else 0,
        failures=min(branch.failures, cap),
        next_attempt_at=LATE_S if wait_s > POLICY.retry_cap_s else soon,  # another draw of the jitter, on the grid
        last_answer=None,
        last_error=None,
    ), replace(
        ghost,
        failures=min(ghost.failures, cap),
        under_way=ghost.under_way and (ghost.under_way[0], 2),
        pauses=ghost.pauses and wait_s > 0,
    )


@cache
def _normal_decided(branch: Branch, ghost: BranchGhost, now: float) -> tuple[Branch, BranchGhost]:
    told: dict[str, Any] = {"result": branch.result, "after": branch.after, "waits_for": branch.waits_for}
    same: dict[str, Any] = {
        "participant": branch.participant,
        "endpoints": branch.endpoints,
        "undone_after": branch.undone_after,
    }
    happened = BranchGhost(
        recorded=ghost.recorded,
        first_try_at=0.0 if ghost.tried else None,
        safe_until=None if ghost.safe_until is None else math.inf,
        under_way=ghost.under_way and (ghost.under_way[0], 2),
        ended=ghost.ended,
        intent=ghost.intent,
        turned=ghost.turned,
        asked=ghost.asked,
        result=ghost.result,
        kept=ghost.kept,
    )
    attempts: dict[str, Any] = {"try_attempts": 2, "confirm_attempts": 2, "cancel_attempts": 2}
    if branch.phase in FINAL:
        return Branch(
            name=branch.name,
            kind=branch.kind,
            phase=branch.phase,
            resolution=_normal_resolution(branch.resolution),
            contradicted=branch.contradicted,
            calling=branch.calling,
            **(told | same | attempts),
        ), happened
    assert not ghost.refused or branch.hung_reason in REFUSALS, "a refusal is noticed at once, and stays noticed"
    cap = POLICY.hung_attempts if not branch.hung_reason else 0
    wait_s = 0.0 if branch.next_attempt_at is None else branch.next_attempt_at - now
    soon = DECIDED_NOW + SOON_S if wait_s > 0 else None
    asked_at = None if branch.asked_at is None else DECIDED_NOW
    if branch.asked_at is not None and now >= branch.asked_at + POLICY.hung_after_s:
        asked_at = DECIDED_NOW - POLICY.hung_after_s
    return Branch(
        name=branch.name,
        kind=branch.kind,
        phase=branch.phase,
        failures=min(branch.failures, cap),
        next_attempt_at=DECIDED_NOW + LATE_S if wait_s > POLICY.retry_cap_s else soon,
        tried_at=0.0,
        asked_at=asked_at,
        hold_until=None if branch.hold_until is None else LATEST_S,
        hung_reason=branch.hung_reason,
        intent=_normal_resolution(branch.intent),
        calling=branch.calling,
        try_attempts=2,
        confirm_attempts=2 if branch.confirm_attempts else 0,
        cancel_attempts=2 if branch.cancel_attempts else 0,
        **(told | same),
    ), replace(happened, failures=min(ghost.failures, cap), pauses=ghost.pauses and wait_s > 0)


def _normal_resolution(resolution: Resolution | None) -> Resolution | None:
    return resolution and Resolution(settled=resolution.settled, by="", at=0.0, reason="")
