"""The words of every fence: states of a row, events on a branch, and what a table may say to do about them.

Each kind of branch has a table of its own: table.py (TCC), compensable.py, pivot.py, retryable.py and check.py;
stray.py has the one for calls of another kind. A module with a table owns its transitions; no other module may choose a
state. No I/O, no clock, no database.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from holdfast.wire import Kind, Operation


class State(StrEnum):
    """Where a branch stands at this participant. The comments say who moves it on after a crash.

    The words are those of the coordinator's branch phases: a saga step that took effect is `held` until the transaction
    ends, and one that was compensated is `cancelled`.
    """

    NOTHING = "nothing"  # there is no row
    TRYING = "trying"  # two-step: the try or action may have run; the coordinator's retry, or a hold's reaper
    HELD = "held"  # the coordinator, or the reaper once a hold has expired
    CONFIRMING = "confirming"  # two-step: what is carried out after the decision may have run; the coordinator's retry
    CONFIRMED = "confirmed"  # final
    CANCELLING = "cancelling"  # two-step: the undoing may have run; the coordinator's retry, or a hold's reaper
    CANCELLED = "cancelled"  # final: undone, or undone before it was done
    EXPIRING = "expiring"  # two-step: being released past the hard limit; the reaper
    EXPIRED = "expired"  # released without a decision; final unless a confirm may re-acquire
    REACQUIRING = "reacquiring"  # two-step: a late confirm runs try and confirm; the coordinator's retry
    REFUSED = "refused"  # a pivot that was refused; final


class Event(StrEnum):
    """Events on a branch: calls of the coordinator, and findings of the background task."""

    TRY = "try"
    CONFIRM = "confirm"
    CANCEL = "cancel"
    DUE = "due"  # the row's next look is due
    TOLD_CONFIRM = "told_confirm"  # asked, and the decision is confirm
    TOLD_CANCEL = "told_cancel"  # asked, and the decision is cancel, or the transaction is unknown
    ABANDONED = "abandoned"  # past the hard limit without a confirm
    ACTION = "action"
    COMPENSATION = "compensation"
    TOLD_FINISHED = "told_finished"  # asked, and the transaction is finished or unknown: nobody will call again
    STRAY = "stray"  # a call that another kind of branch gets, and that undoes nothing
    STRAY_PIVOT = "stray_pivot"  # likewise, and its refusal decides the transaction
    STRAY_UNDO = "stray_undo"  # a cancel or compensation of another kind


class Refusal(StrEnum):
    """Why a call is refused; the slug of the problem document."""

    NOTHING_HELD = "nothing-held"
    ALREADY_CANCELLED = "already-cancelled"
    ALREADY_COMPENSATED = "already-compensated"
    ALREADY_CONFIRMED = "already-confirmed"
    ALREADY_DONE = "already-done"
    HOLD_EXPIRED = "hold-expired"
    PAYLOAD_MISMATCH = "payload-mismatch"
    FORGOTTEN = "forgotten"
    WRONG_KIND = "wrong-kind"


@dataclass(frozen=True, slots=True)
class Run:
    """Run the handlers of `operations` and commit the state `then` together with what they wrote.

    In the two-step form the state is durably `via` before they run; otherwise `via` is never visible. `refused`: the
    state that records a handler's refusal, if that must be durable before anything follows from it.
    """

    operations: tuple[Operation, ...]
    via: State
    then: State
    refused: State | None = None


@dataclass(frozen=True, slots=True)
class Settle:
    """Finish what was begun, and then look at the row again: the call can't be answered before."""

    run: Run


@dataclass(frozen=True, slots=True)
class Consult:
    """Run the handler of `operation` and keep nothing of it: no row, no changes."""

    operation: Operation


@dataclass(frozen=True, slots=True)
class Mark:
    """Write `state` without running a handler, so that what comes late has no effect; then refuse, if so told."""

    state: State
    refusal: Refusal | None = None


@dataclass(frozen=True, slots=True)
class Repeat:
    """It is already done: return the stored answer."""


@dataclass(frozen=True, slots=True)
class Recall:
    """It was refused: return the stored refusal."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """Refuse the call. `is_final`: False where a 4xx would decide what isn't decided, so that a 5xx is the answer."""

    refusal: Refusal
    is_final: bool = True


@dataclass(frozen=True, slots=True)
class Wait:
    """A handler of this branch may still be running: try again after `after_s` seconds."""

    after_s: float


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask the coordinator what was decided."""


@dataclass(frozen=True, slots=True)
class Forget:
    """Remove the row."""


@dataclass(frozen=True, slots=True)
class Rest:
    """Nothing to do, and no further look needed."""


Step = Run | Settle | Consult | Mark | Repeat | Recall | Refuse | Wait | Ask | Forget | Rest
Table = Mapping[tuple[State, Event], Step]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What is known of a branch when an event occurs.

    `payload_differs`: the call's payload differs from that of the first call; the background task has none.
    `busy_s`: the remaining lease of the run in progress, in seconds; 0 if there is none.
    `was_held`: the coordinator saw the first call succeed, so there must have been a row.
    `is_doubtful`: a run lost its lease, and may have had an effect outside since.
    """

    state: State
    payload_differs: bool = False
    busy_s: float = 0.0
    was_held: bool = False
    is_doubtful: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """What the calls of one kind mean. `decide` says what to do about an event on a branch of which so much is known.

    `operations`: what a branch of this kind is asked for, the call with the payload first. `decisive`: those of which a
    4xx decides the transaction, so that only a refusal that is recorded may be one.
    """

    kind: Kind
    operations: tuple[Operation, ...]
    decide: Callable[[Seen, Event], Step]
    decisive: frozenset[Operation] = frozenset()

    @property
    def first(self) -> Operation:
        """The operation whose payload and result are kept."""
        return self.operations[0]


def table(events: tuple[Event, ...], lines: Mapping[State, tuple[Step, ...]]) -> Table:
    """A whole table from its lines, which have a step for each of `events`."""
    return MappingProxyType(
        {(state, event): step for state, line in lines.items() for event, step in zip(events, line, strict=True)}
    )


def unless_hindered(step: Step, seen: Seen) -> Step:
    """`step`, or what any table says instead.

    The same identity with another payload is refused. While another run has its lease, a call waits if a handler would
    run or the row would go, or if the first call may still succeed. Undoing what the coordinator saw done, but has no
    row, is refused, because its effects may still stand.
    """
    if seen.was_held and seen.state is State.NOTHING and isinstance(step, Mark):
        return Refuse(Refusal.FORGOTTEN)
    if seen.payload_differs:
        return Refuse(Refusal.PAYLOAD_MISMATCH)
    if seen.busy_s > 0 and (isinstance(step, Run | Settle | Forget) or seen.state is State.TRYING):
        return Wait(seen.busy_s)
    return step


RUNNING: Final = frozenset({State.TRYING, State.CONFIRMING, State.CANCELLING, State.EXPIRING, State.REACQUIRING})
"""The marks of the two-step form: a handler may be running, or may have run."""

FINISHED: Final = frozenset({State.CONFIRMED, State.CANCELLED, State.EXPIRED})
"""Of a hold: rows that retention may remove."""
