"""The fence: what each call means for a branch, given the state of its row. One pure function and one table.

Implements docs/reference/protocol.md, section 5, extended by the marks of the two-step form and by what happens when a
hold expires. Owns every transition of a row; no other module may choose a state. No I/O, no clock, no database:
`decide` takes what is known and returns what to do, and the caller does it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from holdfast.wire import Operation


class State(StrEnum):
    """Where a branch stands at this participant. The comments say who moves it on after a crash."""

    NOTHING = "nothing"  # there is no row
    TRYING = "trying"  # two-step: the try handler may have run; the coordinator's retry, or the reaper
    HELD = "held"  # the coordinator, or the reaper once the hold has expired
    CONFIRMING = "confirming"  # two-step: the confirm handler may have run; the coordinator's retry
    CONFIRMED = "confirmed"  # final
    CANCELLING = "cancelling"  # two-step: the cancel handler may have run; the coordinator's retry, or the reaper
    CANCELLED = "cancelled"  # final
    EXPIRING = "expiring"  # two-step: being released past the hard limit; the reaper
    EXPIRED = "expired"  # released without a decision; final unless a confirm may re-acquire
    REACQUIRING = "reacquiring"  # two-step: a late confirm runs try and confirm; the coordinator's retry


class Event(StrEnum):
    """Events on a branch: three calls of the coordinator, and four findings of the reaper."""

    TRY = "try"
    CONFIRM = "confirm"
    CANCEL = "cancel"
    DUE = "due"  # the row's next look is due
    TOLD_CONFIRM = "told_confirm"  # asked, and the decision is confirm
    TOLD_CANCEL = "told_cancel"  # asked, and the decision is cancel, or the transaction is unknown
    ABANDONED = "abandoned"  # past the hard limit without a confirm


class Refusal(StrEnum):
    """Why a call is refused; the slug of the problem document."""

    NOTHING_HELD = "nothing-held"
    ALREADY_CANCELLED = "already-cancelled"
    ALREADY_CONFIRMED = "already-confirmed"
    HOLD_EXPIRED = "hold-expired"
    PAYLOAD_MISMATCH = "payload-mismatch"
    FORGOTTEN = "forgotten"


@dataclass(frozen=True, slots=True)
class Run:
    """Run the handlers of `operations` and commit the state `then` together with what they wrote.

    In the two-step form the state is durably `via` before they run; otherwise `via` is never visible.
    """

    operations: tuple[Operation, ...]
    via: State
    then: State


@dataclass(frozen=True, slots=True)
class Mark:
    """Write `state` without running a handler: the empty rollback."""

    state: State


@dataclass(frozen=True, slots=True)
class Repeat:
    """It is already done: return the stored answer."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """Refuse the call."""

    refusal: Refusal


@dataclass(frozen=True, slots=True)
class Wait:
    """A handler of this branch may still be running: try again after `after_s` seconds."""

    after_s: float


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask the coordinator what was decided."""


@dataclass(frozen=True, slots=True)
class Rest:
    """Nothing to do, and no further look needed."""


