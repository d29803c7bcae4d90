"""What really happened, kept beside the state machine and without asking it: the ghost.

The ghost knows what was durable, which calls left and what was answered to them; the invariants compare what the
machine does with it. It takes nothing from app/protocol but its words.
"""

from dataclasses import dataclass, replace

from app.protocol.messages import Answered, BranchResolved, Call, CancelRequested, Input, RetryRequested, Step
from app.protocol.policy import Policy
from app.protocol.values import FINAL, BranchPhase, Transaction
from holdfast.wire import Answer, Decision, Operation

PHASES_TWO = (BranchPhase.CONFIRMING, BranchPhase.CANCELLING)
PHASE_TWO = {Operation.CONFIRM: Decision.CONFIRM, Operation.CANCEL: Decision.CANCEL}


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchGhost:
    """What really happened to one branch.

    `recorded` says that the durable record admits a Try, `first_try_at` since when one may have been on its way (None
    when certainly none was sent), `safe_until` how long its hold can be relied on (None when no hold is known),
    `failures` what went unacknowledged since the phase began or a person asked for a retry, `refused` that this was
    the last answer in phase two, `pauses` that its last call ended without an answer, `silent` that its Trys have
    failed too often and for too long.
    """

    recorded: bool = False
    first_try_at: float | None = None
    safe_until: float | None = None
    under_way: tuple[Operation, int] | None = None
    failures: int = 0
    refused: bool = False
    pauses: bool = False
    silent: bool = False

    @property
    def tried(self) -> bool:
        return self.first_try_at is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ghost:
    """What really happened to a transaction: `decided` is durable, `phase_two` may have been sent."""

    branches: tuple[BranchGhost, ...]
    decided: Decision = Decision.UNDECIDED
    phase_two: Decision = Decision.UNDECIDED


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """One step of the machine, with what was true before it and what its inputs amount to.

    `counted` holds the answers to calls that are under way, by index of the branch; every other answer is stale.
    `resolved` holds the branches that these inputs settle by hand. `heard` is the ghost after the inputs, before the
    calls. `unstale` is the step without the stale answers.
    """

    ghost: Ghost
    heard: Ghost
    before: Transaction
    inputs: tuple[Input, ...]
    counted: dict[int, Answered]
    resolved: frozenset[int]
    now: float
    policy: Policy
    step: Step
    unstale: Step

    @property
    def after(self) -> Transaction:
        return self.step.transaction

    @property
    def decides(self) -> bool:
        return self.before.decision is Decision.UNDECIDED and self.after.decision is not Decision.UNDECIDED

    def index(self, name: str) -> int:
        return next(i for i, b in enumerate(self.before.branches) if b.name == name)


@dataclass(slots=True)
class Heard:
    """What inputs amount to, taken in their order."""

    ghost: Ghost
    counted: dict[int, Answered]
    resolved: frozenset[int]
    effective: list[Input]


def hear(ghost: Ghost, transaction: Transaction, inputs: tuple[Input, ...], now: float, policy: Policy) -> Heard:
    """Tell the inputs that mean something from stale ones, and note what they say."""
    branches = list(ghost.branches)
    counted: dict[int, Answered] = {}
    resolved: frozenset[int] = frozenset()
    effective: list[Input] = []
    decided = transaction.decision is not Decision.UNDECIDED
    for each in inputs:
        index = next((i for i, b in enumerate(transaction.branches) if b.name == getattr(each, "branch", None)), -1)
        match each:
            case Answered():
                if index < 0 or branches[index].under_way != (each.operation, each.attempt):
                    continue
                counted[index] = each
                branches[index] = _answered(branches[index], each, transaction, now, policy)
            case CancelRequested():
                decided = True
            case RetryRequested():
                branches = [replace(b, failures=0, pauses=False) for b in branches]
            case BranchResolved():
                final = transaction.branches[index].phase in FINAL or index in resolved or _ends(counted.get(index))
                if decided and not final:
                    resolved |= {index}
                    branches[index] = replace(branches[index], under_way=None, failures=0, refused=False, pauses=False)
        effective.append(each)
    return Heard(replace(ghost, branches=tuple(branches)), counted, resolved, effective)


