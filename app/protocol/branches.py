"""The branches of a transaction as one value, with the facts that the state machine asks for about all of them.

A step changes one or two branches out of up to a thousand, so looking at each of them in every step would cost the
square of their number. `Branches` is the tuple of the branches with a binary tree of facts over it: a leaf says what is
true of one branch, an inner node what is true of any branch below it. Replacing a branch recomputes its path as far up
as anything changes, and those of the branches whose turn comes or goes by it. Facts follow from the branches alone:
they know nothing of the time, the decision or the policy, and hold no transitions.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from app.protocol.kinds import ASKS, KINDS, READY
from app.protocol.replacing import replace
from app.protocol.values import FINAL, REFUSALS, Branch, BranchPhase, HungReason, Transaction
from holdfast.wire import Answer, Kind

NOT_READY: Final = 1  # its part before the decision is not done, or there is a decision
REFUSED: Final = 2  # refused its Try or action
NOT_FINAL: Final = 4  # or its last call is still in progress
CALLING: Final = 8
FOLLOWS_DECISION: Final = 16  # in its first phase, with no call in progress: moves on once there is a decision
HUNG: Final = 32
NOT_HUNG: Final = 64  # and not final, and not in a phase in which it has to wait for others
MAY_FALL_SILENT: Final = 128  # as NOT_HUNG, or silence would give it another reason to be hung
NEWLY_REFUSED: Final = 256  # not final, and the last answer was a refusal that isn't its reason to be hung yet
INTENDED: Final = 512  # a person wants it to be resolved by a call
_FIRST: Final = 1024
_AFTER_THE_DECISION: Final = 2048

SECOND_PHASES: Final = frozenset({BranchPhase.CONFIRMING, BranchPhase.CANCELLING})
_SILENCES: Final = frozenset(
    {
        HungReason.CONFIRM_UNANSWERED,
        HungReason.CANCEL_UNANSWERED,
        HungReason.ACTION_UNANSWERED,
        HungReason.COMPENSATION_UNANSWERED,
        HungReason.SEND_UNANSWERED,
        HungReason.UNAUTHORIZED,
    }
)


class Facts(NamedTuple):
    """What is true of at least one branch: `traits` as bits, the earliest times, and the most failures.

    `due` is when the next call after the decision is due, and `try_due` when the next one before it is, of branches
    whose turn it is; infinity if none is. `failures` counts failed calls of a branch that may fall silent.
    """

    traits: int = 0
    due: float = math.inf
    try_due: float = math.inf
    hold_until: float = math.inf
    failures: int = 0


NOTHING: Final = Facts()


class Branches(tuple[Branch, ...]):
    """A tuple of branches with the facts about them. Immutable."""

    _tree: list[Facts]
    """The root is at 1, the children of node n are at 2n and 2n + 1, and the second half are the leaves, in order."""
    _positions: dict[str, int]
    _order: "_Order"
    _awaited: list[int]
    """How many branches each one still waits for before its first call: while there are any, it isn't its turn."""
    _undo_awaited: list[int]
    """How many branches each one still waits for before it is undone."""
    pivot: int | None
    """The position of the pivot, if there is one."""
    news: int
    """How many replacements others must know about, since the facts were computed from scratch."""

    @staticmethod
    def of(branches: tuple[Branch, ...]) -> "Branches":
        """The same branches with their facts, which are computed if they aren't known."""
        if isinstance(branches, Branches):
            return branches
        made = Branches(branches)
        leaves = 1 << max(0, len(made) - 1).bit_length()
        made._tree = [NOTHING] * (2 * leaves)
        made._positions = {branch.name: position for position, branch in reversed(list(enumerate(made)))}
        made._order = _order_of(made, made._positions)
        made._awaited, made._undo_awaited = _turns_of(made, made._order)
        made._tree[leaves : leaves + len(made)] = map(_facts_of, made, made._awaited, made._undo_awaited)
        made.pivot = next((i for i, branch in enumerate(made) if branch.kind is Kind.PIVOT), None)
        made.news = 0
        _compute_inner_nodes(made._tree)
        return made

    @property
    def facts(self) -> Facts:
        """What is true of any of the branches."""
        return self._tree[1]

    def position(self, name: str) -> int | None:
        """Where the branch of this name is."""
        return self._positions.get(name)

    def is_turn(self, position: int) -> bool:
        """Whether all that this branch waits for before its first call has done its part."""
        return not self._awaited[position]

    def given_results_of(self, position: int) -> list[int]:
        """The positions of the branches whose calls carry the result of this one."""
        name = self[position].name
        return [follower for follower in self._order.followers.get(position, ()) if name in self[follower].after]

    def first(self, trait: int) -> int | None:
        """The position of the first branch with this trait."""
        tree, leaves, node = self._tree, len(self._tree) // 2, 1
        if not tree[node].traits & trait:
            return None
        while node < leaves:
            node *= 2
            if not tree[node].traits & trait:
                node += 1
        return node - leaves

    def where(self, wanted: Callable[[Facts], object]) -> list[int]:
        """The positions of the branches for which `wanted` is true, in order.

        `wanted` must be true of several branches together if it is true of one of them.
        """
        tree, leaves = self._tree, len(self._tree) // 2
        found: list[int] = []
        ahead = [1]
        while ahead:
            node = ahead.pop()
            if wanted(tree[node]):
                if node >= leaves:
                    found.append(node - leaves)
                else:
                    ahead += (2 * node + 1, 2 * node)
        return found

    def replaced(self, changes: Mapping[int, Branch]) -> "Branches":
        """These branches with others at the given positions."""
        branches, tree, news = list(self), self._tree.copy(), self.news
        leaves = len(tree) // 2
        for position, branch in changes.items():
            news += _known(branches[position]) != _known(branch)
            branches[position] = branch
        awaited, undo_awaited = self._awaited, self._undo_awaited
        touched: Collection[int] = changes
        if self._order is not _NO_ORDER:
            awaited, undo_awaited, touched = self._turns(branches, changes)
        for position in touched:
            tree[leaves + position] = _facts_of(branches[position], awaited[position], undo_awaited[position])
        if len(touched) * leaves.bit_length() > leaves:
            _compute_inner_nodes(tree)
        else:
            for position in touched:
                _update_path(tree, leaves + position)
        made = Branches(branches)
        made._tree, made._positions, made._order, made.pivot = tree, self._positions, self._order, self.pivot
        made._awaited, made._undo_awaited = awaited, undo_awaited
        made.news = news
        return made

    def _turns(
        self, branches: Sequence[Branch], changes: Mapping[int, Branch]
    ) -> tuple[list[int], list[int], Collection[int]]:
        """What each branch awaits once these changes have made `branches`, and the positions whose facts change."""
        awaited, undo_awaited, touched = self._awaited.copy(), self._undo_awaited.copy(), set(changes)
        for position, branch in changes.items():
            before = self[position]
            for follower in self._order.followers.get(position, ()):
                more = _is_waited_for(branch, self[follower]) - _is_waited_for(before, self[follower])
                awaited[follower] += more
                if more:
                    touched.add(follower)
        was_over = {position: self._is_over(self, self._undo_awaited, position) for position in changes}
        ahead = list(changes)
        while ahead:  # what is over by this may make others over, too
            position = ahead.pop()
            is_over = self._is_over(branches, undo_awaited, position)
            if is_over == was_over[position]:
                continue
            for waiter in self._order.undone_after.get(position, ()):
                was_over.setdefault(waiter, self._is_over(branches, undo_awaited, waiter))
                undo_awaited[waiter] += was_over[position] - is_over
                touched.add(waiter)
                ahead.append(waiter)
            was_over[position] = is_over
        return awaited, undo_awaited, touched

    @staticmethod
    def _is_over(branches: Sequence[Branch], undo_awaited: Sequence[int], position: int) -> bool:
        return branches[position].final and not undo_awaited[position]


