"""How much memory requests and transactions in progress may take, counted in the bytes of their documents.

One budget for each process: large payloads must end in a refusal that says so, and not in a process that is killed.
Counts only; who asks decides what a refusal means.
"""

from typing import Final

from app.protocol.values import Transaction

BRANCH_BYTES: Final = 1024
"""About what a branch in progress takes beside its payload and result."""
BEGIN_SHARE: Final = 0.75
"""The share that requests and new transactions may fill; the rest is for recovery, so that what was begun goes on, …"""
HUNG_SHARE: Final = 0.875
"""… and of that, hung transactions leave some to those that only wait their turn."""


class MemoryBudget:
    """Bytes in use, and what is left of `bytes_max`."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self.used = 0

    def left(self, *, hung: bool) -> int:
        """What is left for recovery, in bytes: for hung transactions, or for the others."""
        return max(0, int(self._bytes_max * (HUNG_SHARE if hung else 1.0)) - self.used)

    def admits(self, size: int) -> bool:
        """Whether a request or a new transaction of this many bytes fits in."""
        return self.used + size <= self._bytes_max * BEGIN_SHARE

    def hold(self, size: int) -> None:
        """Count these bytes as used, even beyond the budget."""
        self.used += size

    def free(self, size: int) -> None:
        """The opposite of `hold`."""
        self.used -= size
        assert self.used >= 0, "no byte is freed twice"


def size_of(transaction: Transaction) -> int:
    """What a transaction in progress takes, in bytes."""
    return transaction.document_bytes + BRANCH_BYTES * len(transaction.branches)
