"""Exponential back-off with full jitter that is the same in every replay."""

import hashlib

from app.protocol.policy import Policy
from app.protocol.values import Branch


def back_off_s(transaction_id: str, branch: Branch, times: int, policy: Policy) -> float:
    """Exponential back-off with full jitter and a cap, for a branch that has been asked in vain this many times.

    The jitter is a hash of what is retried: spread evenly over transactions, and the same in every replay.
    """
    exponent = min(times - 1, 32)
    ceiling_s = min(policy.retry_cap_s, policy.retry_base_s * 2.0**exponent)
    seed = f"{transaction_id}:{branch.name}:{branch.phase}:{times}".encode()
    fraction = int.from_bytes(hashlib.blake2b(seed, digest_size=8).digest()) / 2**64
    return ceiling_s * fraction
