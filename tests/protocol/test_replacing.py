"""`replace` copies the values of the state machine as dataclasses.replace does."""

import dataclasses
from typing import Any

import pytest

from app.protocol.replacing import replace
from app.protocol.values import Branch, BranchPhase, Transaction

BRANCH = Branch(name="a", participant="p", try_attempts=2, tried_at=1.0)
TRANSACTION = Transaction(id="t", created_at=0.0, deadline=9.0, branches=(BRANCH,), reference="r")


@pytest.mark.parametrize(
    ("value", "changes"),
    [
        (BRANCH, {}),
        (BRANCH, {"name": "b", "phase": BranchPhase.HELD, "tried_at": None}),
        (TRANSACTION, {"version": 3, "branches": ()}),
    ],
)
def test_a_copy_is_what_dataclasses_would_make(value: Any, changes: dict[str, Any]) -> None:
    before = dataclasses.asdict(value)
    copy = replace(value, **changes)
    assert type(copy) is type(value)
    assert copy == dataclasses.replace(value, **changes)
    assert copy is not value
    assert dataclasses.asdict(value) == before


def test_a_copy_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        replace(BRANCH, name="b").name = "c"  # type: ignore[misc]


def test_a_field_that_is_not_there_is_an_error() -> None:
    with pytest.raises(AttributeError, match="nmae"):
        replace(BRANCH, nmae="b")  # type: ignore[call-arg]
