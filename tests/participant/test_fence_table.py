"""The fence's table: all of it against the contract, and the conditions that it doesn't show. No database."""

import itertools

import pytest

from holdfast.fence.steps import (
    FINISHED,
    RUNNING,
    Event,
    Mark,
    Refusal,
    Refuse,
    Repeat,
    Rest,
    Run,
    Seen,
    State,
    Wait,
)
from holdfast.fence.table import EVENTS, OPERATIONS, STATES, TABLE, decide
from holdfast.wire import Operation

CALLS = (Event.TRY, Event.CONFIRM, Event.CANCEL)

# docs/reference/protocol.md, section 5, as it reads: what the row says → try, confirm, cancel.
CONTRACT = {
    "nothing": ("run held", "nothing-held", "mark cancelled"),
    "held": ("repeat", "run confirmed", "run cancelled"),
    "confirmed": ("repeat", "repeat", "already-confirmed"),
    "cancelled": ("already-cancelled", "already-cancelled", "repeat"),
    "expired": ("hold-expired", "hold-expired", "repeat"),
}

# The marks of the two-step form. What was begun is gone on with by the call that began it; Cancel also undoes a Try
# that may have held, and takes over from the reaper. A Confirm is never taken back, and what is being cancelled or
# given up is never held again.
MARKS = {
    "trying": ("run held", "nothing-held", "run cancelled"),
    "confirming": ("repeat", "run confirmed", "already-confirmed"),
    "cancelling": ("already-cancelled", "already-cancelled", "run cancelled"),
    "expiring": ("hold-expired", "wait", "run cancelled"),
    "reacquiring": ("repeat", "run confirmed", "already-confirmed"),
}

# What the reaper does when the row is due, was told cancel, and is given up; told confirm, it leaves every row alone.
REAPER = {
    "trying": ("ask", "run cancelled", "run expired"),
    "held": ("ask", "run cancelled", "run expired"),
    "cancelling": ("run cancelled", "run cancelled", "rest"),
    "cancelled": ("run cancelled", "rest", "rest"),  # sweeps up what a handler that was overtaken did afterwards
    "expiring": ("run expired", "run cancelled", "run expired"),
    "expired": ("run expired", "rest", "rest"),
}


def said(state: State, event: Event, **conditions: bool) -> str:
    match decide(Seen(state=state), event, **conditions):
        case Run(then=then):
            return f"run {then.value}"
        case Mark(state=marked):
            return f"mark {marked.value}"
        case Repeat():
            return "repeat"
        case Refuse(refusal=refusal):
            return refusal.value
        case other:
            return type(other).__name__.lower()


@pytest.mark.parametrize("state", CONTRACT | MARKS)
def test_the_table_of_the_contract_and_of_the_marks(state: str) -> None:
    assert tuple(said(State(state), event) for event in CALLS) == (CONTRACT | MARKS)[state]


@pytest.mark.parametrize("state", STATES)
def test_what_the_reaper_does(state: State) -> None:
    findings = (Event.DUE, Event.TOLD_CANCEL, Event.ABANDONED)
    assert tuple(said(state, event) for event in findings) == REAPER.get(state, ("rest", "rest", "rest"))
    assert said(state, Event.TOLD_CONFIRM) == "rest"


def test_each_run_calls_its_handlers_and_leaves_its_mark() -> None:
    runs = {(state, step.then): step for (state, _), step in TABLE.items() if isinstance(step, Run)}
    for (state, then), step in runs.items():
        ways: dict[State, tuple[tuple[Operation, ...], State]] = {
            State.HELD: ((Operation.TRY,), State.TRYING),
            State.CONFIRMED: ((Operation.CONFIRM,), State.CONFIRMING),
            State.CANCELLED: ((Operation.CANCEL,), State.CANCELLING),
            State.EXPIRED: ((Operation.CANCEL,), State.EXPIRING),
        }
        operations, via = ways[then]
        if state is State.REACQUIRING:
            operations, via = (Operation.TRY, Operation.CONFIRM), State.REACQUIRING
        sweeps = state in FINISHED
        assert step == Run(operations, state if sweeps else via, then)


