"""What a handler gets and raises: `Hold`, `Refused` and `NotNow`. Values only, no behaviour."""

import math
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold(Generic[T]):
    """One branch of one transaction, as its handlers see it. Source: docs/reference/sdk.md, "Hold".

    `payload` is what Try was called with, `result` is what Try returned, as JSON (None in Try). `attempt` counts the
    coordinator's calls from 1; it is 0 when the participant itself releases the hold. `idempotency_key` is the same for
    try, confirm, cancel and all their retries; use `key_for` for gateways. `expires_at` is UTC on this service's clock.
    `held` says whether Try's changes to this database are committed.
    """

    transaction_id: str
    branch: str
    payload: T
    result: Any
    attempt: int
    idempotency_key: str
    expires_at: datetime
    held: bool

    def key_for(self, request: str) -> str:
        """The idempotency key for one request to a gateway, such as "capture"; the same in every retry.

        A gateway binds a key to one request; for another it refuses the key, or repeats the first answer.
        """
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
