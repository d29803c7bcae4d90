"""The model speaks of the code as it is, and can fail. `make model` searches all of it; here is what takes seconds."""

import re
from dataclasses import replace
from itertools import product

import pytest

from app.protocol.kinds import ANSWERED, ASKS, FOLLOWS, KINDS, READY
from app.protocol.values import FINAL
from holdfast.fence import check, compensable, retryable, table
from holdfast.fence.steps import Ask, Event, Mark, Refuse, Run, State, Table
from holdfast.wire import Answer, Decision, Kind, Operation
from tests.model import spin, tables
from tests.model.__main__ import search
from tests.model.searches import CONFIGURATIONS, MISTAKES, REACHED, SEARCHED, Search

MODEL = spin.MODEL.read_text(encoding="utf-8")
CHECKED_IN = tables.FILE.read_text(encoding="utf-8")
NUMBERS = {word: int(number) for word, number in re.findall(r"^#define (\w+) (\d+)$", CHECKED_IN, re.MULTILINE)}


def value(macro: str, *key: object) -> int:
    """What a macro of tables.pml comes to, read by rules of its own and not by those that wrote it."""
    found = re.search(rf"^#define {macro}\((.*?)\) \( \\\n(.*?)\n\n", CHECKED_IN + "\n\n", re.MULTILINE | re.DOTALL)
    assert found, macro
    parameters = found[1].split(", ")
    assert len(parameters) == len(key)
    given = dict(zip(parameters, key, strict=True))
    for line in found[2].split("\n"):
        wanted = re.findall(r"\((\w+)\) == (\w+)", line)
        result = re.search(r"-> (.*?) : \(", line)
        if result is None:
            return constant(line.strip().rstrip(")"))
        if all(tables.name(given[parameter]) == word for parameter, word in wanted):
            return constant(result[1])
    raise AssertionError(f"{macro} has no last line")


def constant(text: str) -> int:
    """A sum of bits (`1 << Operation_TRY | …`), a name or a number."""
    total = 0
    for part in text.split(" | "):
        base, _, shift = part.partition(" << ")
        total |= number(base) << number(shift) if shift else number(base)
    return total


def number(word: str) -> int:
    return int(word) if word.isdigit() else NUMBERS[word]


def of(word: object) -> int:
    """A value of the code as the model numbers it; None is NONE."""
    return 0 if word is None else NUMBERS[tables.name(word)]  # type: ignore[arg-type]


def test_the_tables_are_those_of_the_code() -> None:
    assert tables.text() == CHECKED_IN, "python -m tests.model --write-tables, and search anew: make model"


def test_what_follows_a_decision_is_what_protocol_py_says() -> None:
    for kind, decision, phase in product(KINDS, Decision, tables.PHASES):
        assert value("FOLLOWS", kind, decision, phase) == of(FOLLOWS.get((kind, decision, phase)))


def test_what_a_phase_asks_for_and_becomes_is_what_protocol_py_says() -> None:
    for phase in tables.PHASES:
        for kind in KINDS:
            assert value("ASKS", kind, phase) == of(ASKS.get((kind, phase)))
        for answer in Answer:
            assert value("ANSWERED", phase, answer) == of(ANSWERED.get((phase, answer)))
        assert value("IS_FINAL", phase) == (phase in FINAL)
    for kind in KINDS:
        assert value("READY", kind) == of(READY[kind])


@pytest.mark.parametrize(("kind", "fence"), [
    (Kind.TCC, table.TABLE),
    (Kind.COMPENSABLE, compensable.TABLE),
    (Kind.CHECK, check.TABLE),
    (Kind.RETRYABLE, retryable.TABLE),
])  # fmt: skip
def test_the_fence_is_that_of_the_sdk(kind: Kind, fence: Table) -> None:
    for state, event in product(tables.STATES, tables.EVENTS):
        step = fence.get((state, event))
        then = step.then if isinstance(step, Run) else step.state if isinstance(step, Mark) else state
        runs = sum(1 << of(operation) for operation in step.operations) if isinstance(step, Run) else 0
        assert value("FENCE_THEN", kind, state, event) == of(then if step else None)
        assert value("FENCE_RUNS", kind, state, event) == runs
        if event in {Event(operation.value) for operation in Operation}:
            answer = Answer.REFUSED if isinstance(step, Refuse) else Answer.SUCCEEDED
            assert value("FENCE_ANSWER", kind, state, event) == of(answer if step else None)


def test_only_holds_ask_for_the_decision() -> None:
    asking = {(kind, state) for kind, state in product(KINDS, tables.STATES) if value("FENCE_ASKS", kind, state)}
    assert asking == {(Kind.TCC, state) for state in tables.STATES if isinstance(table.TABLE[state, Event.DUE], Ask)}


def test_every_kind_but_those_that_decide_is_searched() -> None:
    assert set(SEARCHED) == tables.FENCES.keys() == {kind for kind in KINDS if KINDS[kind].withdraw is None}


