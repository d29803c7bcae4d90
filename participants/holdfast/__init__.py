"""Take part in all-or-nothing transactions from a FastAPI service.

Reference: docs/reference/sdk.md; contract: docs/reference/protocol.md.
"""

from holdfast.client import (
    AccessDenied,
    Branch,
    BranchRecord,
    Client,
    CoordinatorUnreachable,
    HoldfastError,
    ProblemError,
    Reason,
    Transaction,
    TransactionCancelled,
    TransactionMixed,
    TransactionUndecided,
    idempotency_key_of,
)
from holdfast.hold import Hold, NotNow, Refused, Step
from holdfast.participant.participant import Participant
from holdfast.participant.steps import Check, Pivot, Retryable, SagaStep
from holdfast.redaction import install
from holdfast.version import __version__

install()  # before anything logs

__all__ = [
    "AccessDenied",
    "Branch",
    "BranchRecord",
    "Check",
    "Client",
    "CoordinatorUnreachable",
    "Hold",
    "HoldfastError",
    "NotNow",
    "Participant",
    "Pivot",
    "ProblemError",
    "Reason",
    "Refused",
    "Retryable",
    "SagaStep",
    "Step",
    "Transaction",
    "TransactionCancelled",
    "TransactionMixed",
    "TransactionUndecided",
    "__version__",
    "idempotency_key_of",
]
