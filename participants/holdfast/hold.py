"""What a handler sees and says: `Hold`, `Refused` and `NotNow`. Values only; nothing here does anything."""

import math
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold(Generic[T]):
    """One branch of one transaction, as its handlers see it. Source: docs/reference/sdk.md, "Hold".

    `payload` is what Try was asked for; `result` what Try answered, as JSON (None in Try). `attempt` counts the
    coordinator's calls from 1 and is 0 when the participant itself releases. `idempotency_key` is the same for
    try, confirm and cancel and all their repeats; gateways get `key_for`. `expires_at` is UTC by this service's
    clock. `held` says whether what Try wrote to this database is committed.
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
        """The idempotency key of one request to a gateway, such as "capture": the same in every repeat.

        Gateways bind a key to one request and refuse it, or repeat the first answer, for another.
        """
        return f"{self.idempotency_key}:{request}"


class Refused(Exception):
    """Raised by a handler: no, for a business reason, and asking again won't help.

    `detail` is for people; it travels to the coordinator and into the transaction's `reason`.
    """

    def __init__(self, detail: str = "refused") -> None:
        super().__init__(detail)
        self.detail = detail


class NotNow(Exception):
    """Raised by a handler: something that it needs, such as a gateway, is down; ask again in `retry_after_s` seconds.

    Nothing is decided by it, and no traceback is logged. `detail` is for people; it travels to the coordinator.
    """

    def __init__(self, detail: str = "not now", *, retry_after_s: float = 1.0) -> None:
        if not 0 <= retry_after_s < math.inf:
            raise ValueError("retry_after_s must be 0 or more seconds")
        super().__init__(detail)
        self.detail = detail
        self.retry_after_s = retry_after_s
