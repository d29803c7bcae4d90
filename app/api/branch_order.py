"""What the order and the kinds of a request's branches must be like (docs/reference/patterns.md, sections 1 to 3).

Looks at the request only, and says which branch is wrong and what to do. Nothing has been recorded yet.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final, NamedTuple, Protocol

from app.protocol.kinds import KINDS, OPERATIONS
from holdfast.wire import Kind, Operation


class Ordered(Protocol):
    """A branch of a request."""

    @property
    def branch_name(self) -> str:
        """Its name in the transaction."""

    @property
    def kind(self) -> Kind:
        """What kind of branch it is."""

    @property
    def after(self) -> Sequence[str]:
        """The names of those that it comes after."""


class Fault(NamedTuple):
    """A branch, what is wrong with it, and what to do."""

    branch: str
    message: str


_LATE: Final = frozenset({Kind.PIVOT, Kind.RETRYABLE})
"""What a branch that comes before the decision can't wait for."""


def order_fault(branches: Sequence[Ordered], *, sequential: bool) -> Fault | None:
    """What is wrong with the order; None if nothing is."""
    pivots = [branch for branch in branches if branch.kind is Kind.PIVOT]
    if len(pivots) > 1:
        why = f"a transaction has one pivot at most, and {pivots[0].branch_name} is one already"
        return Fault(pivots[1].branch_name, f"{why}; make this branch retryable, so that it follows the decision")
    if sequential:
        return _sequential_fault(branches)
    by_name = {branch.branch_name: branch for branch in branches}
    for branch in branches:
        if fault := _after_fault(branch, by_name):
            return Fault(branch.branch_name, fault)
    return _cycle(by_name)


def endpoints_fault(kind: Kind, given: Mapping[Operation, str]) -> str | None:
    """Why these can't be the endpoints of a branch of this kind."""
    wanted = OPERATIONS[kind]
    optional = KINDS[kind].withdraw
    missing = [operation for operation in wanted if operation not in given and operation is not optional]
    unknown = [operation for operation in given if operation not in wanted]
    if not missing and not unknown:
        return None
    has = ", ".join(f"{each} (optional)" if each is optional else each for each in wanted)
    wrong = [f"{each} is missing" for each in missing] + [f"{each} isn't one of them" for each in unknown]
    return f"the endpoints of a branch of kind {kind} are: {has}; {', '.join(wrong)}"


def _sequential_fault(branches: Sequence[Ordered]) -> Fault | None:
    for branch in branches:
        if branch.after:
            return Fault(branch.branch_name, "after can't be combined with try_order sequential; give one of the two")
    for earlier, later in pairwise(branches):
        if _rank(later) < _rank(earlier):
            why = f"{later.branch_name} ({later.kind}) comes before the decision, and {earlier.branch_name}"
            waits = "follows it" if earlier.kind is Kind.RETRYABLE else "makes it"
            return Fault(later.branch_name, f"{why} ({earlier.kind}) {waits}; list {later.branch_name} first")
    return None


def _rank(branch: Ordered) -> int:
    return {Kind.PIVOT: 1, Kind.RETRYABLE: 2}.get(branch.kind, 0)


def _after_fault(branch: Ordered, by_name: Mapping[str, Ordered]) -> str | None:
    if len(set(branch.after)) < len(branch.after):
        return "after names a branch twice; name each once"
    for name in branch.after:
        predecessor = by_name.get(name)
        if predecessor is None:
            return f"after names {name}, which isn't a branch of this transaction; use one of the branches' names"
        if branch.kind is not Kind.RETRYABLE and predecessor.kind in _LATE:
            why = f"it comes before the decision, and {name} ({predecessor.kind}) doesn't"
            return f"it can't come after {name}: {why}; make this branch retryable, or leave {name} out"
    return None


def _cycle(by_name: Mapping[str, Ordered]) -> Fault | None:
    """A branch that waits for itself, also by way of others."""
    waits = {name: len(branch.after) for name, branch in by_name.items()}
    followers: dict[str, list[str]] = {}
    for name, branch in by_name.items():
        for predecessor in branch.after:
            followers.setdefault(predecessor, []).append(name)
    free = [name for name, many in waits.items() if not many]
    for name in free:  # grows while it is read
        for follower in followers.get(name, ()):
            waits[follower] -= 1
            if not waits[follower]:
                free.append(follower)
    caught = [name for name, many in waits.items() if many]
    if not caught:
        return None
    circle = [caught[0]]
    while (ahead := next(name for name in by_name[circle[-1]].after if waits[name])) not in circle:
        circle.append(ahead)
    around = [*circle[circle.index(ahead) :], ahead]
    return Fault(ahead, f"it waits for itself: {' after '.join(around)}; take one of these out of after")
