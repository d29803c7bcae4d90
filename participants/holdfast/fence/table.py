"""The fence of TCC: what each call means for a hold, given the state of its row. One pure function and one table.

Implements docs/reference/protocol.md, section 5, extended by the marks of the two-step form and by what happens when a
hold expires. Owns every transition of such a row; no other module may choose a state. No I/O, no clock, no database:
`decide` takes what is known and returns what to do, and the caller does it.
"""

from collections.abc import Mapping
from functools import partial
from typing import Final

from holdfast.fence.steps import (
    Ask,
    Event,
    Fence,
    Mark,
    Refusal,
    Refuse,
    Repeat,
    Rest,
    Run,
    Seen,
    State,
    Step,
    Table,
    Wait,
    table,
    unless_hindered,
)
from holdfast.wire import Kind, Operation

OPERATIONS: Final = (Operation.TRY, Operation.CONFIRM, Operation.CANCEL)
EVENTS: Final = (
    *(Event.TRY, Event.CONFIRM, Event.CANCEL),
    *(Event.DUE, Event.TOLD_CONFIRM, Event.TOLD_CANCEL, Event.ABANDONED),
)
"""Three calls of the coordinator, and four findings of the background task."""

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

STATES: Final = tuple(_LINES)
TABLE: Final[Table] = table(EVENTS, _LINES)
"""The whole table: (state of the row, event) → what to do. `decide` adds the conditions."""


def decide(seen: Seen, event: Event, *, may_reacquire: bool = False) -> Step:
    """What to do about `event` on a branch of which `seen` is known.

    `may_reacquire`: whether a confirm after the hold was released may run Try again. Conditions beyond the table: those
    of `unless_hindered`. Source: docs/reference/protocol.md, section 5.
    """
    step = TABLE[seen.state, event]
    if seen.state is State.EXPIRED and event is Event.CONFIRM and may_reacquire:
        step = _REACQUIRE
    return unless_hindered(step, seen)


def fence(*, may_reacquire: bool) -> Fence:
    """The fence of a participant of TCC."""
    return Fence(kind=Kind.TCC, operations=OPERATIONS, decide=partial(decide, may_reacquire=may_reacquire))
