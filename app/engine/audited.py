"""What the record says of commands that a step has carried out. Decides nothing."""

from collections.abc import Iterator, Sequence
from typing import Any, assert_never

import msgspec

from app.protocol.messages import Answered, BranchResolved, CancelRequested, Input, RetryRequested
from app.protocol.values import Transaction
from app.storage.audit import AuditEntry
from holdfast.wire import Decision


def entries_of(before: Transaction, after: Transaction, inputs: Sequence[Input], now: float) -> tuple[AuditEntry, ...]:
    """The entries for the commands among these inputs, which lead from one state to the other."""
    return tuple(_entry(before, after, each, now) for each in commands_in(before, inputs))


def commands_in(
    before: Transaction, inputs: Sequence[Input]
) -> Iterator[CancelRequested | RetryRequested | BranchResolved]:
    """The commands among these inputs that do anything: what is cancelled already can be cancelled again."""
    for each in inputs:
        is_repeat = isinstance(each, CancelRequested) and before.decision is not Decision.UNDECIDED
        if not isinstance(each, Answered) and not is_repeat:
            yield each


def _entry(
    before: Transaction, after: Transaction, command: CancelRequested | RetryRequested | BranchResolved, now: float
) -> AuditEntry:
    match command:
        case CancelRequested():
            action, reason = "transaction.cancel", command.detail
        case RetryRequested():
            action, reason = "transaction.retry", None
        case BranchResolved():
            action, reason = "branch.resolve", command.reason
        case _:
            assert_never(command)
    return AuditEntry(
        at=now,
        asker=command.asker,
        action=action,
        target=f"transactions/{after.id}",
        reason=reason,
        before=_summary(before),
        after=_summary(after),
    )


def _summary(transaction: Transaction) -> str:
    """The members of the transaction resource that commands change."""
    branches: list[dict[str, Any]] = [
        {"name": branch.name, "phase": branch.phase, "resolution": branch.resolution and branch.resolution.settled}
        for branch in transaction.branches
    ]
    return msgspec.json.encode(
        {
            "phase": transaction.phase,
            "decision": transaction.decision,
            "outcome": transaction.outcome,
            "branches": branches,
        }
    ).decode()
