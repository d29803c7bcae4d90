"""What really happened, kept beside the state machine and without asking it: the ghost.

The ghost knows what was durable, which calls left and what was answered to them; the invariants compare what the
machine does with it. It takes nothing from app/protocol but its words: what a kind is asked for, and who waits for
whom, it takes from docs/reference/patterns.md, sections 1 to 3.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from app.protocol.messages import Answered, BranchResolved, Call, CancelRequested, Input, RetryRequested, Step
from app.protocol.policy import Policy
from app.protocol.values import FINAL, Branch, BranchPhase, Settled, Transaction, TryOrder
from holdfast.json_text import JsonText
from holdfast.wire import Answer, Decision, Kind, Operation

PHASE_OF = {Settled.CONFIRMED: BranchPhase.CONFIRMING, Settled.CANCELLED: BranchPhase.CANCELLING}
PHASES_TWO = (BranchPhase.CONFIRMING, BranchPhase.CANCELLING)


class Part(StrEnum):
    """What a call is for."""

    FIRST = "first"  # before the decision
    CONFIRM = "confirm"
    UNDO = "undo"
    WITHDRAW = "withdraw"  # asks a pivot to make sure that it won't happen


PARTS: Final[dict[Kind, Mapping[Part, Operation]]] = {
    Kind.TCC: {Part.FIRST: Operation.TRY, Part.CONFIRM: Operation.CONFIRM, Part.UNDO: Operation.CANCEL},
    Kind.COMPENSABLE: {Part.FIRST: Operation.ACTION, Part.UNDO: Operation.COMPENSATION},
    Kind.CHECK: {Part.FIRST: Operation.ACTION},
    Kind.PIVOT: {Part.FIRST: Operation.ACTION, Part.WITHDRAW: Operation.CANCEL},
    Kind.RETRYABLE: {Part.CONFIRM: Operation.ACTION},
}
"""The contract's table of kinds: patterns.md, section 1."""
ENDS: Final = {Part.CONFIRM: Settled.CONFIRMED, Part.UNDO: Settled.CANCELLED}
AFTER: Final = {Part.CONFIRM: Decision.CONFIRM, Part.UNDO: Decision.CANCEL}
"""Calls that carry a decision out."""


SETTLES: Final = {Decision.CONFIRM: Settled.CONFIRMED, Decision.CANCEL: Settled.CANCELLED}


