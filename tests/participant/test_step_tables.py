"""The fences of saga steps, pivots, retryable steps, checks and stray calls: all of each table, and the conditions that
it doesn't show. No database."""

import itertools
from collections.abc import Callable
from types import ModuleType

import pytest

from holdfast.fence import check, compensable, pivot, retryable, stray
from holdfast.fence.steps import (
    RUNNING,
    Ask,
    Consult,
    Event,
    Forget,
    Mark,
    Recall,
    Refusal,
    Refuse,
    Run,
    Seen,
    Settle,
    State,
    Step,
    Wait,
)
from holdfast.wire import Kind, Operation

# docs/reference/sdk.md, "Steps", as it reads: what the row says → each event of the kind, in the order of EVENTS.
CONTRACT: dict[ModuleType, dict[str, tuple[str, ...]]] = {
    compensable: {
        "nothing": ("run action held", "mark cancelled", "rest", "rest"),
        "trying": ("run action held", "run compensation cancelled", "ask", "forget"),
        "held": ("repeat", "run compensation cancelled", "ask", "forget"),
        "cancelling": ("already-compensated", "run compensation cancelled", "ask", "forget"),
        "cancelled": ("already-compensated", "repeat", "ask", "forget"),
    },
    pivot: {
        "nothing": ("run action confirmed or refused", "mark cancelled", "rest", "rest"),
        "trying": (
            "run action confirmed or refused",
            "settle run action confirmed or refused",
            "ask",
            "forget",
        ),
        "confirming": (
            "run action confirmed or refused",
            "settle run action confirmed or refused",
            "ask",
            "forget",
        ),
        "confirmed": ("repeat", "already-done", "ask", "forget"),
        "refused": ("recall", "repeat", "ask", "forget"),
        "cancelling": ("wait", "run cancel cancelled or confirming", "ask", "forget"),
        "cancelled": ("already-cancelled", "repeat", "ask", "forget"),
    },
    retryable: {
        "nothing": ("run action confirmed", "rest", "rest"),
        "confirming": ("run action confirmed", "ask", "forget"),
        "confirmed": ("repeat", "ask", "forget"),
        "cancelled": ("already-cancelled", "ask", "forget"),
    },
    check: {
        "nothing": ("consult action", "rest", "rest"),
        "cancelled": ("consult action", "ask", "forget"),
    },
    stray: {
        "nothing": ("wrong-kind", "mark cancelled, then wrong-kind", "mark cancelled"),
        "trying": ("wrong-kind", "wrong-kind, undecided", "wrong-kind"),
        "held": ("wrong-kind", "wrong-kind, undecided", "wrong-kind"),
        "confirming": ("wrong-kind", "wrong-kind, undecided", "wrong-kind"),
        "confirmed": ("wrong-kind", "wrong-kind, undecided", "wrong-kind"),
        "cancelling": ("wrong-kind", "wrong-kind, undecided", "wrong-kind"),
        "cancelled": ("wrong-kind", "wrong-kind", "repeat"),
        "expiring": ("wrong-kind", "wrong-kind, undecided", "wrong-kind"),
        "expired": ("wrong-kind", "wrong-kind", "repeat"),
        "reacquiring": ("wrong-kind", "wrong-kind, undecided", "wrong-kind"),
        "refused": ("wrong-kind", "wrong-kind", "repeat"),
    },
}
TABLES = list(CONTRACT)
ALL = [(each, state, event) for each in TABLES for state in each.STATES for event in each.EVENTS]
Decide = Callable[..., Step]


def named(value: object) -> str:
    return value.__name__.rpartition(".")[2] if isinstance(value, ModuleType) else str(value)


def said(step: Step) -> str:
    match step:
        case Run(operations=operations, then=then, refused=refused):
            or_refused = "" if refused is None else f" or {refused.value}"
            return f"run {' '.join(operations)} {then.value}{or_refused}"
        case Settle(run=run):
            return f"settle {said(run)}"
        case Consult(operation=operation):
            return f"consult {operation.value}"
        case Mark(state=marked, refusal=None):
            return f"mark {marked.value}"
        case Mark(state=marked, refusal=refusal):
            return f"mark {marked.value}, then {refusal}"
        case Refuse(refusal=refusal, is_final=is_final):
            return refusal.value if is_final else f"{refusal.value}, undecided"
        case other:
            return type(other).__name__.lower()


@pytest.mark.parametrize("fence", TABLES, ids=named)
def test_the_whole_table(fence: ModuleType) -> None:
    for state in fence.STATES:
        steps = tuple(said(fence.decide(Seen(state=state), event)) for event in fence.EVENTS)
        assert steps == CONTRACT[fence][state.value], state
    assert {state.value for state in fence.STATES} == set(CONTRACT[fence])
    assert set(fence.TABLE) == set(itertools.product(fence.STATES, fence.EVENTS))


@pytest.mark.parametrize("fence", [compensable, pivot, retryable, check], ids=named)
def test_each_fence_is_of_its_kind_and_knows_its_calls(fence: ModuleType) -> None:
    assert fence.FENCE.kind == Kind(named(fence))
    assert fence.FENCE.first is Operation.ACTION
    calls = [Event(operation.value) for operation in fence.FENCE.operations]
    assert list(fence.EVENTS) == [*calls, Event.DUE, Event.TOLD_FINISHED]
    assert fence.FENCE.decisive == ({Operation.ACTION} if fence is pivot else set())


