"""What a handler sees and says: `Hold` and `Refused`. Values only; nothing here does anything."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold(Generic[T]):
    """One branch of one transaction, as its handlers see it. Source: docs/sdk.md, "Hold".

    `payload` is what Try was asked for; `result` what Try answered, as JSON (None in Try). `attempt` counts the
    coordinator's calls from 1 and is 0 when the participant itself releases. `idempotency_key` is the same for
    try, confirm and cancel and all their repeats: pass it to gateways. `expires_at` is UTC by this service's
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


class Refused(Exception):
    """Raised by a handler: no, for a business reason, and asking again won't help.

    `detail` is for people; it travels to the coordinator and into the transaction's `reason`.
    """

    def __init__(self, detail: str = "refused") -> None:
        super().__init__(detail)
        self.detail = detail
