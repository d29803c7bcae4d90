"""The tables of the protocol as macros of Promela, written from the code's own tables.

`text()` is what tests/model/tables.pml must say; test_model.py compares, and `python -m tests.model --write-tables`
writes it. A name is the name in the code with `_` for the dot: `BranchPhase.HELD` is `BranchPhase_HELD`. Knows
nothing of spin.
"""

from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Final

from app.protocol.kinds import ANSWERED, ASKS, FOLLOWS, KINDS, READY
from app.protocol.values import FINAL, BranchPhase
from holdfast.fence import check, compensable, retryable, table
from holdfast.fence.steps import Ask, Consult, Event, Mark, Refuse, Repeat, Rest, Run, Seen, State, Step, Table
from holdfast.wire import Answer, Decision, Kind, Operation

FILE: Final = Path(__file__).parent / "tables.pml"

STATES: Final = (State.NOTHING, State.HELD, State.CONFIRMED, State.CANCELLED, State.EXPIRED)
"""What the row of a participant can say in the one-step form; the marks of the two-step form are not modelled."""
CALLS: Final = tuple(Event(operation.value) for operation in Operation)
EVENTS: Final = (*CALLS, Event.TOLD_CONFIRM, Event.TOLD_CANCEL, Event.ABANDONED)
"""What happens to a row. `due` is only a reason to ask: see FENCE_ASKS. Rows are never removed (`told_finished`): that
takes the retention, which is time."""
FENCES: Final[Mapping[Kind, Table]] = {
    Kind.TCC: table.TABLE,
    Kind.COMPENSABLE: compensable.TABLE,
    Kind.CHECK: check.TABLE,
    Kind.RETRYABLE: retryable.TABLE,
}
"""Kind → the fence of its participants, of those kinds that are searched; pivots aren't modelled."""
PHASES: Final = tuple(phase for phase in BranchPhase if phase is not BranchPhase.RESOLVED)
"""No person resolves a branch in the model."""

_Key = tuple[StrEnum, ...]
_Fences = Mapping[tuple[Kind, State, Event], Step]

_HEAD: Final = """\
/* Written by `python -m tests.model --write-tables` from app/protocol/kinds.py, app/protocol/values.py and
 * participants/holdfast/fence/; a test compares it with them. Change it there, never here. */
"""


def text() -> str:
    """The whole file."""
    blocks = [_HEAD, "#define NONE 0\n", *(_names(values) for values in words().values())]
    blocks += [
        _macro("READY", ("kind",), {(kind,): name(phase) for kind, phase in READY.items()}),
        _macro("FOLLOWS", ("kind", "decision", "phase"), {key: name(phase) for key, phase in FOLLOWS.items()}),
        _macro("ASKS", ("kind", "phase"), {key: name(operation) for key, operation in ASKS.items()}),
        _macro("ANSWERED", ("phase", "answer"), {key: name(phase) for key, phase in ANSWERED.items()}),
        _macro("IS_FINAL", ("phase",), {(phase,): "1" for phase in PHASES if phase in FINAL}, default="0"),
        _macro("FENCE_ASKS", ("kind", "state"), dict.fromkeys(fence_asks(), "1"), default="0"),
        *_fence("", fences()),
        *_fence("_REACQUIRING", fences() | reacquiring()),
    ]
    return "\n".join(blocks)


def fences() -> dict[tuple[Kind, State, Event], Step]:
    """What a participant of each kind does about each event that the model has."""
    return {
        (kind, state, event): step
        for kind, steps in FENCES.items()
        for (state, event), step in steps.items()
        if state in STATES and event in EVENTS
    }


def reacquiring() -> dict[tuple[Kind, State, Event], Step]:
    """What a participant of TCC does that may have a hold again."""
    return {
        (Kind.TCC, state, event): table.decide(Seen(state=state), event, may_reacquire=True)
        for state in STATES
        for event in EVENTS
        if (state, event) in table.TABLE
    }


def fence_asks() -> list[tuple[Kind, State]]:
    """The rows whose participant asks for the decision, and acts on it; a step asks only whether its row may go."""
    return [
        (kind, state)
        for kind, steps in FENCES.items()
        for state in STATES
        if isinstance(steps.get((state, Event.DUE)), Ask) and (state, Event.TOLD_CANCEL) in steps
    ]


def words() -> dict[str, tuple[StrEnum, ...]]:
    """The words of the model by what they are words for; their numbers there are their places here, from 1."""
    return {
        type(values[0]).__name__: values
        for values in (tuple(KINDS), tuple(Decision), PHASES, tuple(Operation), tuple(Answer), STATES, EVENTS)
    }


def name(value: StrEnum) -> str:
    """`BranchPhase.HELD` as the model spells it."""
    return f"{type(value).__name__}_{value.name}"


def _names(values: Iterable[StrEnum]) -> str:
    return "".join(f"#define {name(value)} {number}\n" for number, value in enumerate(values, start=1))


def _macro(title: str, parameters: tuple[str, ...], lines: Mapping[_Key, str], default: str = "NONE") -> str:
    """An expression that is the value of the first line whose key fits, or `default`."""
    rows = [f"#define {title}({', '.join(parameters)}) ( \\\n"]
    for key, value in lines.items():
        fits = " && ".join(f"({parameter}) == {name(value)}" for parameter, value in zip(parameters, key, strict=True))
        rows.append(f"  {fits} -> {value} : ( \\\n")
    return "".join(rows) + f"  {default}{')' * len(lines)})\n"


def _fence(suffix: str, steps: _Fences) -> Iterator[str]:
    """What a row says after an event, which handlers run, and what a call is answered."""
    then: dict[_Key, str] = {}
    runs: dict[_Key, str] = {}
    answers: dict[_Key, str] = {}
    for (kind, state, event), step in steps.items():
        match step:
            case Run(operations=operations, then=after):
                then[kind, state, event] = name(after)
                runs[kind, state, event] = " | ".join(f"1 << {name(operation)}" for operation in operations)
            case Mark(state=after):
                then[kind, state, event] = name(after)
            case Repeat() | Refuse() | Rest() | Consult():
                then[kind, state, event] = name(state)
            case _:
                raise AssertionError(f"the model has no {step}")
        if event in CALLS:
            answers[kind, state, event] = name(Answer.REFUSED if isinstance(step, Refuse) else Answer.SUCCEEDED)
    parameters = ("kind", "state", "event")
    yield _macro(f"FENCE_THEN{suffix}", parameters, then)
    yield _macro(f"FENCE_RUNS{suffix}", parameters, runs, default="0")
    yield _macro(f"FENCE_ANSWER{suffix}", parameters, answers)
