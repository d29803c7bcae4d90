"""The fence of a pivot: an action whose answer decides the transaction, and a cancel that asks for that answer.

Implements docs/reference/sdk.md, "Steps". What this fence says is final: a refusal is recorded before it is
answered, and so is a cancel that is acknowledged. What isn't recorded is never refused with a 4xx. An action that may
have had an effect outside the database is never acknowledged as "did not happen": it is voided first, if the service
can do that, or else finished. No I/O, no clock, no database.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Final

from holdfast.fence.steps import (
    Ask,
    Event,
    Fence,
    Forget,
    Mark,
    Recall,
    Refusal,
    Refuse,
    Repeat,
    Rest,
    Run,
    Seen,
    Settle,
    State,
    Step,
    Table,
    Wait,
    table,
    unless_hindered,
)
from holdfast.wire import Kind, Operation

EVENTS: Final = (Event.ACTION, Event.CANCEL, Event.DUE, Event.TOLD_FINISHED)

_ACTION: Final = Run((Operation.ACTION,), State.TRYING, State.CONFIRMED, refused=State.REFUSED)
_FINISH: Final = Run((Operation.ACTION,), State.CONFIRMING, State.CONFIRMED, refused=State.REFUSED)
_VOID: Final = Run((Operation.CANCEL,), State.CANCELLING, State.CANCELLED, refused=State.CONFIRMING)
_CANCELLED, _DONE = Refuse(Refusal.ALREADY_CANCELLED), Refuse(Refusal.ALREADY_DONE)
_REPEAT, _RECALL, _ASK, _FORGET, _REST, _WAIT = Repeat(), Recall(), Ask(), Forget(), Rest(), Wait(1.0)

# fmt: off
_LINES: Final[Mapping[State, tuple[Step, ...]]] = {
    #                   action       cancel                 due    told_finished
    State.NOTHING:     (_ACTION,     Mark(State.CANCELLED), _REST, _REST),
    State.TRYING:      (_ACTION,     Settle(_ACTION),       _ASK,  _FORGET),
    State.CONFIRMING:  (_FINISH,     Settle(_FINISH),       _ASK,  _FORGET),  # it could not be voided: it happened
    State.CONFIRMED:   (_REPEAT,     _DONE,                 _ASK,  _FORGET),
    State.REFUSED:     (_RECALL,     _REPEAT,               _ASK,  _FORGET),
    State.CANCELLING:  (_WAIT,       _VOID,                 _ASK,  _FORGET),
    State.CANCELLED:   (_CANCELLED,  _REPEAT,               _ASK,  _FORGET),
}
# fmt: on

STATES: Final = tuple(_LINES)
TABLE: Final[Table] = table(EVENTS, _LINES)
"""The whole table: (state of the row, event) → what to do. `decide` adds the conditions."""


def decide(seen: Seen, event: Event, *, may_void: bool = False) -> Step:
    """What to do about `event` on a branch of which `seen` is known.

    `may_void`: whether the service can undo an action of which it doesn't know whether it happened. Conditions beyond
    the table: those of `unless_hindered`; another payload is no answer, unless the pivot has ended without an effect;
    an action that lost its lease, and may have acted after the end, is voided once more.
    """
    step = TABLE[seen.state, event]
    if may_void and event is Event.CANCEL and seen.state is State.TRYING:
        step = Settle(_VOID)
    if may_void and event is Event.DUE and seen.is_doubtful and seen.state in (State.CANCELLED, State.REFUSED):
        step = Run((Operation.CANCEL,), seen.state, seen.state)
    if seen.payload_differs and event is Event.ACTION:
        if isinstance(step, Refuse | Recall):
            return step
        return Refuse(Refusal.PAYLOAD_MISMATCH, is_final=False)
    return unless_hindered(step, seen)


FENCE: Final = Fence(
    kind=Kind.PIVOT,
    operations=(Operation.ACTION, Operation.CANCEL),
    decide=decide,
    decisive=frozenset({Operation.ACTION}),
)
FENCE_THAT_VOIDS: Final = replace(FENCE, decide=partial(decide, may_void=True))
"""With a handler that undoes what may have happened."""
