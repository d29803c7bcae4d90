"""Every state that a transaction of two branches of any kinds can reach, and every step out of it, checked.

A breadth-first search from the begin states. Its steps are all that can happen to a transaction: answers in every
combination and order, commands, stale answers, time passing, a lease that must be renewed, and a crash.

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
once decided it makes no difference which of the two branches is which.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain, combinations, permutations, product

from app.protocol.kinds import KINDS
from app.protocol.messages import Answered, BranchResolved, CancelRequested, Input, RetryRequested
from app.protocol.policy import Policy
from app.protocol.steps import broken
from app.protocol.values import (
    FINAL,
    REFUSALS,
    Branch,
    BranchPhase,
    Reason,
    ReasonCode,
    Resolution,
    Settled,
    Transaction,
    TryOrder,
    in_order,
)
from holdfast.json_text import text_of
from holdfast.wire import Answer, Decision, Kind, Operation
from tests.protocol.ghost import BranchGhost, Edge, Ghost, crashed, follow
from tests.protocol.invariants import Violation, advance

POLICY = Policy(
    retry_base_s=0.5,
    retry_cap_s=1.0,
    hold_margin_s=0.0625,
    hung_attempts=2,
    hung_after_s=2.0,
    lease_s=9.0,
    linger_s=2.0,
)
DEADLINE = 3.0
RESULT = text_of("r")
SHORT_TTL_S = 2.0625  # safe for exactly two seconds
DECIDED_NOW = 100.0
SOON_S, LATE_S = 1.0, 50.0
STEPS_TO_THE_END_MAX = 10


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


def enumerate_all(pairs: Iterable[tuple[Kind, Kind]] = ()) -> Enumerated:
    """Visit everything that such pairs of branches can reach, by default all pairs that there are.

    Raises Violation at the first step that breaks an invariant.
    """
    begin = [
        state
        for try_order in TryOrder
        for one, other in tuple(pairs) or product(KINDS, KINDS)
        for state in _begin(try_order, one, other)
    ]
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


def _begin(try_order: TryOrder, one: Kind, other: Kind) -> Iterator[State]:
    branches = in_order((Branch(name="a", kind=one), Branch(name="b", kind=other)), try_order)
    ghost = Ghost(branches=(BranchGhost(), BranchGhost()))
    new = Transaction(id="t", created_at=0.0, deadline=DEADLINE, branches=branches, try_order=try_order)
    yield State(new, ghost, 0.0)
    yield State(replace(new, wake_at=POLICY.lease_s), ghost, 0.0)  # recorded, and the process died at once


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
    options = [list(_answers(state, i)) for i in range(2)]
    yield from ((each,) for each in chain(*options))
    for one, other in product(*options):
        yield one, other
        if one.retry_after_s is None and other.retry_after_s is None:
            yield other, one
    undecided = state.transaction.decision is Decision.UNDECIDED
    for command in _commands(state):
        yield (command,)
        if isinstance(command, CancelRequested) != undecided and not isinstance(command, RetryRequested):
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
    for answers in options:
        yield from permutations(answers[:2])
    yield tuple(_stale(state))


def _answers(state: State, index: int) -> Iterator[Answered]:
    under_way = state.ghost.branches[index].under_way
    if under_way is None:
        return
    operation, attempt = under_way
    name = state.transaction.branches[index].name
    for answer in Answer:
        result = RESULT if answer is Answer.SUCCEEDED and operation is Operation.TRY else None
        yield Answered(branch=name, operation=operation, attempt=attempt, answer=answer, result=result)
    if operation is Operation.TRY:
        held = Answered(branch=name, operation=operation, attempt=attempt, answer=Answer.SUCCEEDED, result=RESULT)
        yield replace(held, hold_ttl_s=SHORT_TTL_S)
        yield replace(held, result=None, too_long=True, error="too long")
    yield Answered(branch=name, operation=operation, attempt=attempt, answer=Answer.UNANSWERED, unauthorized=True)
    later = Answered(branch=name, operation=operation, attempt=attempt, answer=Answer.UNANSWERED, retry_after_s=LATE_S)
    yield later
    yield replace(later, in_progress=True)


def _commands(state: State) -> Iterator[Input]:
    yield CancelRequested()
    yield RetryRequested()
    for name in "ab":
        for settled in Settled:
            yield BranchResolved(branch=name, settled=settled, by="ops", reason="seen")


def _stale(state: State) -> Iterator[Answered]:
    """Answers that nobody waits for: wrong attempt, wrong operation, a branch that was not asked or does not exist."""
    for branch, ghost in zip(state.transaction.branches, state.ghost.branches, strict=True):
        for operation in Operation:
            attempt = branch.attempts(operation)
            if ghost.under_way != (operation, attempt):
                yield Answered(branch=branch.name, operation=operation, attempt=attempt, answer=Answer.SUCCEEDED)
                if operation is Operation.TRY:
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
        if now < DEADLINE:
            yield _normal(replace(state, now=now + 1))
        return
    if transaction.decided_at == now:
        yield replace(state, transaction=replace(transaction, decided_at=now - POLICY.hung_after_s))
    waiting = [i for i, b in enumerate(transaction.branches) if b.next_attempt_at is not None]
    for fired in chain.from_iterable(combinations(waiting, n) for n in range(1, len(waiting) + 1)):
        branches = (replace(b, next_attempt_at=None) if i in fired else b for i, b in enumerate(transaction.branches))
        yield _normal(replace(state, transaction=replace(transaction, branches=tuple(branches))))


@cache
def fair(state: State) -> State:
    """What comes next when every call under way is answered `succeeded`, or else when the timers fire."""
    answers = [next(_answers(state, i), None) for i in range(2)]
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
    normal = sorted((_normal_decided(b, g, now, transaction.decision) for b, g in pairs), key=repr)
    assert transaction.decided_at is not None
    overdue = transaction.finished or now >= transaction.decided_at + POLICY.hung_after_s
    transaction = replace(
        transaction,
        branches=tuple(replace(b, name=name) for (b, _), name in zip(normal, "ab", strict=True)),
        wake_at=None if transaction.finished else DECIDED_NOW + POLICY.lease_s,
        finished_at=DECIDED_NOW if transaction.finished else None,
        hung_since=None if transaction.hung_since is None else DECIDED_NOW,
        decided_at=DECIDED_NOW - POLICY.hung_after_s if overdue else DECIDED_NOW,
        try_order=TryOrder.PARALLEL,
        reason=Reason(code=ReasonCode.REQUESTED) if transaction.decision is Decision.CANCEL else None,
    )
    return State(transaction, replace(state.ghost, branches=tuple(g for _, g in normal)), DECIDED_NOW)


@cache
def _normal_undecided(branch: Branch, ghost: BranchGhost, now: float) -> tuple[Branch, BranchGhost]:
    may_hang = branch.tried_at is not None and branch.tried_at + POLICY.hung_after_s < DEADLINE
    cap = POLICY.hung_attempts if may_hang and not branch.hung_reason else 0
    wait_s = 0.0 if branch.next_attempt_at is None else branch.next_attempt_at - now
    soon = now + SOON_S if wait_s > 0 else None
    return replace(
        branch,
        try_attempts=2 if branch.try_attempts else 0,
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
def _normal_decided(branch: Branch, ghost: BranchGhost, now: float, decision: Decision) -> tuple[Branch, BranchGhost]:
    if branch.phase in FINAL:
        settled = branch.resolution and Resolution(settled=branch.resolution.settled, by="", at=0.0, reason="")
        return Branch(name="", kind=branch.kind, phase=branch.phase, resolution=settled), BranchGhost()
    confirming = decision is Decision.CONFIRM
    assert not ghost.refused or branch.hung_reason in REFUSALS, "a refusal is noticed at once, and stays noticed"
    cap = POLICY.hung_attempts if not branch.hung_reason else 0
    wait_s = 0.0 if branch.next_attempt_at is None else branch.next_attempt_at - now
    soon = DECIDED_NOW + SOON_S if wait_s > 0 else None
    return Branch(
        name="",
        kind=branch.kind,
        phase=branch.phase,
        result=RESULT if confirming else None,
        try_attempts=2,
        confirm_attempts=2 if branch.phase is BranchPhase.CONFIRMING else 0,
        cancel_attempts=2 if branch.phase is BranchPhase.CANCELLING else 0,
        failures=min(branch.failures, cap),
        next_attempt_at=DECIDED_NOW + LATE_S if wait_s > POLICY.retry_cap_s else soon,
        tried_at=0.0,
        hung_reason=branch.hung_reason,
        calling=branch.calling,
    ), BranchGhost(
        recorded=ghost.recorded,
        first_try_at=0.0 if ghost.tried else None,
        under_way=ghost.under_way and (ghost.under_way[0], 2),
        failures=min(ghost.failures, cap),
        pauses=ghost.pauses and wait_s > 0,
    )
