"""The fence of a retryable step: an action after the decision, repeated until it is done. One function and one table.

Implements docs/reference/sdk.md, "Steps". A refusal isn't recorded: the action is tried again. No I/O, no clock,
no database.
"""

from collections.abc import Mapping
from typing import Final

from holdfast.fence.steps import (
    Ask,
    Event,
    Fence,
    Forget,
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

EVENTS: Final = (Event.ACTION, Event.DUE, Event.TOLD_FINISHED)

_ACTION: Final = Run((Operation.ACTION,), State.CONFIRMING, State.CONFIRMED)
_CANCELLED: Final = Refuse(Refusal.ALREADY_CANCELLED)
_REPEAT, _ASK, _FORGET, _REST = Repeat(), Ask(), Forget(), Rest()

# fmt: off
_LINES: Final[Mapping[State, tuple[Step, ...]]] = {
    #                   action       due    told_finished
    State.NOTHING:     (_ACTION,     _REST, _REST),
    State.CONFIRMING:  (_ACTION,     _ASK,  _FORGET),
    State.CONFIRMED:   (_REPEAT,     _ASK,  _FORGET),
    State.CANCELLED:   (_CANCELLED,  _ASK,  _FORGET),  # a stray cancel was acknowledged
}
# fmt: on

STATES: Final = tuple(_LINES)
TABLE: Final[Table] = table(EVENTS, _LINES)
"""The whole table: (state of the row, event) → what to do. `decide` adds the conditions."""


def decide(seen: Seen, event: Event) -> Step:
    """What to do about `event` on a branch of which `seen` is known; `unless_hindered` adds the conditions."""
    return unless_hindered(TABLE[seen.state, event], seen)


FENCE: Final = Fence(kind=Kind.RETRYABLE, operations=(Operation.ACTION,), decide=decide)