def follow(edge: Edge) -> Ghost:
    """The ghost after a step. What may have been sent counts as sent: a crash may come before or after the calls."""
    after, calls = edge.after, edge.step.calls
    branches = []
    for record, heard in zip(after.branches, edge.heard.branches, strict=True):
        branch = heard
        if edge.step.must_save and record.phase is not BranchPhase.PENDING and not branch.recorded:
            branch = replace(branch, recorded=True)
        if edge.decides:
            branch = replace(branch, failures=0, refused=False, pauses=False, silent=False)
        for call in calls:
            if call.branch.name == record.name:
                branch = _sent(branch, call, edge.now)
        branches.append(branch)
    phase_two = next((PHASE_TWO[c.operation] for c in calls if c.operation in PHASE_TWO), edge.ghost.phase_two)
    decided = after.decision if edge.step.must_save else edge.ghost.decided
    return Ghost(branches=tuple(branches), decided=decided, phase_two=phase_two)


def crashed(ghost: Ghost, stored: Transaction) -> Ghost:
    """The ghost once the process has died: its calls' answers are lost, and it knows what the record says.

    Failures of a Try that was under way at the decision are of the past, as `follow` has it.
    """
    decided = stored.decision is not Decision.UNDECIDED
    branches = tuple(
        replace(
            g,
            under_way=None,
            failures=0 if decided and b.phase not in PHASES_TWO else b.failures,
            refused=b.phase in PHASES_TWO and b.last_answer is Answer.REFUSED,
            pauses=b.next_attempt_at is not None and (not decided or b.phase in PHASES_TWO),
            safe_until=None if b.phase in (BranchPhase.PENDING, BranchPhase.TRYING) else g.safe_until,
        )
        for g, b in zip(ghost.branches, stored.branches, strict=True)
    )
    return replace(ghost, branches=branches)


def _ends(answer: Answered | None) -> bool:
    return answer is not None and answer.operation in PHASE_TWO and answer.answer is Answer.SUCCEEDED


def _answered(
    branch: BranchGhost, answer: Answered, transaction: Transaction, now: float, policy: Policy
) -> BranchGhost:
    after = replace(branch, under_way=None)
    if answer.answer is Answer.SUCCEEDED:
        after = replace(after, failures=0, refused=False)
        if answer.operation is not Operation.TRY:
            return after
        assert branch.first_try_at is not None, "an answer to a Try that was never sent"
        ends_at = transaction.deadline + policy.hold_margin_s
        if answer.hold_ttl_s is not None:
            ends_at = min(ends_at, branch.first_try_at + answer.hold_ttl_s)
        guard_s = min((ends_at - branch.first_try_at) / 10, 5.0, policy.hold_margin_s)
        return replace(after, safe_until=ends_at - guard_s, silent=False)
    if answer.operation is Operation.TRY and transaction.decision is not Decision.UNDECIDED:
        return replace(after, failures=0)  # phase two begins for this branch now
    refused = answer.answer is Answer.REFUSED and answer.operation in PHASE_TWO
    after = replace(after, refused=refused, pauses=True)
    if answer.in_progress:
        return after
    failures = branch.failures + 1
    tried = branch.first_try_at if answer.operation is Operation.TRY else None
    silent = tried is not None and failures >= policy.hung_attempts and now >= tried + policy.hung_after_s
    return replace(after, failures=failures, silent=after.silent or silent)


def _sent(branch: BranchGhost, call: Call, now: float) -> BranchGhost:
    first_try_at = branch.first_try_at
    if call.operation is Operation.TRY and first_try_at is None:
        first_try_at = now
    return replace(branch, under_way=(call.operation, call.attempt), first_try_at=first_try_at, pauses=False)
