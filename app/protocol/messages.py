"""Inputs and outputs of the state machine.

Inputs are in the past tense (`Answered`), outputs in the imperative (`Call`). Values only; steps.py has the logic.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from app.protocol.values import Branch, ReasonCode, Settled, Transaction
from holdfast.json_text import JsonText
from holdfast.wire import Answer, Operation


class Objection(StrEnum):
    """Why a command can't be carried out; the value is the slug of the client's problem document."""

    ALREADY_DECIDED = "already-decided"
    ALREADY_FINISHED = "already-finished"
    PIVOT_SENT = "pivot-sent"
    NOT_DECIDED = "not-decided"
    NOTHING_TO_SEND = "nothing-to-send"
    UNKNOWN_BRANCH = "unknown-branch"
    BRANCH_FINISHED = "branch-finished"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """Input: a call has finished. `result` is its JSON body, `error` describes a failure.

    `in_progress` means that it is unanswered because the participant is still working, which is not a failure: it is
    asked again later, and only time makes its branch hung.
    `too_long` means that the answer was longer than what is kept of a result, so that its result is lost.
    `unauthorized` means that it is unanswered because the participant doesn't accept who calls it.
    `already` means that it was refused because the opposite was done already (a 409 `already-…`).
    `no_route` means that it was refused by a router: the participant has no such operation.
    """

    branch: str
    operation: Operation
    attempt: int
    answer: Answer
    result: JsonText | None = None
    error: str | None = None
    in_progress: bool = False
    retry_after_s: float | None = None
    hold_ttl_s: float | None = None
    too_long: bool = False
    unauthorized: bool = False
    already: bool = False
    no_route: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """Who asks: the name of an API key, the role that allows it, and the address. What isn't known is None."""

    actor: str | None = None
    role: str | None = None
    address: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelRequested:
    """Input: an initiator or operator wants to cancel the transaction, which is possible while it is undecided.

    `by` says who asked, in words, and `detail` why.
    """

    code: ReasonCode = ReasonCode.REQUESTED
    detail: str | None = None
    by: str | None = None
    asker: Asker = Asker()


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryRequested:
    """Input: an operator wants every outstanding call made now, with the back-off reset. `by` says who asked."""

    by: str | None = None
    asker: Asker = Asker()


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchResolved:
    """Input: an operator has settled this branch by hand; with `send`, it wants the call for that to be made."""

    branch: str
    settled: Settled
    by: str
    reason: str
    send: bool = False
    asker: Asker = Asker()


Command = CancelRequested | RetryRequested | BranchResolved
Input = Answered | CancelRequested | RetryRequested | BranchResolved


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """Output: make this call, and abandon it at `deadline` at the latest; None means at the call's own time limit.

    `results` are those of the branches that this one comes after, by name; None if it names none.
    """

    transaction_id: str
    branch: Branch
    operation: Operation
    attempt: int
    traceparent: str | None = None
    hold_ttl_s: float | None = None
    deadline: float | None = None
    results: Mapping[str, JsonText | None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What to do next: save (if `must_save`), make `calls`, and come back with their answers or at `wake_at`.

    `rests` means that no call is in progress and none is due soon: the transaction is finished, or recovery claims it
    at `transaction.wake_at`. A step that isn't durable before `not_after` must not be saved: advance again from
    the same state and inputs.
    """

    transaction: Transaction
    calls: tuple[Call, ...]
    must_save: bool
    rests: bool
    wake_at: float
    not_after: float = math.inf
