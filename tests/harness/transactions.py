"""Transactions to store: plain ones, and any that could be."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

from hypothesis import strategies as st
from sqlalchemy import Engine

from app.protocol.kinds import OPERATIONS
from app.protocol.values import (
    Branch,
    BranchPhase,
    CallRecord,
    HungReason,
    Reason,
    ReasonCode,
    Resolution,
    Settled,
    Transaction,
    TryOrder,
    Undo,
    in_order,
)
from app.storage import transactions
from app.storage.deferred import finished
from holdfast.json_text import checked
from holdfast.wire import Answer, Decision, Kind, Operation

CAR: Final = Branch(name="car", participant="car", phase=BranchPhase.TRYING)


def transaction(number: int, *branches: Branch, **fields: Any) -> Transaction:
    """The nth transaction, recorded at second n and due a minute later."""
    new = Transaction(
        id=f"00000000-0000-7000-8000-{number:012d}",
        version=1,
        created_at=float(number),
        deadline=number + 30.0,
        wake_at=number + 60.0,
        branches=branches or (CAR,),
    )
    return replace(new, **fields)


def call(of: Transaction, attempt: int, **fields: Any) -> CallRecord:
    """A call to the car that was answered."""
    made = CallRecord(
        transaction_id=of.id,
        branch="car",
        operation=Operation.TRY,
        attempt=attempt,
        started_at=1.5,
        duration_ms=0.25,
        answer=Answer.SUCCEEDED,
        http_status=200,
        response="{}",
    )
    return replace(made, **fields)


def written(engine: Engine, function: Callable[..., Sequence[Any]], *items: Any) -> list[Any]:
    """What a writing function answers to these items, committed."""
    with engine.execution_options(holdfast_writes=True).begin() as connection:
        return [finished(each) for each in function(connection, items)]


def recorded(engine: Engine, *new: Transaction) -> None:
    """Have these transactions in the database."""
    written(engine, transactions.record, *(transactions.NewRecord(transaction=each) for each in new))


def found(engine: Engine, function: Callable[..., Any], *args: Any) -> Any:
    """What a reading function answers."""
    with engine.connect() as connection:
        return finished(function(connection, *args))


# --- any value that could be stored ------------------------------------------------------------------------------

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
"""Any text that JSON can carry, NUL and all."""
labels = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)
"""Any text that a column can carry."""
times = st.floats(0, 4e9, allow_nan=False)
numbers = st.integers(-(10**30), 10**30) | st.floats(allow_nan=False, allow_infinity=False)
documents: st.SearchStrategy[object] = st.recursive(
    st.none() | st.booleans() | numbers | words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4),
    max_leaves=12,
) | st.sampled_from([0, 0.0, -0.0, False, "", None, [], {}, "\0", 2**53 + 1, -(2**63), 10**4000, 5e-324, "\U0001f600"])
texts = documents.map(lambda value: checked(json.dumps(value).encode())) | st.sampled_from(
    [checked(text) for text in (b"1E400", b"-0.0", b"9007199254740993", b'{"a": 1.10,\n "a":[ ]}', b'"\x7f"')]
)
"""Any JSON, as text."""
attempts = st.integers(0, 10**6)


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


def _urls_of(kind: Kind) -> st.SearchStrategy[dict[Operation, str]]:
    """Endpoints of a branch of this kind, in their usual order."""
    urls = st.lists(words, min_size=len(OPERATIONS[kind]), max_size=len(OPERATIONS[kind]))
    return urls.map(lambda found: dict(zip(OPERATIONS[kind], found, strict=True)))


branches = st.builds(
    Branch,
    name=labels,
    participant=maybe(labels),
    kind=st.just(Kind.TCC),
    endpoints=maybe(_urls_of(Kind.TCC)),
    call_timeout_s=maybe(st.floats(0.001, 3600.0)),
    payload=texts,
    phase=st.sampled_from(BranchPhase),
    result=maybe(texts),
    try_attempts=attempts,
    confirm_attempts=attempts,
    cancel_attempts=attempts,
    failures=attempts,
    next_attempt_at=maybe(times),
    tried_at=maybe(times),
    asked_at=maybe(times),
    hold_until=maybe(times),
    last_answer=maybe(st.sampled_from(Answer)),
    last_error=maybe(words),
    hung_reason=maybe(st.sampled_from(HungReason)),
    resolution=maybe(st.builds(Resolution, settled=st.sampled_from(Settled), by=words, at=times, reason=words)),
    intent=maybe(st.builds(Resolution, settled=st.sampled_from(Settled), by=words, at=times, reason=words)),
    cannot_withdraw=st.booleans(),
    contradicted=st.booleans(),
)


@st.composite
def _of_any_kind(draw: st.DrawFn, branch: Branch, ahead: tuple[str, ...]) -> Branch:
    """The branch as one of any kind, after some of those ahead of it."""
    kind = draw(st.sampled_from(Kind))
    endpoints = branch.endpoints and draw(_urls_of(kind))
    after = draw(st.lists(st.sampled_from(ahead), unique=True)) if ahead else []
    return replace(branch, kind=kind, endpoints=endpoints, after=tuple(after))


@st.composite
def _ordered(draw: st.DrawFn, each: Transaction) -> Transaction:
    """The transaction with branches of any kinds, in an order that it could have."""
    given = each.branches
    names = tuple(branch.name for branch in given)
    if draw(st.booleans()):
        given = tuple(draw(_of_any_kind(branch, names[:number])) for number, branch in enumerate(given))
    if each.try_order is TryOrder.SEQUENTIAL:
        given = tuple(replace(branch, after=()) for branch in given)
    return replace(each, branches=in_order(given, each.try_order, each.undo))


any_transactions = st.builds(
    Transaction,
    id=st.uuids().map(str),
    created_at=times,
    deadline=times,
    branches=st.lists(branches, min_size=1, max_size=4, unique_by=lambda branch: branch.name).map(tuple),
    name=maybe(labels),
    reference=maybe(labels),
    try_order=st.sampled_from(TryOrder),
    undo=st.sampled_from(Undo),
    version=st.integers(1, 2**31 - 2),
    decision=st.sampled_from(Decision),
    reason=maybe(st.builds(Reason, code=st.sampled_from(ReasonCode), branch=maybe(words), detail=maybe(words))),
    decided_at=maybe(times),
    finished_at=maybe(times),
    hung_since=maybe(times),
    wake_at=maybe(times),
)
any_transactions = any_transactions.filter(lambda each: not (each.decision is Decision.UNDECIDED and each.finished))
any_transactions = any_transactions.flatmap(_ordered)
"""Any transaction but one that has ended undecided, which has no phase."""