def part_of(kind: Kind, operation: Operation) -> Part | None:
    """What a branch of this kind is asked for by this operation; None if it has no such operation."""
    return next((part for part, each in PARTS[kind].items() if each is operation), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchGhost:
    """What really happened to one branch.

    `recorded` says that the durable record admits a first call, `first_try_at` since when one may have been on its way
    (None when certainly none was sent), `safe_until` how long its hold can be relied on (infinity for an action that
    was done, None when nothing is known to hold), `failures` what went unacknowledged since the phase began or a person
    asked for a retry, `refused` that this was the last answer after the decision, `pauses` that its last call ended
    without an answer, `silent` that its first calls have failed too often and for too long. `ended` says that it has
    acknowledged what was decided, or that a person settled it, `intent` what a person wants to be made of it by a call
    (`turned` once it is asked for that), `asked` that it was called for what it is in now. `result` is what it
    answered, and `kept` what the record says of that. Of a pivot `may_withdraw` says that it isn't known to have no
    such route.
    """

    recorded: bool = False
    first_try_at: float | None = None
    safe_until: float | None = None
    under_way: tuple[Operation, int] | None = None
    failures: int = 0
    refused: bool = False
    pauses: bool = False
    silent: bool = False
    ended: bool = False
    intent: Settled | None = None
    turned: Settled | None = None
    asked: bool = False
    result: JsonText | None = None
    kept: JsonText | None = None
    may_withdraw: bool = True

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
    `resolved` holds the branches that these inputs settle by hand, and `late` the answers to those that were settled.
    `heard` is the ghost after the inputs, before the calls. `unstale` is the step without the stale answers.
    """

    ghost: Ghost
    heard: Ghost
    before: Transaction
    inputs: tuple[Input, ...]
    counted: dict[int, Answered]
    late: dict[int, Answered]
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

    def part(self, index: int) -> Part | None:
        """What the answer to this branch's call, which counts, was about."""
        answer = self.counted.get(index)
        return None if answer is None else part_of(self.before.branches[index].kind, answer.operation)


@dataclass(slots=True)
class Heard:
    """What inputs amount to, taken in their order."""

    ghost: Ghost
    counted: dict[int, Answered]
    late: dict[int, Answered]
    resolved: frozenset[int]
    effective: list[Input]


# --- order -------------------------------------------------------------------------------------------------------


def ahead_of(transaction: Transaction, index: int) -> set[int]:
    """The branches that this one comes after, also by way of others."""
    branches = transaction.branches
    if transaction.try_order is TryOrder.SEQUENTIAL:
        return set(range(index))
    places = {b.name: i for i, b in enumerate(branches)}
    ahead: set[int] = set()
    found = [index]
    while found:
        found = [places[name] for i in found for name in branches[i].after if places[name] not in ahead]
        ahead.update(found)
    return ahead


def comes_first(branch: Branch) -> bool:
    """Whether it is asked for something before the decision, and isn't the pivot, which comes last."""
    return Part.FIRST in PARTS[branch.kind] and branch.kind is not Kind.PIVOT


def is_ready(branch: Branch, ghost: BranchGhost) -> bool:
    """Whether it holds, or has nothing to do before the decision."""
    return ghost.safe_until is not None or Part.FIRST not in PARTS[branch.kind]


def is_over(branch: Branch, ghost: BranchGhost, decision: Decision) -> bool:
    """Whether everything that is to be made of it after the decision was made."""
    if ghost.ended:
        return True
    if decision is Decision.CONFIRM:
        return Part.CONFIRM not in PARTS[branch.kind]
    return Part.UNDO not in PARTS[branch.kind] or not ghost.tried


def pivot_of(transaction: Transaction) -> int | None:
    return next((i for i, b in enumerate(transaction.branches) if b.kind is Kind.PIVOT), None)


def sent_pivot(transaction: Transaction, ghost: Ghost) -> int | None:
    """The pivot, if it may have been sent."""
    pivot = pivot_of(transaction)
    return pivot if pivot is not None and ghost.branches[pivot].tried else None


def verdict_of(answer: Answered | None) -> Decision | None:
    """What an answer of the pivot decides, to its action or to its cancel."""
    match answer:
        case Answered(operation=Operation.ACTION, answer=Answer.SUCCEEDED):
            return Decision.CONFIRM
        case Answered(operation=Operation.ACTION, answer=Answer.REFUSED):
            return Decision.CANCEL
        case Answered(operation=Operation.CANCEL, answer=Answer.SUCCEEDED):
            return Decision.CANCEL
        case Answered(operation=Operation.CANCEL, answer=Answer.REFUSED, already=True):
            return Decision.CONFIRM
        case _:
            return None


def offers_cancel(branch: Branch, ghost: BranchGhost) -> bool:
    """Whether a pivot can be asked to make sure that it won't happen."""
    return ghost.may_withdraw and (branch.endpoints is None or Operation.CANCEL in branch.endpoints)


# --- what happens ------------------------------------------------------------------------------------------------


def hear(ghost: Ghost, transaction: Transaction, inputs: tuple[Input, ...], now: float, policy: Policy) -> Heard:
    """Tell the inputs that mean something from stale ones, and note what they say."""
    heard = Heard(ghost, {}, {}, frozenset(), [])
    branches = list(ghost.branches)
    decided = transaction.decision is not Decision.UNDECIDED
    sent = sent_pivot(transaction, ghost)
    for each in inputs:
        index = next((i for i, b in enumerate(transaction.branches) if b.name == getattr(each, "branch", None)), -1)
        match each:
            case Answered():
                if index < 0 or branches[index].under_way != (each.operation, each.attempt):
                    continue
                if branches[index].ended:
                    heard.late[index] = each
                    branches[index] = replace(branches[index], under_way=None)
                else:
                    heard.counted[index] = each
                    branches[index] = _answered(
                        branches[index], transaction.branches[index], each, transaction, now, policy
                    )
            case CancelRequested():
                decided = decided or sent is None
            case RetryRequested():
                branches = [replace(b, failures=0, pauses=False) for b in branches]
            case BranchResolved():
                may_resolve = decided or (index == sent and verdict_of(heard.counted.get(index)) is None)
                branch = transaction.branches[index]
                if branch.phase not in FINAL and not branches[index].ended and may_resolve:
                    if not each.send:
                        heard.resolved |= {index}
                        branches[index] = _settled(branches[index], is_pivot=not decided)
                    elif decided:
                        branches[index] = _wished(branches[index], branch, each.settled, transaction.decision)
        heard.effective.append(each)
    heard.ghost = replace(ghost, branches=tuple(_turned(b, transaction.decision) for b in branches))
    return heard


def _settled(ghost: BranchGhost, *, is_pivot: bool) -> BranchGhost:
    """A person has settled the branch: only a pivot's answer says anything from now on."""
    under_way = ghost.under_way if is_pivot else None
    after = replace(ghost, under_way=under_way, failures=0, refused=False, pauses=False)
    return replace(after, silent=False, ended=True, intent=None)


def _wished(ghost: BranchGhost, branch: Branch, settled: Settled, decision: Decision) -> BranchGhost:
    """A person wants a call to be made; if it is the one that is made anyway, it is made at once."""
    if (Part.CONFIRM if settled is Settled.CONFIRMED else Part.UNDO) not in PARTS[branch.kind]:
        return ghost
    if SETTLES.get(decision) is settled and ghost.intent is None:
        return replace(ghost, failures=0, pauses=False)
    return replace(ghost, intent=settled)


def _turned(branch: BranchGhost, decision: Decision) -> BranchGhost:
    """Once its own call has ended, a branch is asked for what a person wants, and all counts anew."""
    if branch.under_way is not None or branch.ended or branch.intent is branch.turned:
        return branch
    intent = None if branch.intent is SETTLES.get(decision) else branch.intent
    return replace(branch, intent=intent, turned=intent, failures=0, refused=False, pauses=False, asked=False)


def follow(edge: Edge) -> Ghost:
    """The ghost after a step. What may have been sent counts as sent: a crash may come before or after the calls."""
    after, calls = edge.after, edge.step.calls
    branches = []
    for record, heard in zip(after.branches, edge.heard.branches, strict=True):
        branch = heard
        if edge.step.must_save:
            recorded = branch.recorded or record.phase is not BranchPhase.PENDING
            branch = replace(branch, recorded=recorded, kept=branch.result)
        if edge.decides:
            branch = replace(branch, failures=0, refused=False, pauses=False, silent=False, asked=False)
        for call in calls:
            if call.branch.name == record.name:
                branch = _sent(branch, call, edge.now)
        branches.append(branch)
    sent = [AFTER[p] for c in calls if (p := part_of(c.branch.kind, c.operation)) in AFTER and c.branch.intent is None]
    decided = after.decision if edge.step.must_save else edge.ghost.decided
    return Ghost(branches=tuple(branches), decided=decided, phase_two=next(iter(sent), edge.ghost.phase_two))


def crashed(ghost: Ghost, stored: Transaction) -> Ghost:
    """The ghost once the process has died: its calls' answers are lost, and it knows what the record says.

    Failures of a first call that was under way at the decision are of the past, as `follow` has it.
    """
    decided = stored.decision is not Decision.UNDECIDED
    branches = tuple(
        replace(
            g,
            under_way=None,
            failures=0 if decided and b.phase not in PHASES_TWO else b.failures,
            refused=decided and b.phase in PHASES_TWO and b.last_answer is Answer.REFUSED,
            pauses=b.next_attempt_at is not None and (not decided or b.phase in PHASES_TWO),
            safe_until=None if b.phase in (BranchPhase.PENDING, BranchPhase.TRYING) and not decided else g.safe_until,
            result=b.result,
            kept=b.result,
            ended=b.phase in FINAL,
            intent=None if b.intent is None else b.intent.settled,
            turned=_turned_before(b, stored.decision),
            may_withdraw=not b.cannot_withdraw,
        )
        for g, b in zip(ghost.branches, stored.branches, strict=True)
    )
    return replace(ghost, branches=branches)


def _turned_before(branch: Branch, decision: Decision) -> Settled | None:
    """The wish that this branch, as it is stored, was turned to."""
    if branch.intent is None:
        return None
    asked_for = next((settled for settled, phase in PHASE_OF.items() if phase is branch.phase), None)
    return None if asked_for is SETTLES.get(decision) else asked_for


def _answered(
    ghost: BranchGhost, branch: Branch, answer: Answered, transaction: Transaction, now: float, policy: Policy
) -> BranchGhost:
    after = replace(ghost, under_way=None)
    part = part_of(branch.kind, answer.operation)
    decided = transaction.decision is not Decision.UNDECIDED
    if part is Part.WITHDRAW and answer.already:
        return replace(after, failures=0, refused=False, safe_until=math.inf, silent=False, result=answer.result)
    if answer.answer is Answer.SUCCEEDED:
        after = replace(after, failures=0, refused=False)
        match part:
            case Part.FIRST:
                safe_until = _safe_until(ghost, answer, transaction, policy)
                return replace(after, safe_until=safe_until, silent=False, result=answer.result)
            case Part.CONFIRM if branch.kind is Kind.RETRYABLE:
                return replace(after, ended=True, intent=None, result=answer.result)
            case _:
                return replace(after, ended=True, intent=None)
    if part is Part.FIRST and decided:
        return replace(after, failures=0)  # what follows the decision begins for this branch now
    if answer.already and ghost.intent is not None and part in ENDS and ENDS[part] is ghost.intent:
        return replace(after, intent=None, turned=None, failures=0, refused=False, pauses=False, asked=False)
    after = replace(after, refused=answer.answer is Answer.REFUSED and part in AFTER, pauses=True)
    if part is Part.WITHDRAW and answer.no_route and branch.participant is not None:
        after = replace(after, may_withdraw=False)
    if part not in (Part.FIRST, Part.WITHDRAW):
        return after if answer.in_progress else replace(after, failures=ghost.failures + 1)
    assert ghost.first_try_at is not None, "an answer to what was never sent"
    failures = ghost.failures + (not answer.in_progress)
    for_long = now >= ghost.first_try_at + policy.hung_after_s
    silent = failures >= policy.hung_attempts and for_long and not answer.in_progress
    if branch.kind is Kind.PIVOT and answer.in_progress:
        silent = for_long and now >= transaction.deadline  # nothing else would ever end it
    return replace(after, failures=failures, silent=after.silent or silent)


def _safe_until(ghost: BranchGhost, answer: Answered, transaction: Transaction, policy: Policy) -> float:
    """Only a Try holds something that ends by itself."""
    assert ghost.first_try_at is not None, "an answer to what was never sent"
    if answer.operation is not Operation.TRY:
        return math.inf
    ends_at = transaction.deadline + policy.hold_margin_s
    if answer.hold_ttl_s is not None:
        ends_at = min(ends_at, ghost.first_try_at + answer.hold_ttl_s)
    return ends_at - min((ends_at - ghost.first_try_at) / 10, 5.0, policy.hold_margin_s)


def _sent(branch: BranchGhost, call: Call, now: float) -> BranchGhost:
    first_try_at = branch.first_try_at
    if part_of(call.branch.kind, call.operation) is Part.FIRST and first_try_at is None:
        first_try_at = now
    return replace(
        branch, under_way=(call.operation, call.attempt), first_try_at=first_try_at, pauses=False, asked=True
    )
