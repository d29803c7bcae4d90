"""What goes into the state machine and what comes out of it.

Inputs are in the past tense (`Answered`), outputs in the imperative (`Call`). Values only; steps.py says what follows.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from app.protocol.values import Branch, ReasonCode, Settled, Transaction
from holdfast.wire import Answer, Operation


class Objection(StrEnum):
    """Why a command can't be carried out; the value is the slug of the problem that a client gets."""

    ALREADY_DECIDED = "already-decided"
    ALREADY_FINISHED = "already-finished"
    NOT_DECIDED = "not-decided"
    UNKNOWN_BRANCH = "unknown-branch"
    BRANCH_FINISHED = "branch-finished"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """Input: a call has ended. `result` is its JSON body, `error` says in words what was wrong."""

    branch: str
    operation: Operation
    attempt: int
    answer: Answer
    result: Any = None
    error: str | None = None
    retry_after_s: float | None = None
    hold_ttl_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelRequested:
    """Input: somebody wants the transaction aborted while it is undecided."""

    code: ReasonCode = ReasonCode.REQUESTED
    detail: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryRequested:
    """Input: a person wants every waiting call made now, with the back-off starting over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchResolved:
    """Input: a person settled this branch by hand."""

    branch: str
    settled: Settled
    by: str
    reason: str


Command = CancelRequested | RetryRequested | BranchResolved
Input = Answered | CancelRequested | RetryRequested | BranchResolved


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """Output: send this. A Try is given up at `deadline` at the latest; the others only at the call's own timeout."""

    transaction_id: str
    branch: Branch
    operation: Operation
    attempt: int
    traceparent: str | None = None
    hold_ttl_s: float | None = None
    deadline: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What follows: save (when `must_save`), send `calls`, come back with answers or at `wake_at`.

    `rests` means that nothing is under way and nothing is due soon: the transaction is finished, or recovery picks
    it up at `transaction.wake_at`.
    """

    transaction: Transaction
    calls: tuple[Call, ...]
    must_save: bool
    rests: bool
    wake_at: float
