"""What a run left behind, as plain data: what participants did and were asked, what clients were told, how it ended.

Says nothing of where it comes from, and judges nothing (checker.py does).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.harness.notes import Note


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One call that arrived; `status` is what the work answered, None when the process died first."""

    participant: str
    operation: str
    transaction_id: str
    branch: str
    attempt: int
    arrived_at: float
    answered_at: float | None = None
    status: int | None = None
    fault: str = "none"

    @property
    def succeeded(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """One line of a participant's effect log; `at` is monotonic, taken in the handler."""

    participant: str
    transaction_id: str
    branch: str
    operation: str
    kind: str
    account: int
    amount: int
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    participant: str
    account: int
    balance: int
    held: int
    incoming: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """A row of the fence that is not finished."""

    participant: str
    transaction_id: str
    branch: str
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What the coordinator says of a transaction at the end. `branches`: name → participant. Times are monotonic."""

    transaction_id: str
    reference: str | None
    phase: str
    decision: str
    outcome: str | None
    hung: bool
    branches: Mapping[str, str]
    created_at: float
    finished_at: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryCall:
    branch: str
    operation: str
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that the checker knows. `histories` has the calls of those transactions that were looked into."""

    opening_balance: int
    opening_total: int
    requests: Sequence[Request] = ()
    effects: Sequence[Effect] = ()
    accounts: Sequence[Account] = ()
    holds: Sequence[Hold] = ()
    notes: Sequence[Note] = ()
    known: Mapping[str, Known] = field(default_factory=dict)
    histories: Mapping[str, Sequence[HistoryCall]] = field(default_factory=dict)


def known_of(item: Any, *, created_at: float = 0.0, finished_at: float | None = None) -> Known:
    """What the coordinator says of a transaction; times only where a clock was kept."""
    return Known(
        transaction_id=item["id"],
        reference=item["reference"],
        phase=item["phase"],
        decision=item["decision"],
        outcome=item["outcome"],
        hung=item["hung"],
        branches={branch["name"]: branch["participant"] or "" for branch in item["branches"]},
        created_at=created_at,
        finished_at=finished_at,
    )