Step = Run | Mark | Repeat | Refuse | Wait | Ask | Rest


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What is known of a branch when an event occurs.

    `payload_differs`: the call's payload differs from that of the earlier Try; the reaper has none.
    `busy_s`: the remaining lease of the run in progress, in seconds; 0 if there is none.
    `was_held`: the coordinator saw the Try succeed, so there must have been a row.
    """

    state: State
    payload_differs: bool = False
    busy_s: float = 0.0
    was_held: bool = False


_TRY: Final = Run((Operation.TRY,), State.TRYING, State.HELD)
_CONFIRM: Final = Run((Operation.CONFIRM,), State.CONFIRMING, State.CONFIRMED)
_CANCEL: Final = Run((Operation.CANCEL,), State.CANCELLING, State.CANCELLED)
_EXPIRE: Final = Run((Operation.CANCEL,), State.EXPIRING, State.EXPIRED)
_REACQUIRE: Final = Run((Operation.TRY, Operation.CONFIRM), State.REACQUIRING, State.CONFIRMED)

_Line = tuple[Step, Step, Step, Step, Step, Step, Step]
_NOT_HELD, _CANCELLED, _CONFIRMED, _EXPIRED = (
    Refuse(Refusal.NOTHING_HELD),
    Refuse(Refusal.ALREADY_CANCELLED),
    Refuse(Refusal.ALREADY_CONFIRMED),
    Refuse(Refusal.HOLD_EXPIRED),
)
_REPEAT, _ASK, _REST, _WAIT = Repeat(), Ask(), Rest(), Wait(1.0)
_SWEEP_CANCELLED: Final = Run((Operation.CANCEL,), State.CANCELLED, State.CANCELLED)
_SWEEP_EXPIRED: Final = Run((Operation.CANCEL,), State.EXPIRED, State.EXPIRED)

# fmt: off
_LINES: Final[Mapping[State, _Line]] = {
    #                   try         confirm     cancel              due               told_confirm told_cancel abandoned
    State.NOTHING:     (_TRY,       _NOT_HELD,  Mark(State.CANCELLED), _REST,            _REST,    _REST,      _REST),
    State.TRYING:      (_TRY,       _NOT_HELD,  _CANCEL,               _ASK,             _REST,    _CANCEL,    _EXPIRE),
    State.HELD:        (_REPEAT,    _CONFIRM,   _CANCEL,               _ASK,             _REST,    _CANCEL,    _EXPIRE),
    State.CONFIRMING:  (_REPEAT,    _CONFIRM,   _CONFIRMED,            _REST,            _REST,    _REST,      _REST),
    State.CONFIRMED:   (_REPEAT,    _REPEAT,    _CONFIRMED,            _REST,            _REST,    _REST,      _REST),
    State.CANCELLING:  (_CANCELLED, _CANCELLED, _CANCEL,               _CANCEL,          _REST,    _CANCEL,    _REST),
    State.CANCELLED:   (_CANCELLED, _CANCELLED, _REPEAT,               _SWEEP_CANCELLED, _REST,    _REST,      _REST),
    State.EXPIRING:    (_EXPIRED,   _WAIT,      _CANCEL,               _EXPIRE,          _REST,    _CANCEL,    _EXPIRE),
    State.EXPIRED:     (_EXPIRED,   _EXPIRED,   _REPEAT,               _SWEEP_EXPIRED,   _REST,    _REST,      _REST),
    State.REACQUIRING: (_REPEAT,    _REACQUIRE, _CONFIRMED,            _REST,            _REST,    _REST,      _REST),
}
# fmt: on

TABLE: Final[Mapping[tuple[State, Event], Step]] = MappingProxyType(
    {(state, event): step for state, line in _LINES.items() for event, step in zip(Event, line, strict=True)}
)
"""The whole table: (state of the row, event) → what to do. `decide` adds the four conditions."""


def decide(seen: Seen, event: Event, *, may_reacquire: bool = False) -> Step:
    """What to do about `event` on a branch of which `seen` is known.

    `may_reacquire`: whether a confirm after the hold was released may run Try again. Conditions beyond the table: the
    same identity with another payload is refused; while another run has its lease, a call waits if a handler would run,
    or if the Try may still succeed; a cancel of what was held, but has no row, is refused, because its effects may
    still stand. Source: docs/reference/protocol.md, section 5.
    """
    step = TABLE[seen.state, event]
    if seen.state is State.EXPIRED and event is Event.CONFIRM and may_reacquire:
        step = _REACQUIRE
    if seen.state is State.NOTHING and event is Event.CANCEL and seen.was_held:
        step = Refuse(Refusal.FORGOTTEN)
    if seen.payload_differs:
        return Refuse(Refusal.PAYLOAD_MISMATCH)
    if seen.busy_s > 0 and (isinstance(step, Run) or seen.state is State.TRYING):
        return Wait(seen.busy_s)
    return step


RUNNING: Final = frozenset({State.TRYING, State.CONFIRMING, State.CANCELLING, State.EXPIRING, State.REACQUIRING})
"""The marks of the two-step form: a handler may be running, or may have run."""

FINISHED: Final = frozenset({State.CONFIRMED, State.CANCELLED, State.EXPIRED})
"""Rows that retention may remove."""
