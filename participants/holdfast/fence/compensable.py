"""The fence of a saga step: an action, and a compensation if the transaction is cancelled. One function and one table.

Implements docs/reference/sdk.md, "Steps". A step has no time limit: nothing but the coordinator's call undoes
it, and its row stays until the coordinator says that the transaction is finished. No I/O, no clock, no database.
"""

from collections.abc import Mapping
from typing import Final

from holdfast.fence.steps import (
    Ask,
    Event,
    Fence,
    Forget,
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
    table,
    unless_hindered,
)
from holdfast.wire import Kind, Operation

EVENTS: Final = (Event.ACTION, Event.COMPENSATION, Event.DUE, Event.TOLD_FINISHED)

_ACTION: Final = Run((Operation.ACTION,), State.TRYING, State.HELD)
_COMPENSATE: Final = Run((Operation.COMPENSATION,), State.CANCELLING, State.CANCELLED)
_SWEEP: Final = Run((Operation.COMPENSATION,), State.CANCELLED, State.CANCELLED)
_COMPENSATED: Final = Refuse(Refusal.ALREADY_COMPENSATED)
_REPEAT, _ASK, _FORGET, _REST = Repeat(), Ask(), Forget(), Rest()

# fmt: off
_LINES: Final[Mapping[State, tuple[Step, ...]]] = {
    #                   action         compensation           due     told_finished
    State.NOTHING:     (_ACTION,       Mark(State.CANCELLED), _REST,  _REST),
    State.TRYING:      (_ACTION,       _COMPENSATE,           _ASK,   _FORGET),
    State.HELD:        (_REPEAT,       _COMPENSATE,           _ASK,   _FORGET),
    State.CANCELLING:  (_COMPENSATED,  _COMPENSATE,           _ASK,   _FORGET),
    State.CANCELLED:   (_COMPENSATED,  _REPEAT,               _ASK,   _FORGET),
}
# fmt: on

STATES: Final = tuple(_LINES)
TABLE: Final[Table] = table(EVENTS, _LINES)
"""The whole table: (state of the row, event) → what to do. `decide` adds the conditions."""


def decide(seen: Seen, event: Event) -> Step:
    """What to do about `event` on a branch of which `seen` is known.

    Conditions beyond the table: those of `unless_hindered`, and that an action which lost its lease, and may have acted
    after its compensation, is compensated once more.
    """
    if seen.state is State.CANCELLED and event is Event.DUE and seen.is_doubtful:
        return unless_hindered(_SWEEP, seen)
    return unless_hindered(TABLE[seen.state, event], seen)


FENCE: Final = Fence(kind=Kind.COMPENSABLE, operations=(Operation.ACTION, Operation.COMPENSATION), decide=decide)