class _Order(NamedTuple):
    """Who waits for whom, by position: branch → those that come after it; branch → those that are undone after it."""

    followers: Mapping[int, Sequence[int]]
    undone_after: Mapping[int, Sequence[int]]


_NO_ORDER: Final = _Order({}, {})


def _order_of(branches: Sequence[Branch], positions: Mapping[str, int]) -> _Order:
    followers: dict[int, list[int]] = {}
    undone_after: dict[int, list[int]] = {}
    for position, branch in enumerate(branches):
        for name in branch.waits_for:
            followers.setdefault(positions[name], []).append(position)
        for name in branch.undone_after:
            undone_after.setdefault(positions[name], []).append(position)
    return _Order(followers, undone_after) if followers else _NO_ORDER


def _turns_of(branches: Sequence[Branch], order: _Order) -> tuple[list[int], list[int]]:
    """How many branches each one awaits before its first call, and to be undone."""
    awaited, undo_awaited = [0] * len(branches), [0] * len(branches)
    for position, followers in order.followers.items():
        for follower in followers:
            awaited[follower] += _is_waited_for(branches[position], branches[follower])
    for position in _last_first(branches, order):
        if not Branches._is_over(branches, undo_awaited, position):
            for waiter in order.undone_after.get(position, ()):
                undo_awaited[waiter] += 1
    return awaited, undo_awaited


def _last_first(branches: Sequence[Branch], order: _Order) -> list[int]:
    """All positions, each before those that are undone after it."""
    ahead_of = [len(branch.undone_after) for branch in branches]
    found = [position for position, ahead in enumerate(ahead_of) if not ahead]
    for position in found:  # grows while it is read
        for waiter in order.undone_after.get(position, ()):
            ahead_of[waiter] -= 1
            if not ahead_of[waiter]:
                found.append(waiter)
    return found


