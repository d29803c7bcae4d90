"""The fence of calls that the participant's kind doesn't get: whoever recorded the branch believed in another kind.

Implements docs/reference/sdk.md, "Steps". Such a call is refused and does nothing. Undoing what has no row is
acknowledged and remembered all the same, or a transaction that was refused here could never end. No I/O, no clock, no
database.
"""

from collections.abc import Mapping
from typing import Final

from holdfast.fence.steps import (
    Event,
    Mark,
    Refusal,
    Refuse,
    Repeat,
    Seen,
    State,
    Step,
    Table,
    table,
    unless_hindered,
)

EVENTS: Final = (Event.STRAY, Event.STRAY_PIVOT, Event.STRAY_UNDO)

_WRONG: Final = Refuse(Refusal.WRONG_KIND)
_WRONG_FOR_EVER: Final = Mark(State.CANCELLED, refusal=Refusal.WRONG_KIND)
_UNKNOWN: Final = Refuse(Refusal.WRONG_KIND, is_final=False)

# fmt: off
_LINES: Final[Mapping[State, tuple[Step, ...]]] = {
    #                   stray    stray_pivot      stray_undo
    State.NOTHING:     (_WRONG,  _WRONG_FOR_EVER, Mark(State.CANCELLED)),
    State.CANCELLED:   (_WRONG,  _WRONG,          Repeat()),
    State.REFUSED:     (_WRONG,  _WRONG,          Repeat()),
    State.EXPIRED:     (_WRONG,  _WRONG,          Repeat()),
}
_OTHERWISE: Final = (_WRONG, _UNKNOWN, _WRONG)  # this participant did something, as another kind
# fmt: on

STATES: Final = tuple(State)
TABLE: Final[Table] = table(EVENTS, {state: _LINES.get(state, _OTHERWISE) for state in STATES})
"""The whole table: (state of the row, event) → what to do. `decide` adds the condition that the row was lost."""


def decide(seen: Seen, event: Event) -> Step:
    """What to do about `event` on a branch of which `seen` is known; the payload doesn't matter."""
    return unless_hindered(TABLE[seen.state, event], Seen(state=seen.state, was_held=seen.was_held))
