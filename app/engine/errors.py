"""What the engine refuses to do, and why."""

from app.protocol.messages import Objection
from app.protocol.values import Transaction


class OverloadedError(Exception):
    """The coordinator is at capacity or stopping. Nothing was recorded; try again later."""


class UnknownTransactionError(Exception):
    """There is no transaction with this id."""


class ForgottenTransactionError(Exception):
    """There is no transaction with this id any more, or never was: a restored backup may have forgotten it."""


class UnknownParticipantError(Exception):
    """A participant that the request names isn't registered any more. Nothing was recorded."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class IdempotencyKeyConflictError(Exception):
    """The key was used for another request, which began the transaction `transaction_id` of `owner`."""

    def __init__(self, transaction_id: str, owner: str | None) -> None:
        super().__init__(transaction_id)
        self.transaction_id = transaction_id
        self.owner = owner


class ObjectedError(Exception):
    """The transaction's state doesn't allow the command; `reason` says why."""

    def __init__(self, reason: Objection, transaction: Transaction) -> None:
        super().__init__(reason)
        self.reason = reason
        self.transaction = transaction