def test_only_a_late_confirm_is_different_where_a_hold_may_be_had_again() -> None:
    different = [
        key
        for key in product(KINDS, tables.STATES, tables.EVENTS)
        if value("FENCE_THEN", *key) != value("FENCE_THEN_REACQUIRING", *key)
    ]
    assert different == [(Kind.TCC, State.EXPIRED, Event.CONFIRM)]


def test_calls_are_events_of_the_same_number() -> None:
    for operation in Operation:
        assert of(operation) == of(Event(operation.value))


def test_every_name_of_the_model_is_a_name_of_the_code() -> None:
    used = set(re.findall(r"\b(?:Kind|Decision|BranchPhase|Operation|Answer|State|Event)_[A-Z_]+\b", MODEL))
    assert len(used) > 20
    assert used <= NUMBERS.keys()


def test_every_mistake_of_the_model_is_searched_and_every_search_has_one() -> None:
    in_the_model = set(re.findall(r"\bMISTAKE_\w+", MODEL)) - {"MISTAKE_"}
    searched = {define for search in MISTAKES for define in search.defines if define.startswith("MISTAKE_")}
    assert in_the_model == searched
    assert all(search.must_fail for search in (*MISTAKES, *REACHED))
    assert not any(search.must_fail for search in CONFIGURATIONS)


def test_every_pair_of_kinds_is_searched_in_every_configuration_that_it_can_have() -> None:
    kind_of = {tables.name(kind): kind for kind in KINDS}
    searched: dict[tuple[str, ...], set[tuple[Kind, ...]]] = {}
    for each in CONFIGURATIONS:
        pair = tuple(kind_of[define.partition("=")[2]] for define in each.defines[-2:])
        searched.setdefault(each.defines[:-2], set()).add(pair)
    pairs = set(product(SEARCHED, SEARCHED))
    either_way = {frozenset(pair) for pair in pairs}
    assert set(searched) == {(), ("SEQUENTIAL",), ("DEADLINE",), ("HARD_LIMIT",), ("REACQUIRE",), ("LIVENESS",)}
    assert searched["LIVENESS",] == pairs
    assert searched["SEQUENTIAL",] == {pair for pair in pairs if Kind.RETRYABLE not in pair}
    assert {frozenset(pair) for pair in searched[()]} == either_way
    for configuration in ("DEADLINE", "HARD_LIMIT", "REACQUIRE"):
        assert searched[configuration,] == {(Kind.TCC, Kind.TCC)}


def test_every_claim_that_must_be_refuted_is_in_the_model() -> None:
    numbered = dict(re.findall(r"^#define ([A-Z_]+) (\d)$", MODEL, re.MULTILINE))
    expected = {name: f"REACH={number}" for name, number in numbered.items()}
    assert {search.name.partition(",")[0]: search.defines[0] for search in REACHED} == expected


@pytest.fixture
def _spin() -> None:
    if missing := spin.why_no_spin():
        pytest.skip(missing)


@pytest.mark.usefixtures("_spin")
def test_a_mistake_is_found_and_told_step_by_step() -> None:
    mistake = next(search for search in MISTAKES if search.name == "NO_TOMBSTONE")
    found = spin.run(mistake)
    assert found.is_as_expected
    assert found.told[0] == "replica 0 begins the transaction"
    assert found.told[-1] == "participant 1: try, its row says nothing, then held"


@pytest.mark.usefixtures("_spin")
def test_a_mistake_is_found_in_steps_too() -> None:
    mistake = next(search for search in MISTAKES if search.name == "NO_TOMBSTONE, compensable + check")
    found = spin.run(mistake)
    assert found.is_as_expected
    assert found.told[-1] == "participant 0: action, its row says nothing, then held"


@pytest.mark.usefixtures("_spin")
def test_a_saga_with_what_is_carried_out_after_the_decision_holds() -> None:
    wanted = next(search for search in CONFIGURATIONS if search.name == "parallel, compensable + retryable")
    assert spin.run(wanted).is_as_expected


@pytest.mark.parametrize(("must_fail", "violation", "is_good"), [
    (True, "assertion violated", True), (True, None, False), (False, "assertion violated", False), (False, None, True)
])  # fmt: skip
def test_a_mistake_that_is_not_found_is_no_success(
    monkeypatch: pytest.MonkeyPatch, must_fail: bool, violation: str | None, is_good: bool
) -> None:
    def made(search: Search) -> spin.Found:
        search = replace(search, must_fail=must_fail)
        return spin.Found(search=search, states=1, seconds=0.0, memory_mb=1.0, violation=violation, told=())

    monkeypatch.setattr("tests.model.__main__.run", made)
    assert search("NO_TOMBSTONE", tell=False) is is_good


def test_a_search_that_stops_early_is_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(search: Search) -> spin.Found:
        raise spin.SpinError(search.name)

    monkeypatch.setattr("tests.model.__main__.run", stopped)
    assert not search("NO_TOMBSTONE", tell=False)
    assert not search("no such name", tell=False)


@pytest.mark.usefixtures("_spin")
def test_a_model_that_spin_does_not_understand_is_no_success() -> None:
    with pytest.raises(spin.SpinError):
        spin.run(Search(name="nonsense", defines=("rule(it)=nonsense(",)))
