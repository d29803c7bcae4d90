"""The branches of a transaction as one value, with the facts that the state machine asks for about all of them.

A step changes one or two branches out of up to a thousand, so looking at each of them in every step would cost the
square of their number. `Branches` is the tuple of the branches with a binary tree of facts over it: a leaf says what is
true of one branch, an inner node what is true of any branch below it. Replacing a branch recomputes its path as far up
as anything changes, and those of the branches whose turn comes or goes by it. Facts follow from the branches alone:
they know nothing of the time, the decision or the policy, and hold no transitions.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final, NamedTuple

from app.protocol.kinds import ASKS, KINDS, READY
from app.protocol.values import FINAL, REFUSALS, Branch, BranchPhase, HungReason
from holdfast.wire import Answer, Kind, Operation

NOT_READY: Final = 1  # its part before the decision is not done, or there is a decision
REFUSED: Final = 2  # refused its Try
NOT_FINAL: Final = 4
CALLING: Final = 8
FOLLOWS_DECISION: Final = 16  # in its first phase, with no call in progress: moves on once there is a decision
HUNG: Final = 32
NOT_HUNG: Final = 64  # and not final
MAY_FALL_SILENT: Final = 128  # not final, and silence would give it a reason to be hung, or another one
NEWLY_REFUSED: Final = 256  # not final, and the last answer was a refusal that isn't its reason to be hung yet
_TRIES: Final = 512
_CONFIRMS_OR_CANCELS: Final = 1024

_SECOND_PHASES: Final = frozenset({BranchPhase.CONFIRMING, BranchPhase.CANCELLING})
_SILENCES: Final = frozenset({HungReason.CONFIRM_UNANSWERED, HungReason.CANCEL_UNANSWERED, HungReason.UNAUTHORIZED})


class Facts(NamedTuple):
    """What is true of at least one branch: `traits` as bits, the earliest times, and the most failures.

    `due` is when the next Confirm or Cancel is due, and `try_due` when the next Try is of a branch whose turn it is;
    infinity if none is. `failures` counts failed Confirms or Cancels of a branch that may fall silent.
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
    _followers: Mapping[int, Sequence[int]]
    """Position of a branch → positions of the branches that come after it."""
    _awaited: list[int]
    """How many of the branches that a branch comes after aren't ready: while there are any, it isn't its turn."""
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
        made._followers, made._awaited = _order_of(made, made._positions)
        made._tree[leaves : leaves + len(made)] = map(_facts_of, made, made._awaited)
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
        awaited, touched = self._turns(changes) if self._followers else (self._awaited, changes)
        for position in touched:
            tree[leaves + position] = _facts_of(branches[position], awaited[position])
        if len(touched) * leaves.bit_length() > leaves:
            _compute_inner_nodes(tree)
        else:
            for position in touched:
                _update_path(tree, leaves + position)
        made = Branches(branches)
        made._tree, made._positions, made._followers, made._awaited = tree, self._positions, self._followers, awaited
        made.news = news
        return made

    def _turns(self, changes: Mapping[int, Branch]) -> tuple[list[int], Collection[int]]:
        """What each branch awaits after these changes, and the positions whose facts change by them."""
        awaited, touched = self._awaited.copy(), set(changes)
        for position, branch in changes.items():
            more = _is_ready(self[position]) - _is_ready(branch)
            if more:
                for follower in self._followers.get(position, ()):
                    awaited[follower] += more
                    touched.add(follower)
        return awaited, touched


def _order_of(branches: Sequence[Branch], positions: Mapping[str, int]) -> tuple[Mapping[int, list[int]], list[int]]:
    """Position → positions of the branches that come after it; and how many each branch awaits."""
    followers: dict[int, list[int]] = {}
    awaited = [0] * len(branches)
    for position, branch in enumerate(branches):
        for name in branch.after:
            followers.setdefault(positions[name], []).append(position)
            awaited[position] += not _is_ready(branches[positions[name]])
    return followers, awaited


def _is_ready(branch: Branch) -> bool:
    return branch.phase is READY[branch.kind]


def _known(branch: Branch) -> tuple[object, ...]:
    """What others must know about a branch. A crash may lose the rest: it comes back when the call is repeated."""
    return branch.phase is BranchPhase.PENDING, branch.hung_reason, branch.resolution


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
    if phase not in _SECOND_PHASES:
        traits |= FOLLOWS_DECISION
    if phase in ASKS and ASKS[phase] in KINDS[kind]:
        traits |= _TRIES if ASKS[phase] is Operation.TRY else _CONFIRMS_OR_CANCELS
    return traits


_TRAITS: Final = {(kind, phase): _traits_of(kind, phase) for kind in KINDS for phase in BranchPhase}


def _facts_of(branch: Branch, awaited: int) -> Facts:
    """What is true of a branch; `awaited` is how many of those that it comes after aren't ready."""
    traits = _TRAITS[branch.kind, branch.phase]
    due = try_due = math.inf
    if branch.calling is not None:
        traits = traits & ~FOLLOWS_DECISION | CALLING
    elif traits & (_TRIES | _CONFIRMS_OR_CANCELS):
        at = -math.inf if branch.next_attempt_at is None else branch.next_attempt_at
        if traits & _CONFIRMS_OR_CANCELS:
            due = at
        elif not awaited:
            try_due = at
    hung_reason = branch.hung_reason
    if branch.last_answer is Answer.REFUSED and traits & NOT_FINAL and hung_reason not in REFUSALS:
        traits |= NEWLY_REFUSED
    if hung_reason is not None:
        traits = traits & ~NOT_HUNG | HUNG
        if hung_reason in REFUSALS or hung_reason in _SILENCES:
            traits &= ~MAY_FALL_SILENT
    fails = traits & MAY_FALL_SILENT and traits & _CONFIRMS_OR_CANCELS
    hold_until = math.inf if branch.hold_until is None else branch.hold_until
    return Facts(traits, due, try_due, hold_until, branch.failures if fails else 0)