def _is_waited_for(branch: Branch, follower: Branch) -> bool:
    """Whether this branch keeps a follower from its first call.

    One that comes after the decision waits for what ends after it; all others have done their part by then.
    """
    if follower.kind is Kind.RETRYABLE:
        return branch.kind is Kind.RETRYABLE and not branch.final
    return branch.phase is not READY[branch.kind]


def _known(branch: Branch) -> tuple[object, ...]:
    """What others must know about a branch. A crash may lose the rest: it comes back when the call is repeated."""
    is_pending = branch.phase is BranchPhase.PENDING
    return is_pending, branch.hung_reason, branch.resolution, branch.intent, branch.contradicted


def _compute_inner_nodes(tree: list[Facts]) -> None:
    for node in range(len(tree) // 2 - 1, 0, -1):
        tree[node] = _either(tree[2 * node], tree[2 * node + 1])


def _update_path(tree: list[Facts], leaf: int) -> None:
    """Recompute the nodes above this leaf, as far up as anything changes."""
    node = leaf // 2
    while node:
        facts = _either(tree[2 * node], tree[2 * node + 1])
        if facts == tree[node]:
            return
        tree[node] = facts
        node //= 2


def _either(one: Facts, other: Facts) -> Facts:
    """What is true of one or the other."""
    traits, due, try_due, hold_until, failures = one
    other_traits, other_due, other_try_due, other_hold_until, other_failures = other
    either = (
        traits | other_traits,
        due if due < other_due else other_due,
        try_due if try_due < other_try_due else other_try_due,
        hold_until if hold_until < other_hold_until else other_hold_until,
        failures if failures > other_failures else other_failures,
    )
    return tuple.__new__(Facts, either)  # what Facts(…) does, without the detour through a function in Python


def _traits_of(kind: Kind, phase: BranchPhase) -> int:
    """The traits of a branch of this kind and phase that has no call in progress and isn't hung."""
    traits = 0 if phase is READY[kind] else NOT_READY
    if phase in FINAL:
        return traits
    traits |= NOT_FINAL | NOT_HUNG | MAY_FALL_SILENT
    if phase is BranchPhase.REFUSED:
        traits |= REFUSED
    if phase not in SECOND_PHASES:
        traits |= FOLLOWS_DECISION
    if (kind, phase) in ASKS:
        traits |= _AFTER_THE_DECISION if phase in SECOND_PHASES else _FIRST
    return traits


_TRAITS: Final = {(kind, phase): _traits_of(kind, phase) for kind in KINDS for phase in BranchPhase}


def has_its_turn(branch: Branch) -> bool:
    """Whether this branch, in its present phase after the decision, was or is to wait for others."""
    if branch.phase is BranchPhase.CONFIRMING:
        return bool(branch.waits_for) and branch.kind is Kind.RETRYABLE
    return bool(branch.undone_after) and branch.phase is BranchPhase.CANCELLING


def _facts_of(branch: Branch, awaited: int, undo_awaited: int) -> Facts:
    """What is true of a branch that waits for this many others before its first call, and before it is undone."""
    traits = _TRAITS[branch.kind, branch.phase]
    due = try_due = math.inf
    takes_turns = (branch.waits_for or branch.undone_after) and has_its_turn(branch)
    if takes_turns:
        traits &= ~(NOT_HUNG | MAY_FALL_SILENT)
    if branch.calling is not None:
        traits = traits & ~FOLLOWS_DECISION | CALLING | NOT_FINAL
    elif traits & (_FIRST | _AFTER_THE_DECISION):
        at = -math.inf if branch.next_attempt_at is None else branch.next_attempt_at
        if traits & _FIRST:
            try_due = math.inf if awaited else at
        elif not takes_turns or not (awaited if branch.phase is BranchPhase.CONFIRMING else undo_awaited):
            due = at
    hung_reason = branch.hung_reason
    if branch.intent is not None:
        traits |= INTENDED
    if branch.last_answer is Answer.REFUSED and branch.phase not in FINAL and hung_reason not in REFUSALS:
        traits |= NEWLY_REFUSED
    if hung_reason is not None:
        traits = traits & ~NOT_HUNG | HUNG
        if hung_reason in REFUSALS or hung_reason in _SILENCES:
            traits &= ~MAY_FALL_SILENT
    fails = traits & MAY_FALL_SILENT and traits & _AFTER_THE_DECISION
    hold_until = math.inf if branch.hold_until is None else branch.hold_until
    return Facts(traits, due, try_due, hold_until, branch.failures if fails else 0)


def changed(transaction: Transaction, positions: Iterable[int], change: Callable[[Branch], Branch]) -> Transaction:
    """The transaction with the branches at these positions changed."""
    branches = Branches.of(transaction.branches)
    changes = {i: branch for i in positions if (branch := change(branches[i])) is not branches[i]}
    return replace(transaction, branches=branches.replaced(changes)) if changes else transaction