def test_the_words_of_rows_calls_and_problems() -> None:
    """Rows of earlier releases say them, operations become events by them, and problems are named by them."""
    assert {state.value for state in STATES} == {*CONTRACT, *MARKS}
    assert [Event(operation.value) for operation in OPERATIONS] == [*CALLS]
    assert [event.value for event in EVENTS] == [
        "try",
        "confirm",
        "cancel",
        "due",
        "told_confirm",
        "told_cancel",
        "abandoned",
    ]
    assert {refusal.value for refusal in Refusal} == {
        "nothing-held",
        "already-cancelled",
        "already-compensated",
        "already-confirmed",
        "already-done",
        "hold-expired",
        "payload-mismatch",
        "forgotten",
        "wrong-kind",
    }


def test_a_confirm_of_what_is_being_given_up_may_ask_again_in_a_second() -> None:
    assert decide(Seen(state=State.EXPIRING), Event.CONFIRM) == Wait(1.0)


def test_the_table_is_complete_and_cannot_be_changed() -> None:
    assert set(TABLE) == set(itertools.product(STATES, EVENTS))
    with pytest.raises(TypeError):
        TABLE[State.HELD, Event.CANCEL] = Rest()  # type: ignore[index]


@pytest.mark.parametrize(("state", "event"), list(itertools.product(STATES, EVENTS)))
def test_no_step_leads_where_it_must_not(state: State, event: Event) -> None:
    step = TABLE[state, event]
    if isinstance(step, Run):
        assert step.via in RUNNING or step.via is step.then is state
        assert step.then in FINISHED or step.then is State.HELD
        if state in (State.CONFIRMED, State.CONFIRMING, State.REACQUIRING):
            assert step.then is State.CONFIRMED, "what may be confirmed is never released"
        if state in (State.CANCELLED, State.CANCELLING):
            assert step.operations == (Operation.CANCEL,), "what may be released is never held or confirmed"
        if step.then is State.CONFIRMED:
            assert event is Event.CONFIRM, "nobody but the coordinator confirms"
        if state is State.NOTHING:
            assert step.operations == (Operation.TRY,), "no handler runs on nothing but Try's"


@pytest.mark.parametrize("state", STATES)
def test_the_end_can_always_be_reached(state: State) -> None:
    """By repeating the call that was decided, and for what nobody calls about, by the reaper alone."""
    ways = {event: TABLE[state, event] for event in EVENTS}
    ends = [step for step in ways.values() if isinstance(step, Run) and step.then in FINISHED]
    assert ends or state in FINISHED | {State.NOTHING}


@pytest.mark.parametrize(
    ("state", "event"), list(itertools.product([s for s in STATES if s is not State.NOTHING], CALLS))
)
def test_another_payload_is_refused_whatever_the_row_says(state: State, event: Event) -> None:
    assert decide(Seen(state=state, payload_differs=True), event) == Refuse(Refusal.PAYLOAD_MISMATCH)


@pytest.mark.parametrize(("state", "event"), list(itertools.product(sorted(RUNNING), EVENTS)))
def test_while_a_run_has_its_lease_no_other_begins(state: State, event: Event) -> None:
    step = decide(Seen(state=state, busy_s=0.5), event)
    if isinstance(TABLE[state, event], Run) or state is State.TRYING:
        assert step == Wait(0.5)
    else:
        assert step == TABLE[state, event], "what needs no handler is answered at once"


def test_a_confirm_waits_for_a_try_that_may_still_come_to_hold() -> None:
    assert decide(Seen(state=State.TRYING, busy_s=7.0), Event.CONFIRM) == Wait(7.0)
    assert decide(Seen(state=State.TRYING), Event.CONFIRM) == Refuse(Refusal.NOTHING_HELD)


def test_only_a_cancel_of_what_was_held_and_has_no_row_is_forgotten() -> None:
    for state, event in itertools.product(STATES, EVENTS):
        changed = decide(Seen(state=state, was_held=True), event) != decide(Seen(state=state), event)
        assert changed == ((state, event) == (State.NOTHING, Event.CANCEL))
    assert decide(Seen(state=State.NOTHING, was_held=True), Event.CANCEL) == Refuse(Refusal.FORGOTTEN)


def test_only_a_late_confirm_re_acquires_and_only_where_that_is_allowed() -> None:
    for state, event in itertools.product(STATES, EVENTS):
        changed = decide(Seen(state=state), event, may_reacquire=True) != decide(Seen(state=state), event)
        assert changed == ((state, event) == (State.EXPIRED, Event.CONFIRM))
    step = decide(Seen(state=State.EXPIRED), Event.CONFIRM, may_reacquire=True)
    assert step == Run((Operation.TRY, Operation.CONFIRM), State.REACQUIRING, State.CONFIRMED)
