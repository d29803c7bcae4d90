"""The fence: what each call means for a branch, given what its row says. One pure function, one table.

This is docs/reference/protocol.md, section 5, extended by the marks of the two-step form and by what happens when a
hold's time is up. Responsible for every transition of a row; no other module may choose a state. No I/O, no
clock, no database: `decide` takes what was seen and says what to do, and the caller does it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from holdfast.wire import Operation


class State(StrEnum):
    """Where a branch stands at this participant. The comment says who moves it on after a crash."""

    NOTHING = "nothing"  # there is no row
    TRYING = "trying"  # two-step: Try's handler may have run; the coordinator's repeat, or the reaper
    HELD = "held"  # the coordinator, or the reaper when the hold's time is up
    CONFIRMING = "confirming"  # two-step: confirm's handler may have run; the coordinator's repeat
    CONFIRMED = "confirmed"  # final
    CANCELLING = "cancelling"  # two-step: cancel's handler may have run; the coordinator's repeat, or the reaper
    CANCELLED = "cancelled"  # final
    EXPIRING = "expiring"  # two-step: being given up past the hard limit; the reaper
    EXPIRED = "expired"  # given up without being told; final unless a confirm may re-acquire
    REACQUIRING = "reacquiring"  # two-step: a late confirm runs Try and confirm; the coordinator's repeat


class Event(StrEnum):
    """What happens to a branch: three calls of the coordinator, four findings of the reaper."""

    TRY = "try"
    CONFIRM = "confirm"
    CANCEL = "cancel"
    DUE = "due"  # the time at which to look at this row again has come
    TOLD_CONFIRM = "told_confirm"  # asked, and the decision is confirm
    TOLD_CANCEL = "told_cancel"  # asked, and the decision is cancel, or the transaction is unknown
    ABANDONED = "abandoned"  # past the hard limit, and nobody said confirm


class Refusal(StrEnum):
    """Why a call is turned away; the slugs of the problems."""

    NOTHING_HELD = "nothing-held"
    ALREADY_CANCELLED = "already-cancelled"
    ALREADY_CONFIRMED = "already-confirmed"
    HOLD_EXPIRED = "hold-expired"
    PAYLOAD_MISMATCH = "payload-mismatch"


@dataclass(frozen=True, slots=True)
class Run:
    """Run the handlers of `operations`; then the row says `then`, committed with what they wrote.

    In the two-step form the row says `via` durably before they run; else `via` is never seen by anybody.
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
    """It is done already: give the stored answer again."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """Turn the call away."""

    refusal: Refusal


@dataclass(frozen=True, slots=True)
class Wait:
    """A handler of this branch may be running: ask again after so many seconds."""

    after_s: float


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask the coordinator what was decided."""


@dataclass(frozen=True, slots=True)
class Rest:
    """Nothing to do, and no need to look at this row again."""


Step = Run | Mark | Repeat | Refuse | Wait | Ask | Rest


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What is known of a branch when something happens to it.

    `payload_differs`: the call brings another payload than the Try before it; the reaper brings none.
    `busy_s`: for how many seconds the run that is under way still has its lease; 0 when none is.
    """

    state: State
    payload_differs: bool = False
    busy_s: float = 0.0


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
"""The whole table: (what the row says, what happens) → what to do. `decide` adds the three conditions."""


def decide(seen: Seen, event: Event, *, may_reacquire: bool = False) -> Step:
    """What `event` means for a branch of which `seen` is known.

    `may_reacquire`: whether a confirm that comes after the hold was given up may run Try again.
    Conditions beyond the table: the same identity with another payload is refused; where a handler would
    run (or a Try may still come to hold) while another run has its lease, wait.
    Source: docs/reference/protocol.md, section 5.
    """
    step = TABLE[seen.state, event]
    if seen.state is State.EXPIRED and event is Event.CONFIRM and may_reacquire:
        step = _REACQUIRE
    if seen.payload_differs:
        return Refuse(Refusal.PAYLOAD_MISMATCH)
    if seen.busy_s > 0 and (isinstance(step, Run) or seen.state is State.TRYING):
        return Wait(seen.busy_s)
    return step


RUNNING: Final = frozenset({State.TRYING, State.CONFIRMING, State.CANCELLING, State.EXPIRING, State.REACQUIRING})
"""The marks of the two-step form: a handler may be running, or may have run."""

FINISHED: Final = frozenset({State.CONFIRMED, State.CANCELLED, State.EXPIRED})
"""Rows that retention may remove."""
