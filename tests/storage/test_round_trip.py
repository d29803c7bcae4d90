"""What is stored comes back as it was: every field, whatever its value."""

import json
from dataclasses import fields, replace

import msgspec
from hypothesis import HealthCheck, given, settings
from sqlalchemy import Engine

from app.protocol.kinds import OPERATIONS
from app.protocol.values import Branch, Transaction
from app.storage import mapping, tables, transactions
from holdfast.json_text import same, text_of
from holdfast.wire import Kind
from tests.harness.transactions import any_transactions, found, recorded, transaction, written

any_number_in_one_database = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=80, deadline=None
)


def exact(transaction: Transaction) -> str:
    """The transaction in words that tell 0 from 0.0 and from false, and 0.0 from -0.0."""
    return repr(transaction)


@any_number_in_one_database
@given(new=any_transactions, step=any_transactions)
def test_every_field_comes_back_as_it_was_recorded_and_saved(
    engine: Engine, new: Transaction, step: Transaction
) -> None:
    recorded(engine, new)
    try:
        assert exact(found(engine, transactions.find, new.id)) == exact(new)
        after = saved_as(new, step)
        (answer,) = written(engine, transactions.save, transactions.Save(before=new, after=after))
        assert (
            exact(answer)
            == exact(found(engine, transactions.find, new.id))
            == exact(replace(after, version=new.version + 1))
        )
    finally:
        with engine.execution_options(holdfast_writes=True).begin() as connection:
            for table in (tables.transactions, tables.branches, tables.hung_branches):
                connection.execute(table.delete())


def saved_as(new: Transaction, step: Transaction) -> Transaction:
    """A later state of `new`, with all that may change taken from `step`."""
    fixed = {"name", "participant", "endpoints", "call_timeout_s", "kind", "after", "payload", "calling"}
    fixed |= {"waits_for", "undone_after"}
    changing = [field.name for field in fields(Branch) if field.name not in fixed]
    states = [step.branches[n % len(step.branches)] for n in range(len(new.branches))]
    branches = [
        replace(branch, **{name: getattr(state, name) for name in changing})
        for branch, state in zip(new.branches, states, strict=True)
    ]
    columns = ("decision", "reason", "decided_at", "finished_at", "hung_since", "wake_at")
    return replace(new, branches=tuple(branches), **{name: getattr(step, name) for name in columns})


@given(new=any_transactions)
def test_a_document_is_json_that_anything_can_read(new: Transaction) -> None:
    progress, rows = mapping.changing_columns(new)["progress"], mapping.branch_rows(new)
    assert "\0" not in progress + "".join(row["definition"] for row in rows)
    assert len(json.loads(progress, parse_int=str)["branches"]) <= len(rows) == len(new.branches)
    for row, branch in zip(rows, new.branches, strict=True):
        assert same(mapping.payload_of(row["definition"]), branch.payload)


def test_a_version_before_reads_what_it_knows_of_a_branch(engine: Engine) -> None:
    """It ignores a time limit of a call, which it can do without; where there is none, nothing has changed for it."""

    class Before(msgspec.Struct, kw_only=True):
        endpoints: tuple[str, str, str] | None
        payload: msgspec.Raw

    branch = Branch(name="a", endpoints=dict(zip(OPERATIONS[Kind.TCC], "tcx", strict=True)), payload=text_of(1))
    for limit in (None, 2.5):
        (row,) = mapping.branch_rows(transaction(1, branches=(replace(branch, call_timeout_s=limit),)))
        assert msgspec.json.decode(row["definition"], type=Before).endpoints == ("t", "c", "x")
        assert ("call_timeout_s" in row["definition"]) is (limit is not None)


def test_the_trace_that_a_transaction_belongs_to_is_kept(engine: Engine) -> None:
    traced = transaction(1, traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    recorded(engine, traced)
    assert found(engine, transactions.find, traced.id) == traced
