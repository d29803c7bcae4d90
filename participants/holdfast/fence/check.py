"""The fence of a check: an action without effects, true when asked only. One function and one table.

Implements docs/reference/sdk.md, "Steps". A check has no row and keeps no answer; the only rows are those of
stray cancels that were acknowledged. No I/O, no clock, no database.
"""

from collections.abc import Mapping
from typing import Final

from holdfast.fence.steps import Ask, Consult, Event, Fence, Forget, Rest, Seen, State, Step, Table, table
from holdfast.wire import Kind, Operation

EVENTS: Final = (Event.ACTION, Event.DUE, Event.TOLD_FINISHED)

_CONSULT: Final = Consult(Operation.ACTION)

# fmt: off
_LINES: Final[Mapping[State, tuple[Step, ...]]] = {
    #                   action     due     told_finished
    State.NOTHING:     (_CONSULT,  Rest(), Rest()),
    State.CANCELLED:   (_CONSULT,  Ask(),  Forget()),
}
# fmt: on

STATES: Final = tuple(_LINES)
TABLE: Final[Table] = table(EVENTS, _LINES)
"""The whole table: (state of the row, event) → what to do."""


def decide(seen: Seen, event: Event) -> Step:
    """What to do about `event` on a branch of which `seen` is known."""
    return TABLE[seen.state, event]


FENCE: Final = Fence(kind=Kind.CHECK, operations=(Operation.ACTION,), decide=decide)