@pytest.mark.parametrize(("fence", "state", "event"), ALL, ids=named)
def test_nothing_undoes_itself(fence: ModuleType, state: State, event: Event) -> None:
    """No finding of the background task runs a handler, whatever the coordinator knows or doesn't know."""
    step = fence.decide(Seen(state=state), event)
    if event in (Event.DUE, Event.TOLD_FINISHED):
        assert not isinstance(step, Run | Settle | Consult | Mark)
    if isinstance(step, Forget):
        assert event is Event.TOLD_FINISHED, "a row goes when nobody will call again, and not before"


@pytest.mark.parametrize(("fence", "state", "event"), ALL, ids=named)
def test_what_was_undone_takes_no_effect(fence: ModuleType, state: State, event: Event) -> None:
    step = fence.decide(Seen(state=state), event)
    if state in (State.CANCELLED, State.REFUSED):
        assert not isinstance(step, Run | Settle)
    if state is State.CONFIRMED:
        assert not isinstance(step, Run | Settle), "what is done is not done again"
    if isinstance(step, Run):
        assert step.via in RUNNING
        assert state is not State.CANCELLING or Operation.ACTION not in step.operations


@pytest.mark.parametrize(("fence", "state", "event"), ALL, ids=named)
def test_while_a_run_has_its_lease_no_other_begins(fence: ModuleType, state: State, event: Event) -> None:
    if fence in (stray, check):
        return
    at_rest, busy = fence.decide(Seen(state=state), event), fence.decide(Seen(state=state, busy_s=0.5), event)
    waits = isinstance(at_rest, Run | Settle | Forget) or state is State.TRYING
    assert busy == (Wait(0.5) if waits else at_rest)


@pytest.mark.parametrize(("fence", "state", "event"), ALL, ids=named)
def test_another_payload(fence: ModuleType, state: State, event: Event) -> None:
    step, otherwise = (fence.decide(Seen(state=state, payload_differs=differs), event) for differs in (True, False))
    if fence in (stray, check) or state is State.NOTHING:
        assert step == otherwise or state is State.NOTHING
    elif (fence, event) == (pivot, Event.ACTION):
        is_over = isinstance(otherwise, Refuse | Recall)
        assert step == (otherwise if is_over else Refuse(Refusal.PAYLOAD_MISMATCH, is_final=False))
    else:
        assert step == Refuse(Refusal.PAYLOAD_MISMATCH)


@pytest.mark.parametrize(("fence", "state", "event"), ALL, ids=named)
def test_what_was_held_and_has_no_row_is_never_acknowledged_as_undone(
    fence: ModuleType, state: State, event: Event
) -> None:
    step = fence.decide(Seen(state=state, was_held=True), event)
    is_undoing = event in (Event.COMPENSATION, Event.CANCEL, Event.STRAY_UNDO)
    if state is State.NOTHING and is_undoing:
        assert step == Refuse(Refusal.FORGOTTEN)
    elif event is not Event.STRAY_PIVOT:
        assert step == fence.decide(Seen(state=state), event)


def test_an_action_that_lost_its_lease_is_compensated_once_more() -> None:
    for state, event in itertools.product(compensable.STATES, compensable.EVENTS):
        step = compensable.decide(Seen(state=state, is_doubtful=True), event)
        if (state, event) == (State.CANCELLED, Event.DUE):
            assert step == Run((Operation.COMPENSATION,), State.CANCELLED, State.CANCELLED)
        else:
            assert step == compensable.decide(Seen(state=state), event)


def test_a_pivot_that_can_void_does_so_when_it_doesn_t_know() -> None:
    void = Run((Operation.CANCEL,), State.CANCELLING, State.CANCELLED, refused=State.CONFIRMING)
    changed = {}
    for state, event, doubtful in itertools.product(pivot.STATES, pivot.EVENTS, (True, False)):
        seen = Seen(state=state, is_doubtful=doubtful)
        step = pivot.decide(seen, event, may_void=True)
        assert step == pivot.FENCE_THAT_VOIDS.decide(seen, event)
        if step != pivot.FENCE.decide(seen, event):
            changed[state, event, doubtful] = step
    assert changed == {
        (State.TRYING, Event.CANCEL, True): Settle(void),
        (State.TRYING, Event.CANCEL, False): Settle(void),
        (State.CANCELLED, Event.DUE, True): Run((Operation.CANCEL,), State.CANCELLED, State.CANCELLED),
        (State.REFUSED, Event.DUE, True): Run((Operation.CANCEL,), State.REFUSED, State.REFUSED),
    }


@pytest.mark.parametrize("fence", [compensable, pivot, retryable], ids=named)
def test_every_row_is_asked_about_in_the_end(fence: ModuleType) -> None:
    for state in fence.STATES:
        assert isinstance(fence.TABLE[state, Event.DUE], Ask) == (state is not State.NOTHING)
