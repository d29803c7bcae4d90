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
from holdfast.fence.table import TABLE, Ask, Event, Mark, Refuse, Repeat, Rest, Run, Seen, State, Step, decide
from holdfast.wire import Answer, Decision, Kind, Operation

FILE: Final = Path(__file__).parent / "tables.pml"

STATES: Final = (State.NOTHING, State.HELD, State.CONFIRMED, State.CANCELLED, State.EXPIRED)
"""What the row of a participant can say in the one-step form; the marks of the two-step form are not modelled."""
EVENTS: Final = (Event.TRY, Event.CONFIRM, Event.CANCEL, Event.TOLD_CONFIRM, Event.TOLD_CANCEL, Event.ABANDONED)
"""What happens to a row. `due` is only a reason to ask: see FENCE_ASKS."""
PHASES: Final = tuple(phase for phase in BranchPhase if phase is not BranchPhase.RESOLVED)
"""No person resolves a branch in the model."""

_Key = tuple[StrEnum, ...]

_HEAD: Final = """\
/* Written by `python -m tests.model --write-tables` from app/protocol/kinds.py, app/protocol/values.py and
 * participants/holdfast/fence/table.py; a test compares it with them. Change it there, never here. */
"""


def text() -> str:
    """The whole file."""
    blocks = [_HEAD, "#define NONE 0\n", *(_names(values) for values in words().values())]
    blocks += [
        _macro("READY", ("kind",), {(kind,): name(phase) for kind, phase in READY.items()}),
        _macro("FOLLOWS", ("kind", "decision", "phase"), {key: name(phase) for key, phase in FOLLOWS.items()}),
        _macro("ASKS", ("kind", "phase"), {key: name(operation) for key, operation in asks().items()}),
        _macro("ANSWERED", ("operation", "answer"), {key: name(phase) for key, phase in ANSWERED.items()}),
        _macro("IS_FINAL", ("phase",), {(phase,): "1" for phase in PHASES if phase in FINAL}, default="0"),
        _macro("FENCE_ASKS", ("state",), {(s,): "1" for s in STATES if isinstance(TABLE[s, Event.DUE], Ask)}, "0"),
        *_fence("", {(state, event): TABLE[state, event] for state in STATES for event in EVENTS}),
        *_fence("_REACQUIRING", {(s, e): decide(Seen(state=s), e, may_reacquire=True) for s in STATES for e in EVENTS}),
    ]
    return "\n".join(blocks)


def asks() -> dict[tuple[Kind, BranchPhase], Operation]:
    """What a branch of each kind is asked for in each phase."""
    return {
        (kind, phase): operation
        for kind, operations in KINDS.items()
        for phase, operation in ASKS.items()
        if operation in operations
    }


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


def _fence(suffix: str, table: Mapping[tuple[State, Event], Step]) -> Iterator[str]:
    """What a row says after an event, which handlers run, and what a call is answered."""
    then: dict[_Key, str] = {}
    runs: dict[_Key, str] = {}
    answers: dict[_Key, str] = {}
    for (state, event), step in table.items():
        match step:
            case Run(operations=operations, then=after):
                then[state, event] = name(after)
                runs[state, event] = " | ".join(f"1 << {name(operation)}" for operation in operations)
            case Mark(state=after):
                then[state, event] = name(after)
            case Repeat() | Refuse() | Rest():
                then[state, event] = name(state)
            case _:
                raise AssertionError(f"the model has no {step}")
        if event in (Event.TRY, Event.CONFIRM, Event.CANCEL):
            answers[state, event] = name(Answer.REFUSED if isinstance(step, Refuse) else Answer.SUCCEEDED)
    parameters = ("state", "event")
    yield _macro(f"FENCE_THEN{suffix}", parameters, then)
    yield _macro(f"FENCE_RUNS{suffix}", parameters, runs, default="0")
    yield _macro(f"FENCE_ANSWER{suffix}", parameters, answers)
