"""What the model is searched for: configurations that must hold, mistakes to be found, ends to be reached.

Only a list; spin.py runs it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement, product
from typing import Final

from app.protocol.kinds import KINDS
from holdfast.wire import Kind
from tests.model import tables


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """One search of all states of the model as `defines` make it.

    `must_fail`: a safeguard is missing, or a claim is false on purpose, so that a violation must be found. `endless`:
    look for runs that never end, too.
    """

    name: str
    defines: tuple[str, ...] = ()
    must_fail: bool = False
    endless: bool = False


SEARCHED: Final = tuple(kind for kind, operations in KINDS.items() if operations.withdraw is None)
"""The kinds of the model's branches. In the model no branch decides, so pivots are left to the enumeration."""

_ALL: Final = tuple(product(SEARCHED, SEARCHED))
_ALIKE: Final = tuple(combinations_with_replacement(SEARCHED, 2))
"""Pairs where the model does the same with both branches, so that their order doesn't matter."""
_HOLDS: Final = ((Kind.TCC, Kind.TCC),)
"""Nothing but a hold has a limit of its own."""
_IN_TURN: Final = tuple(pair for pair in _ALL if all(KINDS[kind].first for kind in pair))
"""What is called after the decision only has no turn before it."""


def _of_kinds(search: Search, one: Kind, other: Kind) -> Search:
    """This search, with branches of these kinds."""
    return replace(
        search,
        name=f"{search.name}, {one} + {other}",
        defines=(*search.defines, f"KIND_0={tables.name(one)}", f"KIND_1={tables.name(other)}"),
    )


def _of_each(pairs: Iterable[tuple[Kind, Kind]], search: Search) -> list[Search]:
    return [_of_kinds(search, one, other) for one, other in pairs]


CONFIGURATIONS: Final = (
    *_of_each(_ALIKE, Search(name="parallel")),
    *_of_each(_IN_TURN, Search(name="sequential", defines=("SEQUENTIAL",))),
    *_of_each(_HOLDS, Search(name="deadline", defines=("DEADLINE",))),
    *_of_each(_HOLDS, Search(name="hard limit", defines=("HARD_LIMIT",))),
    *_of_each(_HOLDS, Search(name="re-acquire", defines=("REACQUIRE",))),
    *_of_each(_ALL, Search(name="liveness", defines=("LIVENESS",), endless=True)),
)


def _mistake(name: str, *defines: str, endless: bool = False) -> Search:
    return Search(name=name, defines=(f"MISTAKE_{name}", *defines), must_fail=True, endless=endless)


MISTAKES: Final = (
    _mistake("TRY_BEFORE_RECORD", "EFFECTS"),
    _mistake("PENDING_NOT_SAVED", "EFFECTS", "SEQUENTIAL"),
    _mistake("CALLS_BEFORE_SAVE", "EFFECTS"),
    _mistake("NO_VERSION_CHECK", "EFFECTS"),
    _mistake("FORGETS_DECISION", "EFFECTS"),
    _mistake("DECIDES_EARLY"),
    _mistake("SAVES_LATE", "DEADLINE"),
    _mistake("CONFIRM_GIVEN_UP", "EFFECTS"),
    _mistake("NO_CANCEL_OF_UNANSWERED", "EFFECTS"),
    _mistake("LATE_ANSWERS", "EFFECTS"),
    _mistake("REFUSED_IS_DONE", "EFFECTS", "HARD_LIMIT"),
    _mistake("NO_TOMBSTONE", "EFFECTS"),
    _mistake("NO_FENCE", "EFFECTS"),
    _mistake("RELEASES_WITHOUT_ASKING", "EFFECTS"),
    _mistake("UNDECIDED_IS_CANCEL", "EFFECTS"),
    _mistake("UNKNOWN_IS_CONFIRM", "EFFECTS", "LIVENESS", "MISTAKE_TRY_BEFORE_RECORD"),
    _mistake("NO_RECOVERY", "EFFECTS", "LIVENESS"),
    _mistake("NO_REPETITION", "EFFECTS", "LIVENESS"),
    _mistake("NO_LEASE", "EFFECTS", "LIVENESS", endless=True),
    _of_kinds(_mistake("CALLS_BEFORE_SAVE", "EFFECTS"), Kind.COMPENSABLE, Kind.RETRYABLE),
    _of_kinds(_mistake("FORGETS_DECISION", "EFFECTS"), Kind.COMPENSABLE, Kind.RETRYABLE),
    _of_kinds(_mistake("NO_CANCEL_OF_UNANSWERED", "EFFECTS"), Kind.COMPENSABLE, Kind.RETRYABLE),
    _of_kinds(_mistake("NO_TOMBSTONE", "EFFECTS"), Kind.COMPENSABLE, Kind.CHECK),
)
"""EFFECTS: found by what participants did, not by the rule that was broken; DECIDES_EARLY and SAVES_LATE by theirs."""

_CLAIMS: Final = tuple(
    Search(name=name, defines=(f"REACH={number}",), must_fail=True)
    for number, name in enumerate(
        ("ENDS_CONFIRMED", "ENDS_CANCELLED", "REFUSES_LATE_TRY", "RELEASED_WHEN_TOLD", "SAVES_IN_VAIN"), start=1
    )
)
REACHED: Final = (
    *_CLAIMS,
    *(_of_kinds(claim, Kind.COMPENSABLE, Kind.RETRYABLE) for claim in _CLAIMS if claim.name != "RELEASED_WHEN_TOLD"),
    *(_of_kinds(claim, Kind.CHECK, Kind.RETRYABLE) for claim in _CLAIMS if claim.name.startswith("ENDS")),
)
"""That these never happen is claimed and must be refuted: a model in which nothing happens is always right."""
