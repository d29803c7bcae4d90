"""What a handler gets and raises: `Hold`, `Step`, `Refused` and `NotNow`. Values only, no behaviour."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold(Generic[T]):
    """One branch of one transaction, as its handlers see it. Source: docs/reference/sdk.md, "Hold".

    `payload` is what Try was called with, `result` is what Try returned, as JSON (None in Try). `attempt` counts the
    coordinator's calls from 1; it is 0 when the participant itself releases the hold. `idempotency_key` is the same for
    try, confirm, cancel and all their retries; use `key_for` for gateways. `expires_at` is UTC on this service's clock.
    `held` says whether Try's changes to this database are committed. `results` are those of the branches that this one
    waited for (`after`), by name; empty when the participant itself releases the hold.
    """

    transaction_id: str
    branch: str
    payload: T
    result: Any
    attempt: int
    idempotency_key: str
    expires_at: datetime
    held: bool
    results: Mapping[str, Any] = field(default_factory=dict)

    def key_for(self, request: str) -> str:
        """The idempotency key for one request to a gateway, such as "capture"; the same in every retry.

        A gateway binds a key to one request; for another it refuses the key, or repeats the first answer.
        """
        return f"{self.idempotency_key}:{request}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step(Generic[T]):
    """One branch of one transaction, as the handlers of all kinds but TCC see it. Source: docs/reference/sdk.md.

    `payload` is what the action was called with, `result` is what the action returned, as JSON; None in the action, and
    None if nobody knows whether it took effect. `results` are those of the branches that this one waited for (`after`),
    by name. `attempt` counts the coordinator's calls from 1; it is 0 when the participant itself undoes, once more,
    what an interrupted action may have done. `idempotency_key` is the same in all calls of the branch; use `key_for`
    for gateways. `done` says whether the action's changes to this database are committed.
    """

    transaction_id: str
    branch: str
    payload: T
    result: Any
    results: Mapping[str, Any] = field(default_factory=dict)
    attempt: int
    idempotency_key: str
    done: bool

    def key_for(self, request: str) -> str:
        """The idempotency key for one request to a gateway, such as "charge"; the same in every retry."""
        return f"{self.idempotency_key}:{request}"


class Refused(Exception):
    """Raise this in a handler to refuse for a business reason, where a retry wouldn't help.

    `detail` is for people. It is sent to the coordinator and ends up in the transaction's `reason`.
    """

    def __init__(self, detail: str = "refused") -> None:
        super().__init__(detail)
        self.detail = detail


class NotNow(Exception):
    """Raise this in a handler if something that it needs, such as a gateway, is down.

    The coordinator tries again after `retry_after_s` seconds. Nothing is decided, and no traceback is logged. `detail`
    is for people, and is sent to the coordinator.
    """

    def __init__(self, detail: str = "not now", *, retry_after_s: float = 1.0) -> None:
        if not 0 <= retry_after_s < math.inf:
            raise ValueError("retry_after_s must be a finite number of seconds, 0 or more")
        super().__init__(detail)
        self.detail = detail
        self.retry_after_s = retry_after_s
